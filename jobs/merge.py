"""Merge a low-rank adapter into its base: ``python -m jobs.merge --model DIR --adapter DIR --out DIR``."""

import argparse
import sys
from pathlib import Path

from cellray.errors import CellRayError, one_line
from cellray.targets import reserve
from cellray.train.posttraining.merge import merge


def main(arguments: list[str] | None = None) -> int:
    """Parse, merge; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.merge", description=__doc__)
    parser.add_argument("--model", required=True, help="the base: model folder, or mini-cell-o1")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of a LoRA or DoRA adapter")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    given = parser.parse_args(arguments)
    try:
        reserve(given.out, None, (given.model, given.adapter))
        merge(given.model, given.adapter, given.out)
    except CellRayError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
