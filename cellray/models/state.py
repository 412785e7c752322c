"""What model folders of every kind share: checked tensors.

Contract: tensors fit the model exactly and hold numbers only, or it is a ``ValueError`` that names the tensor.
"""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

State = dict[str, torch.Tensor]


def check_state(state: State, build: Callable[[], nn.Module], hint: str = "") -> None:
    """Raise ``ValueError`` on a missing, extra, misshapen or non-finite tensor.

    Parameters
    ----------
    state
        Tensors by name.
    build
        Makes the model that they are for.
    hint
        Added to the message when tensors are missing.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in _shapes(build).state_dict().items()}
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        parts = [
            f"{len(names)} {what} (first: {names[0]!r})"
            for what, names in (("missing", missing), ("extra", extra))
            if names
        ]
        msg = f"tensors do not fit the configuration: {', '.join(parts)}{hint if missing else ''}"
        raise ValueError(msg)
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            msg = f"tensor {name!r} has shape {tuple(state[name].shape)}, the configuration asks for {shape}"
            raise ValueError(msg)
        if not bool(torch.isfinite(state[name].float()).all()):
            msg = f"tensor {name!r} holds NaN or infinity"
            raise ValueError(msg)


def loaded(build: Callable[[], nn.Module], state: State, device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the model with ``state`` in ``dtype``, but its modules named in ``LAST`` in float32, ready to infer."""
    model = _shapes(build)
    last = getattr(model, "LAST", ())
    weights = {
        name: tensor.to(torch.float32 if name.split(".")[0] in last else dtype) for name, tensor in state.items()
    }
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval()


def _shapes(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a model whose weights have shapes but no values."""
    with torch.device("meta"), _Undrawn():
        return build()


class _Undrawn(TorchFunctionMode):
    """While inside, weights are not drawn: to "draw" those without values, torch first imports its whole compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Leave the tensor that a draw would fill as it is."""
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **(kwargs or {}))


def read_table(path: Path, expected: pa.Schema) -> pa.Table:
    """Read a table of a model folder; other columns than ``expected`` are a ``ValueError`` that names the file."""
    table = pq.read_table(path)
    if table.schema.names != expected.names:
        msg = f"{path.name} has columns {table.schema.names}, this kind of model needs {expected.names}"
        raise ValueError(msg)
    return table.cast(expected)
