"""Training state as safetensors: weights, optimiser moments and the step, without pickle."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

_FILE = "training.safetensors"
_MODULE, _OPTIMISER = "module.", "optimiser."


def save(folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write the state of ``module`` and ``optimiser`` after ``step`` steps into ``folder``."""
    tensors = {_MODULE + name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"{_OPTIMISER}{index}.{name}": value.contiguous() for name, value in moments.items()}
    save_file(tensors, folder / _FILE, metadata={"step": str(step)})


def restore(folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> int:
    """Load what ``save`` wrote and return the step; without ``optimiser`` only the weights are read."""
    with safe_open(folder / _FILE, framework="pt") as file:
        names = list(file.keys())
        module.load_state_dict(
            {name.removeprefix(_MODULE): file.get_tensor(name) for name in names if name.startswith(_MODULE)}
        )
        if optimiser is not None:
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for name in names:
                if name.startswith(_OPTIMISER):
                    index, key = name.removeprefix(_OPTIMISER).split(".", 1)
                    moments.setdefault(int(index), {})[key] = file.get_tensor(name)
            optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        return int(file.metadata()["step"])
