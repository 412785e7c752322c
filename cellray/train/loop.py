"""The training loop of plugins and of scGPT-architecture bases: epochs, validation, early stopping, resume.

Contract: what an epoch does depends on the seed, the epoch and the rank alone, so a run that is resumed after a killed
worker ends with the same weights as an undisturbed one. A loop runs on the workers it is given: ``Alone`` in this
process, ``OnRay`` inside a Ray Train worker, where gradients are averaged over workers and state is checkpointed after
every epoch. It does not know what is trained.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cellray.scratch import Scratch
from cellray.train.checkpoint import restore, save, state_of
from cellray.train.sharing import is_shared, share

_CLIP = 1.0
_FIRST_STEPS = 10
Write = Callable[[Path], None]


class Batches(Protocol):
    """Batches of an epoch, drawn or read as they are asked for."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


class Alone:
    """One worker, in this process, without checkpoints."""

    rank, world = 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def share(self, module: nn.Module, parts: Iterable[nn.Module]) -> None:
        """Make each worker hold a part of ``module``'s weights and not all; see ``cellray.train.sharing``."""
        if self.world > 1:
            share(module, parts, self.world, self.device)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return the module whose forward pass averages gradients over workers."""
        return module

    def alone(self, parallel: nn.Module) -> AbstractContextManager[None]:
        """While inside, backward passes of what ``parallel`` returned leave the other workers out if that saves any.

        With shared weights none does: gradients are added up in parts, and a worker may have no room for the whole.
        """
        return parallel.no_sync() if self.world > 1 and isinstance(parallel, DistributedDataParallel) else nullcontext()

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over workers."""
        return list(values)

    def resume(self, read: Callable[[Path], int]) -> int:
        """Return the step that ``read`` finds in the folder of the latest checkpoint; 0 if there is none."""
        return 0

    def report(self, metrics: dict[str, float], write: Write) -> None:
        """Tell the metrics of an epoch; ``write`` fills the folder of its checkpoint."""


