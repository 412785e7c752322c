"""A solver without a language model: gene lists against the mean gene list of each type, and the best assignment.

Contract: ``Profiles`` are learned from solved puzzles. A gene weighs the more the higher it stands and the fewer types
have it; cells and types are compared by cosine; the assignment with the largest sum wins (Hungarian method), so every
answer is a permutation. A candidate that no profile knows is as similar to every cell as the average candidate.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from cellray.puzzles.answer import fold
from cellray.puzzles.puzzle import NONE, Puzzle


@dataclass(frozen=True)
class Profiles:
    """Unit vectors of types, (types, genes) float32, and the numbers of genes and (folded) types; (genes,) weights."""

    matrix: np.ndarray
    weights: np.ndarray
    genes: dict[str, int]
    types: dict[str, int]

    @classmethod
    def of(cls, puzzles: Iterable[Puzzle]) -> "Profiles":
        """Learn from puzzles with answers."""
        genes: dict[str, int] = {}
        types: dict[str, int] = {}
        rows, columns, values = [], [], []
        for puzzle in puzzles:
            for label, cell in zip(puzzle.answer, puzzle.cells, strict=False):
                row = types.setdefault(fold(label), len(types))
                for rank, gene in enumerate(cell):
                    rows.append(row)
                    columns.append(genes.setdefault(gene, len(genes)))
                    values.append(_weight(rank))
        sums = sparse.csr_matrix((values, (rows, columns)), (len(types), len(genes))).toarray().astype(np.float32)
        means = sums / np.maximum(sums.sum(1, keepdims=True), 1e-12)
        # A gene that is everywhere says little: its weight falls with the number of types that have it.
        rarity = np.log1p(len(types) / np.maximum((means > means.max(0, initial=0) / 4).sum(0), 1)).astype(np.float32)
        return cls(_unit(np.sqrt(means) * rarity), rarity, genes, types)

    def similarity(self, puzzle: Puzzle) -> np.ndarray:
        """Return (cells, candidates) cosines."""
        vectors = np.zeros((len(puzzle), len(self.genes)), np.float32)
        for row, cell in enumerate(puzzle.cells):
            for rank, gene in enumerate(cell):
                if gene in self.genes:
                    vectors[row, self.genes[gene]] = _weight(rank)
        cosines = _unit(np.sqrt(vectors) * self.weights) @ self.matrix.T
        number = [self.types.get(fold(name), -1) for name in puzzle.candidates]
        known = cosines[:, [at for at in number if at >= 0]]
        other = known.mean(1) if known.size else np.zeros(len(puzzle), np.float32)
        return np.stack([cosines[:, at] if at >= 0 else other for at in number], axis=1)

    def solve(self, puzzle: Puzzle) -> tuple[str, ...]:
        """Return the best assignment."""
        return assign(self.similarity(puzzle), puzzle.candidates)


def assign(scores: np.ndarray, candidates: tuple[str, ...]) -> tuple[str, ...]:
    """Give each row of (cells, candidates) ``scores`` a candidate of its own, of the largest sum; ``NONE`` repeats."""
    names = list(candidates)
    if NONE in candidates:
        column = names.index(NONE)
        extra = len(scores) - 1
        scores = np.concatenate([scores, np.repeat(scores[:, [column]], extra, axis=1)], axis=1)
        names += [NONE] * extra
    rows, columns = linear_sum_assignment(scores, maximize=True)
    chosen = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return tuple(names[chosen[row]] for row in range(len(scores)))


def _weight(rank: int) -> float:
    return 1 / np.log2(rank + 2)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
