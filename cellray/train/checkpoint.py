"""Training state as safetensors: weights, their average, optimiser moments and the step, without pickle.

Weights that a module has under two names (tied embeddings) are written once.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

_FILE = "training.safetensors"
_OPTIMISER = "optimiser."


def save(folder: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write the state of named ``modules`` and ``optimiser`` after ``step`` steps into ``folder``."""
    first_names = {name: _first_names(module) for name, module in modules.items()}
    tensors = {
        f"{name}.{key}": tensor.detach().contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
        if first_names[name][key] == key
    }
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"{_OPTIMISER}{index}.{name}": value.contiguous() for name, value in moments.items()}
    save_file(tensors, folder / _FILE, metadata={"step": str(step)})


def restore(folder: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer | None = None) -> int:
    """Load ``modules`` and, if given, ``optimiser`` from what ``save`` wrote; returns the step."""
    with safe_open(folder / _FILE, framework="pt") as file:
        names = list(file.keys())
        for name, module in modules.items():
            start = f"{name}."
            found = {key.removeprefix(start): file.get_tensor(key) for key in names if key.startswith(start)}
            tied = {key: found[first] for key, first in _first_names(module).items() if first in found}
            module.load_state_dict({**tied, **found})
        if optimiser is not None:
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for name in names:
                if name.startswith(_OPTIMISER):
                    index, key = name.removeprefix(_OPTIMISER).split(".", 1)
                    moments.setdefault(int(index), {})[key] = file.get_tensor(name)
            optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        return int(file.metadata()["step"])


def _first_names(module: nn.Module) -> dict[str, str]:
    """Return for each name of a tensor the first name that the same tensor has."""
    first: dict[int, str] = {}
    return {
        key: first.setdefault(tensor.data_ptr(), key) if tensor.numel() else key
        for key, tensor in module.state_dict().items()
    }
