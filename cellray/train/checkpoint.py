"""Training state as safetensors: weights, their average, optimiser moments and the step, without pickle.

Weights that a module has under two names (tied embeddings) are written once.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cellray.train.sharing import like, own, whole

_FILE = "training.safetensors"
_OPTIMISER = "optimiser."


def state_of(
    modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """Return the state of named ``modules`` and ``optimiser``, whole; all workers that share weights must ask.

    Who does not ``keep`` it has nothing of it.
    """
    first_names = {name: _first_names(module) for name, module in modules.items()}
    tensors = {
        f"{name}.{key}": tensor.detach()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
        if first_names[name][key] == key
    }
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"{_OPTIMISER}{index}.{name}": value for name, value in moments.items()}
    found = {}
    for name, tensor in tensors.items():
        put_together = whole(tensor)
        if keep:  # what was put together for this leaves the device at once
            found[name] = (put_together if put_together is tensor else put_together.cpu()).contiguous()
    return found


def save(folder: Path, state: dict[str, torch.Tensor], step: int) -> None:
    """Write the ``state_of`` a run after ``step`` steps into ``folder``."""
    save_file(state, folder / _FILE, metadata={"step": str(step)})


def restore(folder: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer | None = None) -> int:
    """Load ``modules`` and, if given, ``optimiser`` from what ``save`` wrote; returns the step."""
    with safe_open(folder / _FILE, framework="pt") as file:
        names = list(file.keys())
        for name, module in modules.items():
            start = f"{name}."
            found = {key.removeprefix(start): file.get_tensor(key) for key in names if key.startswith(start)}
            tied = {key: found[first] for key, first in _first_names(module).items() if first in found}
            now = module.state_dict()
            module.load_state_dict(
                {key: like(value, now[key]) if key in now else value for key, value in {**tied, **found}.items()}
            )
        if optimiser is not None:
            parameters = [one for group in optimiser.param_groups for one in group["params"]]
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for name in names:
                if name.startswith(_OPTIMISER):
                    index, key = name.removeprefix(_OPTIMISER).split(".", 1)
                    moments.setdefault(int(index), {})[key] = like(file.get_tensor(name), parameters[int(index)])
            optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        return int(file.metadata()["step"])


def _first_names(module: nn.Module) -> dict[str, str]:
    """Return for each name of a tensor the first name that the same tensor has."""
    first: dict[int, str] = {}
    held = {key: own(tensor) for key, tensor in module.state_dict().items()}
    return {key: first.setdefault(one.data_ptr(), key) if one.numel() else key for key, one in held.items()}
