"""Whether post-training does what it says: ``python -m jobs.bench.grpo [--puzzles T --held-out E --model M] [--json]``.

``logprob_gap``, ``logprob_gap_stale``
    Largest difference of log-probabilities between trainer and engine after the weights were sent, float32, all weights
    and an adapter; and the smaller of both when the trainer has gone one step on since.
``dp_loss_gap``
    Difference of the loss of two data-parallel workers to that of one on the same batches, after two steps.
``toy_start``, ``toy_reward``
    Mean reward of the first and the last five steps on a task with a known optimum (``jobs.bench.toy``).
``prefix_cached``, ``trainer_idle``, ``rollout_idle``
    Share of the prompt that the later answers of a group took from the prefix cache, puzzles of 8 cells; shares of a
    step that either side waits for the other. They take turns.
``sft_batch_acc``, ``grpo_batch_delta``
    With ``--puzzles``, ``--held-out`` and ``--model`` only: see ``jobs.bench.learning``, whose study is run; the delta
    is the mean over its runs.

Goals: at most 1e-4 and at least 100 times that; 1e-5; from below 0.5 to above 0.9; 0.9; 0.55.
"""

import argparse
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cellray.cluster import ray_session
from cellray.puzzles.puzzle import Puzzle
from cellray.report.curves import curve
from cellray.train.loop import Alone
from cellray.train.posttraining.config import Adapter, GRPOConfig, SFTConfig
from cellray.train.posttraining.examples import Example, dialogue, examples, packed, prompt_tokens
from cellray.train.posttraining.learner import GRPO, GRPOInput, Prompt
from cellray.train.posttraining.policy import Policy, open_tokenizer
from cellray.train.posttraining.rollout import Wish
from cellray.train.posttraining.sft import SFTInput, sft_worker
from cellray.train.posttraining.writers import Writers, start_rollouts
from jobs.bench import learning, toy
from jobs.bench.puzzles import made_up
from jobs.numbers import count

_MODEL = "mini-cell-o1"
_CELLS = 8
_ENDS = 5


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.grpo", description=__doc__)
    learning.add_arguments(parser, required=False)
    parser.add_argument("--toy-steps", type=count, default=100)
    parser.add_argument("--picture", type=Path, default=None, help="SVG file that receives the toy's rewards")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    with ray_session(cpus=4), tempfile.TemporaryDirectory() as folder:
        found = {**synced(), **data_parallel(Path(folder)), **taught(Path(folder), given.toy_steps, given.picture)}
        if given.puzzles is not None:
            found |= learned(learning.study(given))
    text = (
        json.dumps(found, indent=1) if given.json else "\n".join(f"{key} {value:.3g}" for key, value in found.items())
    )
    sys.stdout.write(f"{text}\n")
    return 0


def puzzles(n: int, cells: int) -> list[Puzzle]:
    """Return puzzles of the bundled model's own genes and types, with answers at random."""
    rng = np.random.default_rng(0)
    found = [one for one in made_up(20 * n) if len(one) == cells][:n]
    answers = [tuple(str(name) for name in rng.permutation(one.candidates)) for one in found]
    return [Puzzle(one.context, one.cells, one.candidates, answer) for one, answer in zip(found, answers, strict=True)]


def any_reward(text: str, puzzle: Puzzle) -> float:
    """Return 0 or 1 by the hash of the text: groups differ, so that every step moves the weights."""
    del puzzle
    return float(zlib.crc32(text.encode()) % 2)


def synced() -> dict[str, float]:
    """Measure whether weights arrive, and what a step costs whom."""
    gaps, stale = [], []
    facts: dict[str, float] = {}
    asked = puzzles(8, _CELLS)
    tokenizer = open_tokenizer(_MODEL)
    for adapter in (None, Adapter(rank=8, alpha=16)):
        config = GRPOConfig(
            name="bench",
            model=_MODEL,
            adapter=adapter,
            steps=3,
            prompts=4,
            max_prompt=1500,
            max_tokens=60,
            learning_rate=1e-3,
            placement="appended",
            save_steps=3,
            cache_bytes=128 << 20,
        )
        (actor,) = start_rollouts(config, block=32)
        prompts = [Prompt(prompt_tokens(tokenizer, one.messages()), one) for one in asked]
        loop = GRPO(GRPOInput(config, prompts, any_reward, [actor], tokenizer.pad_token_id, None), Alone())
        loop.run()
        facts = {key: loop.metrics.rows[-1][key] for key in ("prefix_cached", "trainer_idle", "rollout_idle")}
        writers = Writers([actor], config, Alone())
        writers.send(loop.policy, 100)
        wish = Wish(prompts[0].tokens, (1, 2, 3, 4))
        ((*answers,),) = writers.ask([wish])
        gaps.append(gap(loop.policy, wish, answers))
        loop.step(101)  # sends the weights, takes a step, and leaves the engine behind it
        stale.append(gap(loop.policy, wish, answers))
        ray.kill(actor)
    return {"logprob_gap": max(gaps), "logprob_gap_stale": min(stale), **facts}


@torch.no_grad()
def gap(policy: Policy, wish: Wish, answers: list[Any]) -> float:
    """Return the largest difference of log-probabilities of answers."""
    own = [policy(packed([Example(np.array(wish.prompt, np.int32), one.tokens)], 0)).numpy() for one in answers]
    return float(max(abs(mine - one.log_probabilities).max() for mine, one in zip(own, answers, strict=True)))


def data_parallel(folder: Path) -> dict[str, float]:
    """Compare the loss of one worker and of two."""
    tokenizer = open_tokenizer(_MODEL)
    found, _ = examples(tokenizer, [dialogue(one, "list", "appended") for one in puzzles(16, 6)], 4096)
    losses = []
    for workers in (1, 2):
        config = SFTConfig(
            name="dp", model=_MODEL, adapter=None, epochs=2, batch=16 // workers, learning_rate=1e-3, said="list"
        )
        trainer = TorchTrainer(
            sft_worker,
            train_loop_config={"given": SFTInput(config, found, [], tokenizer.pad_token_id)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name=f"dp-{workers}", storage_path=str(folder)),
        )
        metrics = trainer.fit().metrics
        losses.append(float(metrics["loss"]) if metrics else float("nan"))
    return {"dp_loss_gap": abs(losses[0] - losses[1])}


def taught(folder: Path, steps: int, picture: Path | None = None) -> dict[str, float]:
    """Learn the toy."""
    config = toy.toy_config(toy.toy_model(folder), steps)
    (actor,) = start_rollouts(config)
    loop = toy.toy_loop(config, actor)
    loop.run()
    ray.kill(actor)
    rewards = [row["reward"] for row in loop.metrics.rows]
    if picture is not None:
        picture.write_text(str(curve(loop.metrics.rows, "reward")))
    return {"toy_start": float(np.mean(rewards[:_ENDS])), "toy_reward": float(np.mean(rewards[-_ENDS:]))}


def learned(told: dict[str, Any]) -> dict[str, float]:
    """Return the figures of the study."""
    deltas = [one["delta"] for name, one in told.items() if "delta" in one and not name.startswith("control")]
    return {"sft_batch_acc": told["start"]["batch_acc"], "grpo_batch_delta": float(np.mean(deltas))}


if __name__ == "__main__":
    sys.exit(main())
