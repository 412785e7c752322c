"""What a model said, read three ways: as the official evaluation does, leniently, and as what may be used.

Contract: ``official`` decides the published numbers and nothing else does. ``lenient`` finds an answer in the malformed
ways that models have. ``accepted`` is what CellRay acts on: a permutation of the offered candidates in their own
spelling, or None; free text never gets further.

Source: the released evaluation (ncbi-nlp/cell-o1, ``scripts/eval.py``), described in words and written anew.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cellray.puzzles.puzzle import SEPARATOR, Puzzle, one_each

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORMAT = re.compile(r"<think>.*?</think>\n<answer>.*?</answer>", re.DOTALL)
_BLOCK = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_NUMBERED = re.compile(r"^\W*(?:cell\s*)?\d+\s*(?:[:.)=]|->|→|is)+\s*", re.IGNORECASE)
_BETWEEN = re.compile(r"[\s_\-‐‑–]+")


@dataclass(frozen=True)
class Official:
    """The official reading: whether the format is valid, and the items as they stand."""

    valid: bool
    items: tuple[str, ...]


def official(text: str) -> Official:
    """Read an answer as the official evaluation does.

    The items are those of the first line with ``<answer>``, else of the first line with ``|``. The format is valid if
    each tag is there once, the two blocks make up the whole text with one line break between, and the items hold a
    ``|``. Number, duplicates and vocabulary of the items do not matter to it.
    """
    lines = text.split("\n")
    found = next((line.split("<answer>", 1)[1].strip() for line in lines if "<answer>" in line), None)
    if found is None:
        found = next((line for line in lines if "|" in line), "")
    found = found.removesuffix("</answer>")
    valid = all(text.count(tag) == 1 for tag in TAGS) and _FORMAT.fullmatch(text) is not None and "|" in found
    return Official(valid, tuple(item.strip() for item in found.split("|") if item.strip()))


def lenient(text: str, candidates: Sequence[str]) -> tuple[str, ...]:
    """Return the candidates that the last answer of ``text`` names, in its order; what is no candidate is left out.

    Answers may run over several lines, be numbered or bulleted, be separated by ``|``, lines, semicolons or commas, and
    differ from the candidates in case, spaces, ``_`` and ``-``.
    """
    blocks = _BLOCK.findall(text)
    body = (blocks[-1] if blocks else text.rsplit("</think>", 1)[-1]).strip()
    # Of candidates that differ in spaces or dashes alone, each is known by its own spelling.
    spelling = {fold(name): name for name in candidates} | {name: name for name in candidates}
    best: tuple[str, ...] = ()
    for separator in ("|", "\n", ";", ","):
        pieces = [_NUMBERED.sub("", piece.strip()).strip(" .*\"'`") for piece in body.split(separator)]
        known = (spelling.get(piece) or spelling.get(fold(piece)) for piece in pieces)
        named = tuple(name for name in known if name is not None)
        if len(named) > len(best):
            best = named
    return best


def accepted(text: str, puzzle: Puzzle) -> tuple[str, ...] | None:
    """Return the answer if it gives every cell one offered candidate of its own, else None."""
    items = lenient(text, puzzle.candidates)
    return items if one_each(items, puzzle) else None


def reasoning(text: str) -> str:
    """Return what stands before the answer, without tags."""
    before = text.split("<answer>", 1)[0]
    for tag in TAGS:
        before = before.replace(tag, "")
    return before.strip()


def written(thoughts: str, items: Sequence[str]) -> str:
    """Return an answer in the official format."""
    return f"<think>{thoughts}</think>\n<answer>{SEPARATOR.join(items)}</answer>"


def solution(puzzle: Puzzle) -> str:
    """Return the true answer of a puzzle behind a line a cell: what small models learn to say."""
    return written("\n".join(f"Cell {number}: {label}" for number, label in enumerate(puzzle.answer, 1)), puzzle.answer)


def fold(name: str) -> str:
    """Return a name without case and without the difference of spaces, ``_`` and ``-``."""
    return _BETWEEN.sub(" ", name).strip().casefold()
