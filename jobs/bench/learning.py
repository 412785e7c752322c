"""What GRPO adds to a fine-tuned model of puzzles: ``python -m jobs.bench.learning --puzzles T --held-out E``.

``T`` and ``E`` are folders of ``cellray puzzles build`` with ``--held-out`` 0.1 and 0.05. ``T/validation.parquet``, of
cells that ``--model`` was not trained on, is what GRPO and its control learn from; ``E/validation.parquet`` is for
tuning (``--tune``) and ``E/test.parquet`` for the report. For every seed and both rewards: GRPO, and beside it the same
model fine-tuned on the same puzzles' answers for as many seconds; judged by the greedy, free answers to the same
held-out puzzles, as paired differences to the model they began with. Their standard error is over puzzles, which share
cells, so it is too small.

One process holds the policy, one actor the engine; nothing is resumed.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cellray.cluster import ray_session
from cellray.puzzles import records
from cellray.puzzles.answer import written
from cellray.puzzles.centroid import Profiles
from cellray.puzzles.puzzle import Puzzle
from cellray.puzzles.score import score_answer, summary
from cellray.report.curves import curve, write_curves
from cellray.train.loop import Alone
from cellray.train.posttraining.config import GRPOConfig, SFTConfig, Training
from cellray.train.posttraining.examples import dialogue, examples
from cellray.train.posttraining.learner import GRPO, GRPOInput
from cellray.train.posttraining.policy import Policy, context_of, open_tokenizer
from cellray.train.posttraining.rewards import REWARDS
from cellray.train.posttraining.rollout import Wish
from cellray.train.posttraining.sft import SFTInput, train
from cellray.train.posttraining.writers import start_rollouts, weights_of
from jobs.grpo import askable
from jobs.numbers import count, positive

_TOKENS = 120
_SHOWN = ("cell_acc_micro", "batch_acc", "batch_acc_se", "format", "uniqueness")
_PILOT_STEPS = 24
_BATCH = 8


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.learning", description=__doc__)
    add_arguments(parser, required=True)
    given = parser.parse_args(arguments)
    with ray_session(cpus=3):
        found = study(given)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the options of ``study``."""
    parser.add_argument("--puzzles", type=Path, required=required, help="folder T")
    parser.add_argument("--held-out", type=Path, required=required, help="folder E")
    parser.add_argument("--model", required=required, help="the model to start from: a folder, or mini-cell-o1")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/learning"),
        help="results.json; a page of curves and a picture of rewards a run",
    )
    parser.add_argument("--steps", type=count, default=30)
    parser.add_argument("--seeds", type=count, default=2)
    parser.add_argument("--learning-rate", type=positive, default=1e-4)
    parser.add_argument("--control-learning-rate", type=positive, default=3e-4)
    parser.add_argument("--tune", action="store_true", help="judge on the puzzles for tuning, one seed")
    parser.add_argument("--rewards", nargs="+", choices=tuple(REWARDS), default=list(REWARDS))


def study(given: argparse.Namespace) -> dict[str, Any]:
    """Run everything; results are written as they come."""
    given.out.mkdir(parents=True, exist_ok=True)
    judged = records.read(str(given.held_out / ("validation.parquet" if given.tune else "test.parquet")))
    learned = records.read(str(given.puzzles / "validation.parquet"))
    config = GRPOConfig(
        name="learning",
        model=given.model,
        adapter=None,
        steps=given.steps,
        prompts=16,
        micro=40,
        max_prompt=900,
        max_tokens=_TOKENS,
        learning_rate=given.learning_rate,
        placement="appended",
        save_steps=given.steps,
        cache_bytes=256 << 20,
    )
    (actor,) = start_rollouts(config)
    judge = Judge(actor, config, judged)
    start = judge.exact(Policy(config), "start")
    profiles = Profiles.of(records.read(str(given.puzzles / "train.parquet")))
    judge.told["centroid"] = _summary(judged, [written("", profiles.solve(one)) for one in judged])
    for seed in range(1 if given.tune else given.seeds):
        for reward in given.rewards:
            name = f"{reward}, seed {seed}"
            one = config.model_copy(update={"seed": seed, "reward": reward})
            policy, seconds = reinforced(one, learned, actor, given.out / f"{reward}-{seed}.html")
            judge.compare(name, judge.exact(policy, name), start, seconds)
            _write(given.out, judge)
        if not given.tune:
            name = f"control, seed {seed}"
            policy, seconds = controlled(config, learned, seed, seconds, given.control_learning_rate)
            judge.compare(name, judge.exact(policy, name), start, seconds)
            _write(given.out, judge)
    ray.kill(actor)
    return judge.told


