"""Answers of a run beside what needs no language model: one table, all puzzles and clean ones.

Contract: rows are solvers, columns the metrics of ``cellray.puzzles.score``. A run's official numbers come from the
text as the model wrote it, so that repair does not polish them; its ``answered`` row is what CellRay gives.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from cellray import storage
from cellray.errors import InputError, boundary
from cellray.puzzles.answer import written
from cellray.puzzles.audit import clean
from cellray.puzzles.centroid import Profiles
from cellray.puzzles.puzzle import Puzzle
from cellray.puzzles.score import score

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = (
    "puzzles",
    "cell_acc_micro",
    "cell_acc_macro",
    "batch_acc",
    "batch_acc_se",
    "format",
    "uniqueness",
    "permutation",
)


def compared(
    puzzles: Sequence[Puzzle],
    answers: str | None,
    solved: Sequence[Puzzle] | None = None,
    training: Sequence[Puzzle] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of every solver, and of each on clean puzzles if ``training`` is given.

    Raises
    ------
    InputError
        If the answers are not those of the puzzles.
    """
    rng = np.random.default_rng(seed)
    texts: dict[str, list[str]] = {}
    if answers is not None:
        with boundary(InputError, f"answers {answers}", ValueError), storage.open_read(answers) as file:
            rows = pq.read_table(file, columns=["key", "text", "answer"]).to_pylist()
        if [row["key"] for row in rows] != [puzzle.key for puzzle in puzzles[: len(rows)]]:
            msg = f"answers {answers}: not of these puzzles"
            raise InputError(msg)
        puzzles = puzzles[: len(rows)]
        texts["model"] = [row["text"] or "" for row in rows]
        texts["answered"] = [written("", row["answer"] or ()) for row in rows]
    if solved is not None:
        profiles = Profiles.of(solved)
        texts["centroid"] = [written("", profiles.solve(puzzle)) for puzzle in puzzles]
    texts["random"] = [
        written("", [str(name) for name in rng.permutation(puzzle.candidates)[: len(puzzle)]]) for puzzle in puzzles
    ]
    found = {name: score(puzzles, own) for name, own in texts.items()}
    if training is not None:
        good = clean(puzzles, training)
        for name, own in texts.items():
            found[f"{name}, clean"] = score([puzzles[at] for at in good], [own[at] for at in good])
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> "Table":
    """Return a table for a terminal: all puzzles of each solver."""
    from rich.table import Table

    made = Table("solver", *(name.replace("_", " ") for name in _SHOWN))
    for name, parts in found.items():
        values: dict[str, Any] = parts["all"]
        made.add_row(name, *(_text(values.get(key, 0)) for key in _SHOWN))
    return made


def _text(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
