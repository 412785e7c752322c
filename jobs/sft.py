"""Fine-tune a language model of puzzles on solved ones with Ray Train: ``python -m jobs.sft --config FILE --out DIR``.

The configuration is ``cellray.train.posttraining.config.SFTConfig`` and ``puzzles``, the files of solved puzzles. The
same command again after a crash goes on from the last checkpoint. ``DIR/model`` is a whole model folder for ``--model``
of ``cellray puzzles solve`` and the served app; ``DIR/adapter`` is the adapter alone, where one was trained.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from cellray import storage
from cellray.errors import CellRayError, Terminated, one_line
from cellray.puzzles import records
from cellray.puzzles.engine import check_model, locate
from cellray.targets import reserve
from cellray.train.checkpoint import restore
from cellray.train.loop import Course
from cellray.train.posttraining.config import SFTConfig
from cellray.train.posttraining.examples import Dialogue, dialogue, examples, thinned
from cellray.train.posttraining.policy import Policy, context_of, open_tokenizer
from cellray.train.posttraining.sft import SFTInput, sft_worker, split
from jobs.training import add_arguments, trained

OUTPUTS = ("model", "adapter", "training.json")
"""What ``write`` leaves in the output folder."""


class SFTJob(SFTConfig):
    """The configuration file."""

    puzzles: Annotated[tuple[str, ...], Field(min_length=1, description="files of solved puzzles, or s3://")]


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, merge; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.sft", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML of the settings")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives model and adapter")
    parser.add_argument("--json", action="store_true", help="machine-readable result")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    try:
        config = SFTJob.read(given.config)
        check_model(config.model)
        reserve(given.out, OUTPUTS, (config.model, *config.puzzles))
        solved = [puzzle for uri in config.puzzles for puzzle in records.read(uri)]
        rng = np.random.default_rng([config.seed, 2])
        solved = [thinned(one, config.most_dropped, rng) for one in solved * config.variants]
        told = fine_tune(config, [dialogue(one, config.said, config.placement) for one in solved], given, given.out)
    except (CellRayError, Terminated) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    tell(told, as_json=given.json)
    return 0


def fine_tune(config: SFTConfig, dialogues: Sequence[Dialogue], given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Train on the cluster and write ``out``; returns what to print.

    Parameters
    ----------
    config
        How.
    dialogues
        What is to be learned.
    given
        The options of ``add_arguments``.
    out
        Receives ``model``, ``adapter`` (where one was trained) and ``training.json``.
    """
    tokenizer = open_tokenizer(config.model)
    found, too_long = examples(tokenizer, dialogues, config.max_length or context_of(config.model))
    training, validation = split(found, config)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    start = SFTInput(config, training, validation, pad)
    name = run_name("sft", config, (part.tobytes() for one in found for part in (one.prompt, one.said)))
    with trained(sft_worker, start, name, given) as folder:
        policy, course = Policy(config), Course()
        restore(folder, {"best": policy.trained(), "course": course})
    facts = {
        "examples": len(training),
        "validation": len(validation),
        "too_long": too_long,
        "model": str(out / "model"),
    }
    if validation:
        facts |= {"validation_loss": -course.facts()["score"]}
    write(policy, tokenizer, out, config, facts)
    return facts


def write(policy: Policy, tokenizer: Any, out: Path, config: Any, facts: dict[str, Any]) -> None:
    """Write what was trained: ``adapter``, ``model``, and last ``training.json``, the settings and ``facts``."""
    if policy.has_adapter:
        policy.save_adapter(out / "adapter")
    policy.save_model(out / "model", tokenizer)
    storage.put_json(str(out / "training.json"), {"config": config.model_dump(mode="json"), **facts})


def run_name(kind: str, config: Any, content: Iterable[bytes]) -> str:
    """Name a run by everything that it depends on, so that only the same one is resumed."""
    told = json.dumps([config.model_dump(mode="json"), storage.content_hash(locate(config.model))])
    digest = hashlib.sha256(told.encode())
    for part in content:
        digest.update(hashlib.sha256(part).digest())
    return f"{kind}-{config.name}-{digest.hexdigest()[:12]}"


def tell(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print the result."""
    text = json.dumps(facts, indent=1) if as_json else "\n".join(f"{key}: {value}" for key, value in facts.items())
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
