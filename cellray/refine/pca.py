"""Raw counts to principal components, the way scanpy's tutorials do it.

Contract: ``normalize_total``, ``log1p``, ``highly_variable_genes(flavor="seurat")``, ``scale`` and
``pca(svd_solver="arpack")``, each scanpy's own; the result equals those calls in a row up to the sign of a component.
The caller's matrix is not changed. The same input and seed give the same points on the same machine and number of
threads. It does not filter cells or genes, correct batches, or look at labels.

Deviations from the plain calls, all for inputs on which those fail or amplify rounding errors:

1. Genes whose log-normalised values are all equal are never taken, for ``scale`` would blow their rounding errors up
   to unit variance. With at most ``n_top_genes`` other genes all of those are taken.
2. Exactly ``n_top_genes`` genes are taken: of equally dispersed ones the first, and those without a dispersion last.
   scanpy takes all that are equal, and fails when no gene has a dispersion.
3. ``n_pcs`` is cut to what the data can have, ``min(n_pcs, n - 1, genes)``. Matrices with a short side use LAPACK's
   SVD: ARPACK cannot give all components, and where it meets an invariant subspace it goes on from its own random
   state. One cell, or no varying gene, gives points without coordinates.
"""

import warnings
from typing import Any

import numpy as np
from scipy import sparse

_FLAVOR = "seurat"
_EXPECTED_WARNINGS = (
    "Some cells have zero counts",  # they stay at zero
    "zero-centering a sparse array",  # only the selected genes are made dense
)
_CONSTANT_SPREAD = 1e-5  # of log-normalised values: about ten float32 steps at log1p(1e4)
_EXACT_SIZE = 500  # cells or genes up to which LAPACK's SVD is used


def principal_components(
    counts: sparse.csr_matrix,
    *,
    n_pcs: int = 50,
    n_top_genes: int = 2000,
    target_sum: float = 1e4,
    max_value: float = 10,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Project cells onto the principal components of their highly variable genes.

    Parameters
    ----------
    counts
        Raw counts, (n cells, genes), finite and non-negative.
    n_pcs, n_top_genes
        Components and highly variable genes wanted; fewer are taken where the data has fewer.
    target_sum
        Counts per cell after normalisation.
    max_value
        Standard deviations at which a scaled value is clipped.
    seed
        Start vector of ARPACK.

    Returns
    -------
    points
        (n, p) float32 with ``p <= n_pcs``.
    settings
        The values used, ``n_genes`` and ``n_pcs`` being those found in the data.
    """
    import anndata
    import scanpy as sc

    settings: dict[str, Any] = {
        "target_sum": target_sum,
        "flavor": _FLAVOR,
        "n_top_genes": n_top_genes,
        "max_value": max_value,
        "seed": seed,
        "solver": "none",
        "n_genes": 0,
        "n_pcs": 0,
    }
    n_cells = counts.shape[0]
    nothing = np.zeros((n_cells, 0), dtype=np.float32)
    if n_cells < 2:
        return nothing, settings

    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        data = anndata.AnnData(sparse.csr_matrix(counts, dtype=np.float32, copy=True))
        sc.pp.normalize_total(data, target_sum=target_sum)
        sc.pp.log1p(data)
        genes = np.flatnonzero(_spread(data.X) > _CONSTANT_SPREAD)
        if len(genes) == 0:
            return nothing, settings
        if len(genes) > n_top_genes:
            table = sc.pp.highly_variable_genes(data, flavor=_FLAVOR, inplace=False)
            dispersion = table["dispersions_norm"].to_numpy()[genes]
            genes = np.sort(genes[np.argsort(-dispersion, kind="stable")[:n_top_genes]])
        data = data[:, genes].copy()
        sc.pp.scale(data, max_value=max_value)
        used = min(n_pcs, data.n_obs - 1, data.n_vars)
        solver = "arpack" if min(data.shape) > max(used, _EXACT_SIZE) else "full"
        sc.pp.pca(data, n_comps=used, svd_solver=solver, random_state=seed)
    points = np.ascontiguousarray(data.obsm["X_pca"], dtype=np.float32)
    return points, {**settings, "solver": solver, "n_genes": data.n_vars, "n_pcs": used}


def _spread(matrix: sparse.csr_matrix) -> np.ndarray:
    """Return maximum minus minimum of every column."""
    return (matrix.max(axis=0) - matrix.min(axis=0)).toarray().ravel()
