"""Raw counts to principal components, the way scanpy's tutorials do it, in passes over row blocks.

Contract: ``normalize_total``, ``log1p``, ``highly_variable_genes``, ``scale`` and ``pca`` of scanpy in a row give the
same points up to the sign of a component. Counts are read three times (moments, covariance of the chosen genes,
projection) and never held: memory is that of one block and of the genes' covariance, whatever the number of cells.
The same input gives the same points on the same machine. It does not filter cells or genes, correct batches, or look
at labels.

Deviations from the plain calls, beside those of ``cellray.refine.genes``:

1. Components are eigenvectors of the covariance; scanpy iterates on the scaled float32 matrix.
2. ``n_pcs`` is cut to what the data can have, ``min(n_pcs, n - 1, genes)``. One cell, or no varying gene, gives points
   without coordinates.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import eigh
from scipy.linalg.blas import dsymm, dsyr, ssyrk

from cellray.refine.counts import Scaling, fill_scaled, project_scaled
from cellray.refine.genes import Flavor, Moments, highly_variable, moments

Blocks = Callable[[], Iterable[sparse.csr_matrix]]

_ROWS = 8192
_MORE_AXES = 30  # found beside those wanted, so that the last of these are not at the edge of what was looked at
_AXES_ERROR = 1e-4


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
    found = moments(blocks(), target_sum)
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
    scaling = _scaling(found, genes, target_sum, max_value)
    scatter, centre = _scatter(scaling, blocks, found.n)
    axes = np.ascontiguousarray(_axes(scatter, used), np.float32)
    at = 0
    for block in blocks():
        rows = points[at : at + block.shape[0]]
        project_scaled(block.indptr, block.indices, block.data, scaling, axes, rows)
        at += len(rows)
    points -= centre.astype(np.float32) @ axes
    return points, settings


def _scaling(found: Moments, genes: np.ndarray, target_sum: float, limit: float) -> Scaling:
    column = np.full(len(found.mean), -1, np.int32)
    column[genes] = np.arange(len(genes))
    mean, deviation = found.log_mean[genes], np.sqrt(found.log_variance[genes])
    zero = np.clip(-mean / deviation, -limit, limit)
    mean, inverse, zero = (one.astype(np.float32) for one in (mean, 1 / deviation, zero))
    return Scaling(column, mean, inverse, zero, float(target_sum), np.float32(limit))


def _scatter(scaling: Scaling, blocks: Blocks, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper triangle of n - 1 times the covariance of the scaled genes, and their means; float64, minus an empty cell.

    Taking an empty cell off changes no covariance and leaves most values 0.
    """
    size = len(scaling.mean)
    products, sums = np.zeros((size, size), order="F"), np.zeros(size)
    buffer, part = np.empty((min(_ROWS, n), size), np.float32), np.zeros((size, size), np.float32, order="F")
    for block in blocks():
        for start in range(0, block.shape[0], _ROWS):
            indptr = block.indptr[start : start + _ROWS + 1]
            rows = buffer[: len(indptr) - 1]
            fill_scaled(indptr, block.indices, block.data, scaling, rows, sums)
            products += ssyrk(1.0, rows.T, c=part, overwrite_c=True)
    return dsyr(-1 / n, sums, a=products, overwrite_a=True), sums / n


def _axes(scatter: np.ndarray, used: int) -> np.ndarray:
    """Return the leading eigenvectors, (genes, used), largest first; the largest entry of each is positive.

    ``scatter`` is an upper triangle. Finding them in float32 takes half the time; the best ones in the span of a
    few more than are wanted are as good as float64 makes them, which is checked.
    """
    size = len(scatter)
    some = min(used + _MORE_AXES, size)
    span = np.linalg.qr(_leading(scatter.astype(np.float32), some).astype(np.float64))[0]
    image = dsymm(1.0, scatter, span)
    values, mix = eigh(span.T @ image)
    vectors = span @ mix
    left = np.linalg.norm(image @ mix - values * vectors, axis=0)[-used:]
    apart = values[-used:] - values[0] if some < size else np.ones(used)
    if (left > _AXES_ERROR * apart).any():
        vectors = _leading(scatter, used)
    vectors = vectors[:, : -used - 1 : -1]
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.sign(vectors[largest, np.arange(used)])


def _leading(scatter: np.ndarray, some: int) -> np.ndarray:
    last = len(scatter) - 1
    return eigh(scatter, lower=False, subset_by_index=[last - some + 1, last], driver="evr", check_finite=False)[1]
