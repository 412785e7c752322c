"""Train a CellReasoner: the stages of CRAFT, one after the other: ``python -m jobs.craft --config FILE --out DIR``.

The configuration is ``cellray.train.posttraining.craft.CraftConfig``. Each stage is the fine-tuning of ``jobs.sft`` and
leaves a folder ``DIR/<number>-<stage>``; its ``model`` is a whole model folder for ``cellray reason --model``, which
finds in it how cells were put into sentences. The same command again after a crash goes on: stages that are complete
are not done again, the one under way goes on from its last checkpoint.
"""

import argparse
import json
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

from cellray import storage
from cellray.errors import CellRayError, one_line
from cellray.puzzles.engine import check_model, locate
from cellray.targets import reserve
from cellray.train.posttraining.craft import CraftConfig, lessons
from jobs.sft import fine_tune, run_name, tell
from jobs.training import add_arguments

_DONE = "stage.json"


def main(arguments: list[str] | None = None) -> int:
    """Parse, train; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.craft", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML of the settings")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives a folder a stage")
    parser.add_argument("--json", action="store_true", help="machine-readable result")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    try:
        told = craft(CraftConfig.read(given.config), given)
    except CellRayError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    tell(told, as_json=given.json)
    return 0


def craft(config: CraftConfig, given: argparse.Namespace) -> dict[str, Any]:
    """Run what is left of the stages; returns what to print."""
    check_model(config.model)
    reserve(given.out, [f"{number}-{stage.name}" for number, stage in enumerate(config.stages, 1)], [config.model])
    form = config.sentence_form()
    taught = lessons(config, form)
    model, stages = str(Path(locate(config.model)).resolve()), {}
    for number, (stage, dialogues) in enumerate(zip(config.stages, taught.stages, strict=True), 1):
        folder = (given.out / f"{number}-{stage.name}").resolve()
        settings = config.sft(stage, model)
        content = (json.dumps(one).encode() for one in (form.model_dump(), *map(astuple, dialogues)))
        key = run_name("craft", settings, content)
        done = storage.join(str(folder), _DONE)
        facts = storage.read_json(done) if storage.exists(done) else {}
        if facts.get("key") != key:
            sys.stderr.write(f"stage {number} of {len(config.stages)}, {stage.name}: {len(dialogues):,} examples\n")
            facts = {"key": key, **fine_tune(settings, dialogues, given, folder)}
            form.write(facts["model"])
            storage.put_json(done, facts)
        model = facts["model"]
        stages[stage.name] = {name: value for name, value in facts.items() if name != "key"}
    return {"model": model, "stages": stages, "left_out": dict(taught.left_out)}


if __name__ == "__main__":
    sys.exit(main())
