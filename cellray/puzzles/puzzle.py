"""A puzzle and its prompt: N cells by their top genes, a context, candidates of which each belongs to one cell.

Contract: ``Puzzle.user`` is byte for byte what the records of ``ncbi/CellPuzzles`` hold, and ``Puzzle.of_prompt`` reads
it back. Names and contexts that come from data sets are cleaned where they are read (``clean``): they are data, and no
line break or long text of theirs gets into a prompt. What a model answers is read by ``cellray.puzzles.answer``.

Source: Cell-o1 (arXiv 2506.02911), Table 1; the separator is that of the released records.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from cellray.errors import PuzzleError

SEPARATOR = " | "
NONE = "none of these"
"""A candidate that any number of cells may get, where it is offered."""
SYSTEM = (
    "You are an expert assistant specialized in cell type annotation. You will be given a batch of N cells from the "
    "same donor, where each cell represents a unique cell type. For each cell, the top expressed genes are provided in "
    "descending order of expression. Using both the gene expression data and donor information, determine the correct "
    "cell type for each cell. You will also receive a list of N candidate cell types, and each candidate must be "
    "assigned to exactly one cell. Ensure that you consider all cells and candidate types together, rather than "
    "annotating each cell individually. Include your detailed reasoning within <think> and </think> tags, and provide "
    "your final answer within <answer> and </answer> tags. The final answer should be a single string listing the "
    f"assigned cell types in order, separated by '{SEPARATOR}'."
)
Placement = Literal["appended", "spaced", "system"]
"""Where the instruction stands: behind the puzzle on a line of its own (the paper's evaluation), behind it after a
space (its GRPO), or in a system message (its SFT and the model card)."""

_MOST_CELLS = 64
MATCH = "Match the cells above to one of the following cell types:"
_PROMPT = re.compile(rf"Context: (.*)\n\n(Cell 1: .*)\n\n{MATCH}\n(.+)", re.DOTALL)
_CELL = re.compile(r"Cell (\d+): (.*)")
_UNSAFE = re.compile(r"[^A-Za-z0-9 .,;:/()'+\-_α-ωΑ-Ω]+")
_LONGEST = 64


def clean(text: str, longest: int = _LONGEST) -> str:
    """Return text of a data set without line breaks and odd characters, cut to ``longest``."""
    return " ".join(_UNSAFE.sub(" ", text).split())[:longest].strip()


@dataclass(frozen=True)
class Puzzle:
    """One puzzle.

    Attributes
    ----------
    context
        A sentence or more about the donor.
    cells
        Top genes of each cell, most expressed first.
    candidates
        Cell types offered, at least one a cell; as a rule exactly one.
    answer
        True type of each cell; empty where it is not known.
    trace
        A model answer to learn from: reasoning and answer with their tags; empty where there is none.
    dataset, group, cell_ids
        Where the cells come from: dataset id, donor, names of the cells.
    """

    context: str
    cells: tuple[tuple[str, ...], ...]
    candidates: tuple[str, ...]
    answer: tuple[str, ...] = ()
    trace: str = ""
    dataset: str = ""
    group: str = ""
    cell_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def user(self) -> str:
        """The message."""
        cells = "\n".join(f"Cell {number}: {', '.join(genes)}" for number, genes in enumerate(self.cells, 1))
        return f"Context: {self.context}\n\n{cells}\n\n{MATCH}\n" + "\n".join(self.candidates)

    @cached_property
    def key(self) -> str:
        """Hash of the message, 32 hex digits: equal puzzles have equal keys."""
        return hashlib.sha256(self.user.encode()).hexdigest()[:32]

    def messages(self, placement: Placement = "appended") -> list[dict[str, str]]:
        """Return the chat that asks a model."""
        if placement == "system":
            return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.user}]
        return [{"role": "user", "content": self.user + ("\n" if placement == "appended" else " ") + SYSTEM}]

    def check(self) -> None:
        """Refuse what cannot be solved.

        Raises
        ------
        PuzzleError
            If there are no or too many cells, a cell without genes, too few candidates, or two that read the same.
        """
        if not 1 <= len(self.cells) <= _MOST_CELLS:
            raise PuzzleError("cells", f"a puzzle has 1 to {_MOST_CELLS} cells, not {len(self.cells)}")
        for number, genes in enumerate(self.cells, 1):
            if not any(genes):
                raise PuzzleError("no_genes", f"cell {number} has no genes; leave it out or give its counts")
        if len(self.candidates) < len(self.cells) and NONE not in self.candidates:
            offered = f"{len(self.candidates)} candidates for {len(self.cells)} cells"
            raise PuzzleError("too_few_candidates", f"{offered}; each cell needs one of its own")
        folded = [name.casefold() for name in self.candidates]
        for name in self.candidates:
            if folded.count(name.casefold()) > 1:
                raise PuzzleError("duplicate_candidate", f"candidate {name!r} is offered twice; offer each once")
            if name != name.strip() or not name or "|" in name or "\n" in name or "<" in name:
                raise PuzzleError("bad_candidate", f"candidate {name!r} is empty, padded or holds '|', '<' or a break")

    @classmethod
    def of_prompt(cls, user: str, **more: Any) -> Self:
        """Read a message back.

        Raises
        ------
        PuzzleError
            If it is not of that form.
        """
        found = _PROMPT.fullmatch(user)
        lines = [_CELL.fullmatch(line) for line in found[2].split("\n")] if found else []
        numbers = [int(line[1]) if line else 0 for line in lines]
        if found is None or numbers != list(range(1, len(lines) + 1)):
            raise PuzzleError("bad_prompt", f"the message is no puzzle: {user[:60]!r}")
        cells = tuple(tuple(filter(None, line[2].split(", "))) for line in lines if line)
        return cls(found[1], cells, tuple(found[3].split("\n")), **more)


def one_each(items: Sequence[str], puzzle: Puzzle) -> bool:
    """Whether ``items`` give every cell an offered candidate, none of them twice (``NONE`` as often as you like)."""
    used = [item for item in items if item != NONE]
    return len(items) == len(puzzle) and len(set(used)) == len(used) and set(items) <= set(puzzle.candidates)
