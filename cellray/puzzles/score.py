"""Scores of answers: the official metrics of Cell-o1, and stricter ones beside them.

Contract: a pure function of puzzles and texts. The official ones follow the released evaluation, also where it differs
from the paper:

1. ``cell_acc_micro`` is what the released code reports: right cells over all cells; ``cell_acc_macro`` is the paper's
   formula, the mean over puzzles.
2. ``uniqueness`` divides by the number of answered items; the paper by the number of cells.
3. Items beyond the last cell are ignored, so an answer that is too long can still be exact.

An invalid format counts as nothing right, with all its cells in the denominator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cellray.puzzles.answer import accepted, lenient, official
from cellray.puzzles.puzzle import Puzzle, one_each


@dataclass(frozen=True)
class Scored:
    """One answer: ``right`` cells of ``n``, and what holds for it."""

    n: int
    right: int
    valid: bool
    uniqueness: float
    count_ok: bool
    permutation: bool
    in_vocabulary: float
    lenient_right: int

    @property
    def exact(self) -> bool:
        """Whether every cell is right."""
        return self.right == self.n


def score_answer(puzzle: Puzzle, text: str) -> Scored:
    """Score one answer against ``puzzle.answer``."""
    read, truth = official(text), puzzle.answer
    items = read.items if read.valid else ()
    right = sum(a.lower() == b.lower() for a, b in zip(items, truth, strict=False))
    known = {name.lower() for name in puzzle.candidates}
    used = accepted(text, puzzle) or lenient(text, puzzle.candidates)
    return Scored(
        n=len(truth),
        right=right,
        valid=read.valid,
        uniqueness=len(set(items)) / len(items) if items else 0.0,
        count_ok=len(items) == len(truth),
        permutation=one_each(items, puzzle),
        in_vocabulary=sum(item.lower() in known for item in items) / len(items) if items else 0.0,
        lenient_right=sum(a == b for a, b in zip(used, truth, strict=False)) if len(used) == len(truth) else 0,
    )


def summary(scored: Sequence[Scored]) -> dict[str, float]:
    """Return means over puzzles; ``*_sd`` are sample deviations, ``batch_acc_se`` is sqrt(p (1 - p) / n)."""
    n = len(scored)
    if not n:
        return {"puzzles": 0}
    cells = sum(one.n for one in scored)
    partial = [one.right / one.n if one.n else 0.0 for one in scored]
    uniqueness = [one.uniqueness for one in scored]
    batch = sum(one.exact for one in scored) / n
    return {
        "puzzles": n,
        "cell_acc_micro": sum(one.right for one in scored) / max(cells, 1),
        "cell_acc_macro": sum(partial) / n,
        "cell_acc_sd": _deviation(partial),
        "batch_acc": batch,
        "batch_acc_se": math.sqrt(batch * (1 - batch) / n),
        "format": sum(one.valid for one in scored) / n,
        "uniqueness": sum(uniqueness) / n,
        "uniqueness_sd": _deviation(uniqueness),
        "count_ok": sum(one.count_ok for one in scored) / n,
        "permutation": sum(one.permutation for one in scored) / n,
        "in_vocabulary": sum(one.in_vocabulary for one in scored) / n,
        "lenient_cell_acc": sum(one.lenient_right for one in scored) / max(cells, 1),
    }


def score(puzzles: Sequence[Puzzle], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Score answers; returns the summary of ``all`` puzzles and of those with each number of cells."""
    scored = [score_answer(puzzle, text) for puzzle, text in zip(puzzles, texts, strict=True)]
    found = {"all": summary(scored)}
    for n in sorted({one.n for one in scored}):
        found[str(n)] = summary([one for one in scored if one.n == n])
    return found


def chance(n: int) -> tuple[float, float]:
    """Return what a random permutation of ``n`` gets: share of cells, and of puzzles (1 / n and 1 / n!)."""
    return 1 / n, 1 / math.factorial(n)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else 0.0