class Judge:
    """Greedy answers of policies to held-out puzzles, from one engine; ``told`` collects what they scored."""

    def __init__(self, actor: Any, config: Training, puzzles: Sequence[Puzzle]) -> None:
        self._actor, self._puzzles = actor, puzzles
        prompts, _ = askable(config, open_tokenizer(config.model), puzzles)  # type: ignore[arg-type]
        self._wishes = [Wish(one.tokens, (0,)) for one in prompts]
        self._version = 1_000_000
        self.told: dict[str, Any] = {}

    def exact(self, policy: Policy, name: str) -> np.ndarray:
        """Return whether each puzzle is solved, and note the summary under ``name``."""
        self._version += 1
        ray.get(self._actor.load.remote(weights_of(policy, self._version)))
        groups = ray.get(self._actor.write.remote(self._wishes, self._version, 0.0, _TOKENS))
        texts = [group[0].text for group in groups]
        self.told[name] = _summary(self._puzzles, texts)
        return np.array([score_answer(one, text).exact for one, text in zip(self._puzzles, texts, strict=True)], float)

    def compare(self, name: str, found: np.ndarray, start: np.ndarray, seconds: float) -> None:
        """Note the paired difference of batch accuracy to the start."""
        change = found - start
        error = float(change.std(ddof=1) / np.sqrt(len(change)))
        self.told[name] |= {"delta": float(change.mean()), "delta_se": error, "seconds": seconds}


def reinforced(config: GRPOConfig, puzzles: Sequence[Puzzle], actor: Any, page: Path) -> tuple[Policy, float]:
    """Train with GRPO; returns the policy and the seconds of its steps."""
    tokenizer = open_tokenizer(config.model)
    prompts, _ = askable(config, tokenizer, puzzles)
    loop = GRPO(GRPOInput(config, prompts, REWARDS[config.reward], [actor], tokenizer.pad_token_id, None), Alone())
    begun = time.perf_counter()
    loop.run()
    seconds = time.perf_counter() - begun
    write_curves(str(page), f"GRPO, {config.reward} reward, seed {config.seed}", loop.metrics.rows)
    page.with_suffix(".svg").write_text(str(curve(loop.metrics.rows, "reward")))
    return loop.policy, seconds


def controlled(
    config: GRPOConfig, puzzles: Sequence[Puzzle], seed: int, seconds: float, rate: float
) -> tuple[Policy, float]:
    """Fine-tune for about ``seconds``, timed by a pilot of a few steps; returns the policy and the true seconds."""
    tokenizer = open_tokenizer(config.model)
    dialogues = [dialogue(one, "list", config.placement) for one in puzzles]
    found, _ = examples(tokenizer, dialogues, context_of(config.model))

    def fine_tuned(steps: int) -> tuple[Policy, float]:
        epochs = -(-steps * _BATCH // len(found))
        told = SFTConfig(
            name="control",
            model=config.model,
            adapter=None,
            seed=seed,
            said="list",
            epochs=epochs,
            batch=_BATCH,
            learning_rate=rate,
            warm_up=0.05,
        )
        part = found[: max(_BATCH, steps * _BATCH // epochs)]
        begun = time.perf_counter()
        policy, _, _ = train(SFTInput(told, part, [], tokenizer.pad_token_id))
        return policy, time.perf_counter() - begun

    _, pilot = fine_tuned(_PILOT_STEPS)
    return fine_tuned(max(1, round(seconds / pilot * _PILOT_STEPS)))


def _summary(puzzles: Sequence[Puzzle], texts: Sequence[str]) -> dict[str, float]:
    found = summary([score_answer(one, text) for one, text in zip(puzzles, texts, strict=True)])
    return {key: found[key] for key in ("puzzles", *_SHOWN)}


def _write(out: Path, judge: Judge) -> None:
    (out / "results.json").write_text(json.dumps(judge.told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