class OnRay(Alone):
    """One of the workers of a Ray Train run."""

    def __init__(self) -> None:
        import ray.train
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return the module whose forward pass averages gradients over workers."""
        from ray.train.torch import prepare_model

        return prepare_model(module, move_to_device=False) if self.world > 1 and not is_shared(module) else module

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over workers, all of which must call."""
        sums = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        if self.world > 1:
            torch.distributed.all_reduce(sums)
        return sums.tolist()

    def resume(self, read: Callable[[Path], int]) -> int:
        """Return the step that ``read`` finds in the folder of the latest checkpoint; 0 if there is none."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            return read(Path(folder))

    def report(self, metrics: dict[str, float], write: Write) -> None:
        """Tell the metrics of an epoch; ``write`` fills the folder of its checkpoint."""
        import ray.train

        with Scratch("checkpoint") as scratch:
            checkpoint = None
            if self.rank == 0:
                write(scratch.path)
                checkpoint = ray.train.Checkpoint.from_directory(str(scratch.path))
            ray.train.report(metrics, checkpoint=checkpoint)


@dataclass(frozen=True)
class Plan:
    """How long and how fast.

    Attributes
    ----------
    epochs
        At most.
    seed
        Of dropout and the like.
    schedule
        Factor of the learning rate after a share (0 to 1) of all steps.
    patience
        Epochs without a better validation score after which training ends; None trains to the end.
    average_decay
        Of the moving average of the weights, which is what is validated and kept; 0: the weights themselves.
    accumulate
        Batches whose gradients are added up for one step.
    """

    epochs: int
    seed: int = 0
    schedule: Callable[[float], float] = field(default=lambda part: 0.5 * (1 + math.cos(math.pi * part)))
    patience: int | None = None
    average_decay: float = 0.0
    accumulate: int = 1


class Course(nn.Module):
    """Best score and its epoch (from 0), as a module so that checkpoints hold it like everything else."""

    best: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("best", torch.tensor([-math.inf, -1.0], dtype=torch.float64))

    def facts(self) -> dict[str, float]:
        """Return ``epoch`` (from 1) and ``score`` of the best weights."""
        return {"epoch": int(self.best[1]) + 1, "score": float(self.best[0])}


def fit(
    module: nn.Module,
    trained: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Callable[[int, int, int], Batches],
    plan: Plan,
    *,
    validate: Callable[[], float] | None = None,
    workers: Alone | None = None,
) -> dict[str, float]:
    """Train, and leave ``trained`` with the weights of the best epoch.

    Parameters
    ----------
    module
        Maps a batch to (loss, named parts).
    trained
        The part of it whose weights change; checkpoints hold no other.
    optimiser
        Of its parameters.
    batches
        Maps (epoch, rank, number of workers) to the batches of a worker, equally many on each.
    plan
        How long and how fast.
    validate
        Score of ``trained``, higher is better; None keeps the last weights.
    workers
        Where the loop runs.

    Returns
    -------
    dict
        ``epoch`` (of the weights kept, from 1), ``score`` and the mean parts of the last epoch's loss.
    """
    workers = workers or Alone()
    best, average, course = copy.deepcopy(trained), copy.deepcopy(trained), Course()
    kept = {"trained": trained, "average": average, "best": best, "course": course}
    first = workers.resume(lambda folder: restore(folder, kept, optimiser))
    rates = [group["lr"] for group in optimiser.param_groups]
    parallel = workers.parallel(module)
    means: dict[str, float] = {}
    for epoch in range(first, plan.epochs):
        if plan.patience is not None and epoch - 1 - int(course.best[1]) >= plan.patience:
            break
        torch.manual_seed(hash((plan.seed, workers.rank, epoch)) & 0x7FFFFFFF)
        todo = batches(epoch, workers.rank, workers.world)
        sums: dict[str, float] = {}
        module.train()
        steps = -(-len(todo) // plan.accumulate)
        for number, batch in enumerate(todo):
            step, part = divmod(number, plan.accumulate)
            last = part == plan.accumulate - 1 or number == len(todo) - 1
            if part == 0:
                factor = plan.schedule((epoch + step / steps) / plan.epochs)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                optimiser.zero_grad()
            with nullcontext() if last else workers.alone(parallel):
                loss, parts = parallel(batch)
                loss.backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            if last:
                nn.utils.clip_grad_norm_(trained.parameters(), _CLIP)
                optimiser.step()
                _follow(average, trained, plan.average_decay, epoch * steps + step)
        module.eval()
        whole = workers.total(list(sums.values()))
        means = {name: value / steps / workers.world for name, value in zip(sums, whole, strict=True)}
        with _weights(trained, average):
            score = validate() if validate is not None else float(epoch)
        score = workers.total([score])[0] / workers.world  # rounding must not make workers disagree
        if score > float(course.best[0]):
            best.load_state_dict(average.state_dict())
            course.best[0], course.best[1] = score, epoch
        state = state_of(kept, optimiser, keep=workers.rank == 0)
        workers.report({"epoch": epoch + 1, "score": score, **means}, partial(save, state=state, step=epoch + 1))
        del state
    trained.load_state_dict(best.state_dict())
    module.eval()
    return {**course.facts(), **means}


def decay_at(decay: float, step: int | torch.Tensor) -> float:
    """Return a moving average's weight against the newest weights: less in the first steps, so that it forgets them."""
    return min(decay, float((step + 1) / (step + _FIRST_STEPS)))


def warm_cosine(part: float, warm_up: float) -> float:
    """Linear warm-up to ``warm_up``, a part of the steps, then a cosine to zero; a ``Plan.schedule``."""
    if part < warm_up:
        return part / warm_up + 1e-3
    return 0.5 * (1 + float(np.cos(np.pi * (part - warm_up) / (1 - warm_up))))


def _follow(average: nn.Module, trained: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights."""
    decay = decay_at(decay, step)
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), trained.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)


@contextmanager
def _weights(trained: nn.Module, other: nn.Module) -> Iterator[None]:
    """While inside, ``trained`` has the weights of ``other``."""
    own = copy.deepcopy(trained.state_dict())
    trained.load_state_dict(other.state_dict())
    yield
    trained.load_state_dict(own)


def shuffled(n: int, size: int, seed: int, epoch: int, rank: int, world: int) -> Iterator[np.ndarray]:
    """Yield the batches (arrays of indices) of one worker: all of 0 to ``n`` shuffled, wrapped to be equally many."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    each = -(-n // (size * world))
    order = np.resize(order, each * size * world) if each * size * world > n and n >= size * world else order
    for number in range(each):
        batch = order[(number * world + rank) * size :][:size]
        yield batch if len(batch) else order[:size]
