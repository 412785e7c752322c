"""Made-up atlases for the refinement benchmark: cell types on curved low-dimensional manifolds, counts on disk.

A type is a mean profile and three programs of genes; a cell is a point of its type's manifold, which bends one program
into the next, and its counts are drawn from that mixture. Blocks of cells are written as plain arrays and read back
one at a time, so that memory is that of a block. Everything is a pure function of the arguments and the seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

_BLOCK = 20_000
_PROGRAMS = 3


@dataclass(frozen=True)
class Atlas:
    """``n`` cells in a folder, and the type of each."""

    folder: Path
    n: int
    n_genes: int
    kinds: np.ndarray

    @classmethod
    def write(cls, folder: Path, n: int, *, n_types: int, n_genes: int, depth: int, seed: int = 0) -> "Atlas":
        """Draw and store the cells; ``depth`` is the mean number of molecules of a cell."""
        rng = np.random.default_rng(seed)
        base = rng.gamma(0.3, 1.0, n_genes)
        profiles = np.stack(
            [
                [base * np.exp(rng.normal(0, 1.2, n_genes) * (rng.random(n_genes) < 0.08)) for _ in range(_PROGRAMS)]
                for _ in range(n_types)
            ]
        )
        profiles *= np.exp(rng.normal(0, 1.5, (n_types, 1, n_genes)) * (rng.random((n_types, 1, n_genes)) < 0.05))
        cumulative = np.cumsum(profiles / profiles.sum(axis=2, keepdims=True), axis=2)
        kinds = rng.choice(n_types, n, p=rng.dirichlet(np.full(n_types, 3.0)))
        folder.mkdir(parents=True, exist_ok=True)
        for number, start in enumerate(range(0, n, _BLOCK)):
            block = _draw(rng, kinds[start : start + _BLOCK], cumulative, depth)
            for name in ("indptr", "indices", "data"):
                np.save(folder / f"{number}-{name}.npy", getattr(block, name))
        return cls(folder, n, n_genes, kinds)

    def blocks(self) -> Iterator[sparse.csr_matrix]:
        """Read the counts block by block."""
        for number, start in enumerate(range(0, self.n, _BLOCK)):
            indptr, indices, data = (
                np.load(self.folder / f"{number}-{name}.npy", allow_pickle=False)
                for name in ("indptr", "indices", "data")
            )
            yield sparse.csr_matrix((data, indices, indptr), shape=(min(_BLOCK, self.n - start), self.n_genes))


def noisy_scores(kinds: np.ndarray, n_labels: int, accuracy: float, seed: int = 0) -> np.ndarray:
    """Probabilities (n, n_labels) float32 whose largest entry is right for a share ``accuracy`` of the cells."""
    rng = np.random.default_rng(seed)
    n = len(kinds)
    wrong = (kinds + rng.integers(1, n_labels, n)) % n_labels
    shown = np.where(rng.random(n) < accuracy, kinds, wrong)
    scores = rng.random((n, n_labels), dtype=np.float32)
    scores[np.arange(n), shown] = 1 + rng.random(n, dtype=np.float32)
    return scores / scores.sum(axis=1, keepdims=True)


def _draw(rng: np.random.Generator, kinds: np.ndarray, cumulative: np.ndarray, depth: int) -> sparse.csr_matrix:
    n_cells, n_genes = len(kinds), cumulative.shape[2]
    along = rng.random(n_cells) * np.pi / 2
    share = np.stack([np.cos(along) ** 2, np.sin(along) ** 2 * np.sin(2 * along), np.zeros(n_cells)], axis=1)
    share[:, 2] = 1 - share.sum(axis=1)
    molecules = np.maximum(1, rng.poisson(depth * rng.lognormal(0, 0.3, n_cells)))
    cell = np.repeat(np.arange(n_cells), molecules)
    program = (rng.random(len(cell))[:, None] > np.cumsum(share, axis=1)[cell, :2]).sum(axis=1)
    source = kinds[cell] * _PROGRAMS + program
    gene = np.empty(len(cell), np.int32)
    order = np.argsort(source, kind="stable")
    bounds = np.searchsorted(source[order], np.arange(cumulative.shape[0] * _PROGRAMS + 1))
    for number, profile in enumerate(cumulative.reshape(-1, n_genes)):
        drawn = order[bounds[number] : bounds[number + 1]]
        gene[drawn] = np.minimum(np.searchsorted(profile, rng.random(len(drawn))), n_genes - 1)
    counts = sparse.coo_matrix((np.ones(len(cell), np.float32), (cell, gene)), shape=(n_cells, n_genes)).tocsr()
    counts.sum_duplicates()
    return counts
