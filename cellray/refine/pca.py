"""Raw counts to principal components, the way scanpy's tutorials do it, in passes over row blocks.

Contract: ``normalize_total``, ``log1p``, ``highly_variable_genes``, ``scale`` and ``pca`` of scanpy in a row give the
same points up to the sign of a component. Counts are read three times (moments, covariance of the chosen genes,
projection) and never held: memory is that of one block and of the genes' covariance, whatever the number of cells.
The same input gives the same points on the same machine. It does not filter cells or genes, correct batches, or look
at labels.

Deviations from the plain calls, beside those of ``cellray.refine.genes``:

1. Components are eigenvectors of the covariance in float64; scanpy iterates on the scaled float32 matrix.
2. ``n_pcs`` is cut to what the data can have, ``min(n_pcs, n - 1, genes)``. One cell, or no varying gene, gives points
   without coordinates.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import eigh
from scipy.linalg.blas import ssyrk

from cellray.errors import RefineError
from cellray.refine.counts import fill_scaled
from cellray.refine.genes import Flavor, highly_variable, moments

Blocks = Callable[[], Iterable[sparse.csr_matrix]]

_ROWS = 4096


def principal_components(
    blocks: Blocks,
    *,
    n_pcs: int = 50,
    n_top_genes: int = 2000,
    flavor: Flavor = "seurat",
    target_sum: float = 1e4,
    max_value: float = 10,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Project cells onto the principal components of their highly variable genes.

    Parameters
    ----------
    blocks
        Each call starts a pass: raw counts of all cells as CSR row blocks, (m, genes), finite and non-negative.
    n_pcs, n_top_genes
        Components and highly variable genes wanted; fewer are taken where the data has fewer.
    flavor
        How highly variable genes are chosen.
    target_sum
        Counts per cell after normalisation.
    max_value
        Standard deviations at which a scaled value is clipped.

    Returns
    -------
    points
        (n, p) float32 with ``p <= n_pcs``.
    settings
        The values used, ``n_genes`` and ``n_pcs`` being those found in the data.
    """
    found = moments(_checked(blocks()), target_sum)
    genes = highly_variable(found, n_top_genes, flavor) if found.n > 1 else np.empty(0, np.int64)
    used = max(0, min(n_pcs, found.n - 1, len(genes)))
    settings: dict[str, Any] = {
        "target_sum": target_sum,
        "flavor": flavor,
        "n_top_genes": n_top_genes,
        "max_value": max_value,
        "n_genes": len(genes),
        "n_pcs": used,
    }
    points = np.zeros((found.n, used), np.float32)
    if used == 0:
        return points, settings
    scaling = _Scaling.of(
        found.log_mean[genes], found.log_variance[genes], genes, len(found.mean), target_sum, max_value
    )
    covariance, centre = _covariance(scaling, blocks, found.n)
    axes = _axes(covariance, used).astype(np.float32)
    at = 0
    for scaled in scaling.dense(blocks()):
        points[at : at + len(scaled)] = scaled @ axes
        at += len(scaled)
    points -= centre.astype(np.float32) @ axes
    return points, settings


def _checked(blocks: Iterable[sparse.csr_matrix]) -> Iterator[sparse.csr_matrix]:
    for block in blocks:
        if not np.isfinite(block.data).all() or np.min(block.data, initial=0) < 0:
            msg = "counts hold values that are negative or not finite; leave those cells out before refining"
            raise RefineError(msg)
        yield block


@dataclass(frozen=True)
class _Scaling:
    """How a count becomes a scaled value, see ``fill_scaled``."""

    column: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    target_sum: float
    limit: np.float32

    @classmethod
    def of(
        cls, mean: np.ndarray, variance: np.ndarray, genes: np.ndarray, n_genes: int, target_sum: float, limit: float
    ) -> "_Scaling":
        column = np.full(n_genes, -1, np.int32)
        column[genes] = np.arange(len(genes))
        scale = np.sqrt(variance)
        zero = np.clip(-mean / scale, -limit, limit)
        mean, scale, zero = (one.astype(np.float32) for one in (mean, scale, zero))
        return cls(column, mean, scale, zero, target_sum, np.float32(limit))

    def dense(self, blocks: Iterable[sparse.csr_matrix]) -> Iterator[np.ndarray]:
        """Yield scaled rows, (at most ``_ROWS``, chosen genes) float32, minus those of an empty cell; one buffer."""
        buffer = np.empty((_ROWS, len(self.mean)), np.float32)
        for block in blocks:
            for start in range(0, block.shape[0], _ROWS):
                stop = min(start + _ROWS, block.shape[0])
                rows = buffer[: stop - start]
                indptr = block.indptr[start : stop + 1]
                fill_scaled(
                    indptr,
                    block.indices,
                    block.data,
                    self.target_sum,
                    self.column,
                    self.mean,
                    self.scale,
                    self.zero,
                    self.limit,
                    rows,
                )
                yield rows


def _covariance(scaling: _Scaling, blocks: Blocks, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper triangle of the covariance of the scaled genes, and their means, both minus an empty cell's; float64.

    Taking an empty cell off changes no covariance and leaves most values 0.
    """
    size = len(scaling.mean)
    products, sums = np.zeros((size, size), order="F"), np.zeros(size)
    for rows in scaling.dense(blocks()):
        products += ssyrk(1.0, rows.T)
        sums += rows.sum(axis=0, dtype=np.float64)
    centre = sums / n
    products -= n * np.outer(centre, centre)
    products /= n - 1
    return products, centre


def _axes(covariance: np.ndarray, used: int) -> np.ndarray:
    """Return the leading eigenvectors, (genes, used), largest first; the largest entry of each is positive."""
    last = len(covariance) - 1
    _, vectors = eigh(
        covariance, lower=False, subset_by_index=[last - used + 1, last], driver="evr", check_finite=False
    )
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.sign(vectors[largest, np.arange(used)])
