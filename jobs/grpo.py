"""Post-train a language model of puzzles with GRPO: ``python -m jobs.grpo --config FILE --out DIR``.

The configuration is ``cellray.train.posttraining.config.GRPOConfig`` and ``puzzles``, files of puzzles with answers.
Ray Train workers hold the policy, vLLM engines in actors of their own write the answers; on a cluster with GPUs each
takes one. The same command again after a crash goes on from the last checkpoint. ``DIR`` receives ``model`` (and
``adapter``, where one was trained), ``metrics.parquet`` and ``report.html``, the curves of the run; events for
TensorBoard lie beside the checkpoints.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import ray
from pydantic import Field

from cellray import storage
from cellray.cluster import Resources, ray_session
from cellray.errors import CellRayError, InputError, SettingError, Terminated, one_line
from cellray.puzzles import records
from cellray.puzzles.engine import check_model
from cellray.puzzles.puzzle import Puzzle
from cellray.report.curves import write_curves
from cellray.targets import reserve
from cellray.train.checkpoint import restore
from cellray.train.posttraining.config import GRPOConfig
from cellray.train.posttraining.examples import prompt_tokens
from cellray.train.posttraining.learner import GRPOInput, Prompt, grpo_worker
from cellray.train.posttraining.metrics import FILE
from cellray.train.posttraining.policy import Policy, context_of, open_tokenizer
from cellray.train.posttraining.rewards import REWARDS, Reward
from cellray.train.posttraining.writers import start_rollouts
from jobs.sft import OUTPUTS, run_name, tell, write
from jobs.training import add_arguments, trained

REPORT = "report.html"


class GRPOJob(GRPOConfig):
    """The configuration file."""

    puzzles: Annotated[tuple[str, ...], Field(min_length=1, description="files of puzzles with answers, or s3://")]


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.grpo", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML of the settings")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the model and the curves")
    parser.add_argument("--json", action="store_true", help="machine-readable result")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    try:
        config = GRPOJob.read(given.config)
        check_model(config.model)
        reserve(given.out, (*OUTPUTS, FILE, REPORT), (config.model, *config.puzzles))
        puzzles = [puzzle for uri in config.puzzles for puzzle in records.read(uri)]
        facts = reinforce(config, puzzles, REWARDS[config.reward], given, given.out)
    except (CellRayError, Terminated) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    tell(facts, as_json=given.json)
    return 0


def reinforce(
    config: GRPOConfig, puzzles: Sequence[Puzzle], reward: Reward, given: argparse.Namespace, out: Path
) -> dict[str, Any]:
    """Train on the cluster and write ``out``; returns what to print.

    Raises
    ------
    InputError
        If a puzzle has no answer, or none fits.
    SettingError
        If the cluster has fewer GPUs than are asked for, or prompts cannot be shared evenly.
    """
    tokenizer = open_tokenizer(config.model)
    prompts, too_long = askable(config, tokenizer, puzzles)
    if config.prompts % given.workers:
        msg = f"prompts: {config.prompts} a step cannot be shared by {given.workers} workers; take a multiple"
        raise SettingError(msg)
    name = run_name("grpo", config, (one.puzzle.key.encode() for one in prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with ray_session(given.address) as resources:
        gpus = checked_gpus(config, given.workers, resources)
        given.threads = given.threads or max(1, (resources.cpus - config.rollouts) // given.workers)
        actors = start_rollouts(config, gpus)
        start = GRPOInput(config, prompts, reward, actors, pad, given.runs.resolve() / name / "events")
        try:
            with trained(grpo_worker, start, name, given) as folder:
                policy = Policy(config)
                restore(folder, {"trained": policy.trained()})
                rows = pq.read_table(folder / FILE)
        finally:
            for actor in actors:
                ray.kill(actor)
    out.mkdir(parents=True, exist_ok=True)
    with storage.writing(str(out / FILE)) as path:
        pq.write_table(rows, path, compression="zstd")
    write_curves(str(out / REPORT), f"GRPO {config.name}", rows.to_pylist())
    last = rows.to_pylist()[-max(1, len(rows) // 10) :]
    facts = {
        "steps": len(rows),
        "prompts": len(prompts),
        "too_long": too_long,
        "model": str(out / "model"),
        **{key: sum(row[key] for row in last) / len(last) for key in ("reward", "format", "gap", "prefix_cached")},
    }
    write(policy, tokenizer, out, config, facts)
    return facts


def askable(config: GRPOConfig, tokenizer: Any, puzzles: Sequence[Puzzle]) -> tuple[list[Prompt], int]:
    """Return the prompts that fit, and how many puzzles do not."""
    missing = next((puzzle for puzzle in puzzles if len(puzzle.answer) != len(puzzle)), None)
    if missing is not None or not puzzles:
        what = f"puzzle {missing.key} has no answer for each cell" if missing else "there are no puzzles"
        msg = f"{what}; rewards need records with gold answers"
        raise InputError(msg)
    longest = min(config.max_prompt, context_of(config.model) - 1)
    found = [Prompt(prompt_tokens(tokenizer, one.messages(config.placement)), one) for one in puzzles]
    kept = [one for one in found if len(one.tokens) <= longest]
    if not kept:
        msg = (
            f"all {len(found)} prompts are longer than {longest} tokens; give fewer cells or genes, or raise max_prompt"
        )
        raise InputError(msg)
    return kept, len(found) - len(kept)


def checked_gpus(config: GRPOConfig, workers: int, resources: Resources) -> int:
    """Return the GPUs of the cluster; workers and engines must have one each, or there are none."""
    needed = workers + config.rollouts * config.tensor_parallel
    if 0 < resources.gpus < needed:
        msg = f"{workers} workers and {config.rollouts} engines take {needed} GPUs, the cluster has {resources.gpus}"
        raise SettingError(msg)
    return resources.gpus


if __name__ == "__main__":
    sys.exit(main())
