"""Supervised fine-tuning: what was said, learned token by token.

Contract: loss is the mean over the completion tokens of a step's examples, those of all workers and accumulated batches
together, so that neither their number nor packing changes it. Which examples a step has depends on the seed and the
step alone. It knows nothing of puzzles: whoever has dialogues may use it.

Deviations from Cell-o1 (arXiv 2506.02911) and its script:

1. Tokens are weighted alike over the whole step; the trainer of the release averages within each device's batch.
2. Examples that do not fit are left out and counted, not cut at the front.
3. No padding between examples (``packed``); the release pads on the left.
4. The best weights by validation loss are kept where a share is held out; the release keeps every epoch's.
5. Gradients are clipped to norm 1, and the learning rate falls linearly: the defaults of the release's trainer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellray.train.loop import Alone, OnRay, Plan, fit
from cellray.train.posttraining.config import SFTConfig
from cellray.train.posttraining.examples import IGNORED, Example, Packed, packed
from cellray.train.posttraining.policy import Policy, Trained, opened


@dataclass(frozen=True)
class SFTInput:
    """What every worker needs; ``pad`` is the token behind the last example of a row."""

    config: SFTConfig
    training: list[Example]
    validation: list[Example]
    pad: int


@dataclass(frozen=True)
class _Part:
    """A worker's share of a step's examples, and what its summed loss is multiplied by."""

    rows: Packed
    scale: float


class Learner(nn.Module):
    """The policy and its loss."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: _Part) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and it again by name."""
        loss = -self.policy(batch.rows).sum() * batch.scale
        return loss, {"loss": loss.detach()}


class Segment(Sequence[_Part]):
    """A worker's batches between two checkpoints, packed when they are asked for."""

    def __init__(self, given: SFTInput, number: int, rank: int, world: int) -> None:
        self._given, self._rank, self._world = given, rank, world
        per_epoch, total, length = schedule(given, world)
        self._per_epoch = per_epoch
        self._steps = range(number * length, min(total, (number + 1) * length))

    def __len__(self) -> int:
        return len(self._steps) * self._given.config.accumulate

    def __getitem__(self, at: Any) -> Any:
        step, part = divmod(range(len(self))[at], self._given.config.accumulate)
        return self._part(self._steps[step], part)

    def _part(self, step: int, part: int) -> _Part:
        config, pool = self._given.config, self._given.training
        epoch, within = divmod(step, self._per_epoch)
        size = config.batch * config.accumulate * self._world
        # The last step of an epoch is filled up from its start, so that all workers have the same number of batches.
        order = np.resize(np.random.default_rng([config.seed, epoch]).permutation(len(pool)), self._per_epoch * size)
        chosen = [pool[at] for at in order[within * size : (within + 1) * size]]
        own = chosen[(part * self._world + self._rank) * config.batch :][: config.batch]
        # The mean over workers, which is what gradients become, is then the mean over all tokens of the step.
        return _Part(packed(own, self._given.pad), self._world / sum(len(one.said) for one in chosen))


def schedule(given: SFTInput, world: int) -> tuple[int, int, int]:
    """Return steps of an epoch, steps in all, and steps between two checkpoints."""
    config = given.config
    per_epoch = -(-len(given.training) // (config.batch * config.accumulate * world))
    total = per_epoch * config.epochs
    return per_epoch, total, min(config.save_steps or per_epoch, total)


def linear(share: float, warm_up: float) -> float:
    """Linear warm-up over a share of the steps, then linearly to zero; a ``Plan.schedule``."""
    return share / warm_up + 1e-3 if share < warm_up else (1 - share) / (1 - warm_up)


def train(given: SFTInput, workers: Alone | None = None) -> tuple[Policy, Trained, dict[str, float]]:
    """Fine-tune; returns the policy, what was trained of it, and what the loop says of itself."""
    workers = workers or Alone()
    config = given.config
    policy = opened(config, workers)
    trained = policy.trained()
    _, total, length = schedule(given, workers.world)
    facts = fit(
        Learner(policy),
        trained,
        torch.optim.AdamW(trained.parameters(), config.learning_rate, weight_decay=config.weight_decay),
        lambda *where: Segment(given, *where),
        Plan(-(-total // length), config.seed, partial(linear, warm_up=config.warm_up), accumulate=config.accumulate),
        validate=(lambda: -held_out_loss(policy, given)) if given.validation else None,
        workers=workers,
    )
    return policy, trained, facts


@torch.no_grad()
def held_out_loss(policy: Policy, given: SFTInput) -> float:
    """Return the mean loss of a completion token of the validation examples."""
    size, total, tokens = given.config.batch, 0.0, 0
    for at in range(0, len(given.validation), size):
        rows = packed(given.validation[at : at + size], given.pad)
        total -= float(policy(rows).sum())
        tokens += int((rows.target != IGNORED).sum())
    return total / tokens


def split(found: list[Example], config: SFTConfig) -> tuple[list[Example], list[Example]]:
    """Return training and validation examples; at least one of them trains."""
    order = np.random.default_rng([config.seed, 1]).permutation(len(found))
    held = min(round(config.validation * len(found)), len(found) - 1)
    return [found[at] for at in order[held:]], [found[at] for at in order[:held]]


def sft_worker(loop: dict[str, SFTInput]) -> None:
    """Run the loop of ``loop["given"]`` on one Ray Train worker."""
    train(loop["given"], OnRay())
