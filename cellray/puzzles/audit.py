"""What splits of puzzles share: cells, known by their exact gene lists and, where they are kept, by their names.

Contract: counts, and which puzzles of a split hold no cell of the training split, so that scores can be told for clean
puzzles apart. It changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cellray.puzzles.puzzle import Puzzle


def audit(splits: Mapping[str, Sequence[Puzzle]], reference: str = "train") -> dict[str, Any]:
    """Compare every split with ``reference``.

    Returns
    -------
    dict
        For each split: ``puzzles``, ``cells`` (distinct), ``repeats`` (uses of a cell beyond its first); and of each
        but the reference ``shared_cells``, ``shared_donors``, ``clean`` puzzles and ``share_with_training_cell``.
    """
    base = {genes for puzzle in splits.get(reference, ()) for genes in puzzle.cells}
    donors = {_donor(puzzle) for puzzle in splits.get(reference, ())} - {None}
    found: dict[str, Any] = {}
    for name, puzzles in splits.items():
        own = [genes for puzzle in puzzles for genes in puzzle.cells]
        facts: dict[str, Any] = {
            "puzzles": len(puzzles),
            "cells": len(set(own)),
            "repeats": len(own) - len(set(own)),
        }
        if name != reference:
            good = len(clean(puzzles, splits.get(reference, ())))
            facts |= {
                "shared_cells": len(set(own) & base),
                "shared_donors": len(({_donor(puzzle) for puzzle in puzzles} - {None}) & donors),
                "clean": good,
                "share_with_training_cell": 1 - good / len(puzzles) if puzzles else 0.0,
            }
        found[name] = facts
    return found


def clean(puzzles: Sequence[Puzzle], training: Sequence[Puzzle]) -> list[int]:
    """Return the numbers of puzzles without a cell whose gene list is in ``training``."""
    base = {genes for puzzle in training for genes in puzzle.cells}
    return [number for number, puzzle in enumerate(puzzles) if not any(genes in base for genes in puzzle.cells)]


def _donor(puzzle: Puzzle) -> tuple[str, str] | None:
    return (puzzle.dataset, puzzle.group) if puzzle.group else None
