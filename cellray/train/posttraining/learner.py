"""GRPO's loop on a worker: weights out, answers in, rewards, a step, again.

Contract: the prompts of a step, the seeds of their answers and the order of both depend on the run's seed and the step
alone, so a run that is resumed asks each prompt as often as an undisturbed one. Checkpoints hold what is trained, the
optimiser, the step (which is the position in the data), the state of the random numbers and all metrics. Every step
compares the log-probabilities that the engine drew from with the policy's own: weights that did not arrive are an error
of that step. It knows puzzles by their reward alone. The arithmetic and what differs from the paper is in ``grpo``.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellray.errors import StaleWeightsError
from cellray.puzzles.answer import official
from cellray.puzzles.puzzle import Puzzle
from cellray.train.checkpoint import restore, save, state_of
from cellray.train.loop import Alone, OnRay
from cellray.train.posttraining.config import GRPOConfig
from cellray.train.posttraining.examples import IGNORED, Example, Packed, packed
from cellray.train.posttraining.grpo import advantages, token_loss
from cellray.train.posttraining.metrics import Metrics
from cellray.train.posttraining.policy import opened
from cellray.train.posttraining.rewards import Reward
from cellray.train.posttraining.rollout import Answer, Wish
from cellray.train.posttraining.writers import Writers
from cellray.train.sharing import whole

_CLIP = 1.0


@dataclass(frozen=True)
class Prompt:
    """Tokens of a puzzle's prompt, and the puzzle."""

    tokens: list[int]
    puzzle: Puzzle


@dataclass(frozen=True)
class GRPOInput:
    """What every worker needs; ``events`` is a folder for TensorBoard."""

    config: GRPOConfig
    prompts: list[Prompt]
    reward: Reward
    actors: list[Any]
    pad: int
    events: Path | None


