"""Weights that workers share: each holds a part of every tensor (FSDP); whoever needs whole tensors asks for them here.

Contract: ``whole`` is a call of all workers together, in the same order, where tensors are shared; tensors that are not
pass through. Losses and steps are those of workers that hold everything. It knows nothing of what is trained.
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def share(module: nn.Module, parts: Iterable[nn.Module], world: int, device: torch.device) -> None:
    """Make each worker hold its part of ``module``'s weights; those of ``parts`` are whole one part after another."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    for one in (*parts, module):
        # Whole weights that stayed from one pass to the next would miss what is loaded between them.
        fully_shard(one, mesh=mesh, reshard_after_forward=True)


def is_shared(module: nn.Module) -> bool:
    """Return whether ``share`` was given ``module`` or something in it."""
    fsdp = _loaded("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(one, fsdp.FSDPModule) for one in module.modules())


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor."""
    return tensor.full_tensor() if _is_part(tensor) else tensor  # type: ignore[attr-defined]


def own(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this worker holds."""
    return tensor.to_local() if _is_part(tensor) else tensor  # type: ignore[attr-defined]


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return ``tensor``, which every worker has whole, shared as ``other`` is."""
    if not _is_part(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)  # type: ignore[attr-defined]


def _is_part(tensor: Tensor) -> bool:
    parts = _loaded("torch.distributed.tensor")
    return parts is not None and isinstance(tensor, parts.DTensor)


def _loaded(module: str) -> Any:
    """Return a module that only ``share`` needs, or None: where nothing has loaded it, a second, nothing is shared."""
    return sys.modules.get(module)