class Chance(nn.Module):
    """The state of torch's random numbers, as a module so that checkpoints hold it like everything else."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.get_rng_state())

    def keep(self) -> None:
        """Remember the state as it is."""
        self.state.copy_(torch.get_rng_state())


@dataclass(frozen=True)
class Step:
    """A worker's answers in one step, group behind group.

    Attributes
    ----------
    prompts, answers
        One each of an answer.
    rewards
        (prompts, group) float32.
    advantage
        (answers,) float32.
    counted
        Numbers of the answers that teach something.
    """

    prompts: list[np.ndarray]
    answers: list[Answer]
    rewards: Tensor
    advantage: Tensor
    counted: set[int]


@dataclass
class _Fixed:
    """What does not change while a micro-batch is learned from: packed rows, and (tokens,) float32 of each target."""

    rows: Packed
    drawn: Tensor
    weight: Tensor
    advantage: Tensor
    reference: Tensor | None
    before: Tensor


def chosen(given: GRPOInput, step: int) -> list[int]:
    """Return the numbers of the prompts of a step: one epoch's permutation after another."""
    n, size = len(given.prompts), given.config.prompts
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: np.random.default_rng([given.config.seed, epoch]).permutation(n) for epoch in {p // n for p in places}
    }
    return [int(orders[place // n][place % n]) for place in places]


class GRPO:
    """The loop of one worker."""

    def __init__(self, given: GRPOInput, workers: Alone) -> None:
        self.given, self.config, self.workers = given, given.config, workers
        self.policy = opened(self.config, workers)
        self.first = None if self.policy.has_adapter or not self.config.beta else opened(self.config, workers)
        if self.first is not None:
            self.first.requires_grad_(requires_grad=False)
        if self.config.checkpointing:
            self.policy.train()
        self.trained = self.policy.trained()
        self.optimiser = torch.optim.AdamW(
            self.trained.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self.parallel = workers.parallel(self.policy)
        self.writers = Writers(given.actors, self.config, workers)
        self.metrics = Metrics(given.events if workers.rank == 0 else None)
        self.chance = Chance()
        self.kept = {"trained": self.trained, "chance": self.chance}

    def run(self) -> None:
        """Train to the end, from the last checkpoint if there is one."""

        def read(folder: Path) -> int:
            self.metrics.load(folder)
            return restore(folder, self.kept, self.optimiser)

        def write(folder: Path, state: dict[str, Tensor], done: int) -> None:
            save(folder, state, done)
            self.metrics.save(folder)

        for step in range(self.workers.resume(read), self.config.steps):
            torch.manual_seed(hash((self.config.seed, self.workers.rank, step)) & 0x7FFFFFFF)
            values = self.step(step)
            keys = [self.given.prompts[at].puzzle.key for at in chosen(self.given, step)]
            self.metrics.add(step, values, keys)
            if (step + 1) % self.config.save_steps == 0 or step + 1 == self.config.steps:
                self.chance.keep()
                state = state_of(self.kept, self.optimiser, keep=self.workers.rank == 0)
                self.workers.report({"step": step + 1, **values}, partial(write, state=state, done=step + 1))
                del state

    def step(self, step: int) -> dict[str, float]:
        """Take one step; returns what it was like, over all workers."""
        begun = time.perf_counter()
        sync_s = self.writers.send(self.policy, step)
        own = [self.given.prompts[at] for at in chosen(self.given, step)][self.workers.rank :: self.workers.world]
        asked = time.perf_counter()
        seeds = np.random.default_rng([self.config.seed, step, self.workers.rank, 1])
        wishes = [Wish(one.tokens, tuple(seeds.integers(2**31, size=self.config.group).tolist())) for one in own]
        groups = self.writers.ask(wishes)
        written = time.perf_counter()
        batch = self._judged(own, groups)
        facts = self._learn(batch)
        learned = time.perf_counter()
        return self._told(own, batch, facts, (begun, asked, written, learned), sync_s)

    def _judged(self, own: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Step:
        rewards = torch.tensor(
            [[self.given.reward(a.text, p.puzzle) for a in group] for p, group in zip(own, groups, strict=True)]
        )
        flat = [answer for group in groups for answer in group]
        prompts = [np.array(one.tokens, np.int32) for one in own for _ in range(self.config.group)]
        counted = {at for at, one in enumerate(flat) if one.whole or not self.config.overlong_filter}
        return Step(prompts, flat, rewards, advantages(rewards).flatten(), counted)

    def _learn(self, batch: Step) -> dict[str, float]:
        """Take the optimiser's steps; returns means over the tokens that count, of all workers."""
        config, size = self.config, self.config.micro
        micros = [range(at, min(at + size, len(batch.answers))) for at in range(0, len(batch.answers), size)]
        (total,) = self.workers.total([sum(len(batch.answers[at].tokens) for at in batch.counted)])
        fixed = [self._fixed(batch, micro) for micro in micros]
        sums = {"loss": 0.0, "kl": 0.0, "clip_share": 0.0, "gap": 0.0}
        norm = 0.0
        for update in range(config.updates):
            self.optimiser.zero_grad()
            for number, one in enumerate(fixed):
                with nullcontext() if number == len(fixed) - 1 else self.workers.alone(self.parallel):
                    now = self.parallel(one.rows, config.temperature)
                    if update == 0:
                        one.before = now.detach()
                        sums["gap"] += float((one.before - one.drawn).abs() @ one.weight)
                    found = token_loss(
                        now, one.before, one.reference, one.advantage, clip=config.clip, beta=config.beta
                    )
                    (found.loss @ one.weight * (self.workers.world / max(total, 1))).backward()
                parts = {"loss": found.loss.detach(), "kl": found.divergence, "clip_share": found.clipped.float()}
                for name, values in parts.items():
                    sums[name] += float(values @ one.weight) / config.updates
            if update == 0:
                self._check(self.workers.total([sums["gap"]])[0] / max(total, 1))
            norm = float(whole(nn.utils.clip_grad_norm_(self.trained.parameters(), _CLIP)))
            self.optimiser.step()
        means = [value / max(total, 1) for value in self.workers.total(list(sums.values()))]
        return {**dict(zip(sums, means, strict=True)), "gradient_norm": norm}

    def _check(self, gap: float) -> None:
        """Refuse answers that the policy, as it is, would not give with the engine's probabilities."""
        if gap > self.config.allowed_gap:
            msg = (
                f"rollouts differ from the policy by {gap:.3g} in log-probability (allowed: {self.config.allowed_gap}):"
                " the engine does not hold its weights"
            )
            raise StaleWeightsError(msg)

    @torch.no_grad()
    def _fixed(self, batch: Step, micro: range) -> "_Fixed":
        rows = packed([Example(batch.prompts[at], batch.answers[at].tokens) for at in micro], self.given.pad)
        owner = rows.example[rows.target != IGNORED]
        drawn = torch.empty(len(owner))
        for number, at in enumerate(micro):
            drawn[owner == number] = torch.tensor(batch.answers[at].log_probabilities)
        weight = torch.tensor([float(at in batch.counted) for at in micro])[owner]
        advantage = batch.advantage[list(micro)][owner]
        reference = None
        if self.config.beta:
            with self.policy.reference() if self.first is None else nullcontext():
                reference = (self.first or self.policy)(rows, self.config.temperature)
        device = self.workers.device
        return _Fixed(rows, drawn.to(device), weight.to(device), advantage.to(device), reference, drawn)

    def _told(
        self, own: Sequence[Prompt], batch: Step, facts: dict[str, float], when: tuple[float, ...], sync_s: float
    ) -> dict[str, float]:
        begun, asked, written, learned = when
        tokens = sum(len(one.tokens) for one in batch.answers)
        later = [answer for at, answer in enumerate(batch.answers) if at % self.config.group]
        prompts = sum(len(one.tokens) for one in own) * (self.config.group - 1)
        spread = batch.rewards.std(1)
        sums = self.workers.total(
            [
                len(batch.answers),
                float(batch.rewards.sum()),
                sum(official(one.text).valid for one in batch.answers),
                tokens,
                sum(not one.whole for one in batch.answers),
                len(spread),
                float((spread == 0).sum()),
                sum(one.cached for one in later),
                prompts,
            ]
        )
        n, reward, valid, written_tokens, cut, groups, flat, cached, asked_tokens = sums
        seconds = learned - begun
        return {
            "reward": reward / n,
            "format": valid / n,
            "length": written_tokens / n,
            "cut": cut / n,
            "equal_groups": flat / groups,
            "prefix_cached": cached / max(asked_tokens, 1),
            **facts,
            "tokens_per_s": written_tokens / max(written - asked, 1e-9),
            "sync_s": sync_s,
            "rollout_s": written - asked,
            "train_s": learned - written,
            "trainer_idle": (written - begun) / seconds,
            "rollout_idle": 1 - (written - asked) / seconds,
        }


def grpo_worker(loop: dict[str, GRPOInput]) -> None:
    """Run the loop of ``loop["given"]`` on one Ray Train worker."""
    GRPO(loop["given"], OnRay()).run()
