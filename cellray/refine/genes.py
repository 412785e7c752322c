"""Highly variable genes from streamed moments, as scanpy chooses them (flavours ``seurat`` and ``cell_ranger``).

Contract: the same dispersions as ``scanpy.pp.highly_variable_genes`` on log-normalised counts, from sums that do not
grow with the number of cells. Sources: Satija et al. 2015 and Zheng et al. 2017, as scanpy reads them.

Deviations, for inputs on which the plain call fails or amplifies rounding errors:

1. Genes whose log-normalised values are all equal are never taken, for scaling would blow their rounding errors up to
   unit variance. With at most ``n_top_genes`` other genes all of those are taken.
2. Exactly ``n_top_genes`` genes are taken: of equally dispersed ones the first, and those without a dispersion last.
   scanpy takes all that are equal, and fails when no gene has a dispersion.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import sparse

from cellray.errors import RefineError
from cellray.refine.counts import add_moments

Flavor = Literal["seurat", "cell_ranger"]

_CONSTANT_SPREAD = 1e-5  # of log-normalised values: about ten float32 steps at log1p(1e4)
_SEURAT_BINS = 20
_TO_NORMAL = 1.4826  # median absolute deviation to standard deviation


@dataclass(frozen=True)
class Moments:
    """Of each gene over ``n`` cells, (genes,) float64: mean and variance of normalised counts and of their log1p.

    ``spread`` is the largest minus the smallest log1p.
    """

    n: int
    mean: np.ndarray
    variance: np.ndarray
    log_mean: np.ndarray
    log_variance: np.ndarray
    spread: np.ndarray


def moments(blocks: Iterable[sparse.csr_matrix], target_sum: float) -> Moments:
    """Pass once over raw counts, given as row blocks, and collect the moments of every gene.

    Raises
    ------
    RefineError
        If a count is negative or not finite.
    """
    n, sums, extremes = 0, np.zeros((0, 4)), np.zeros((0, 3))
    for block in blocks:
        if not len(sums):
            sums, extremes = np.zeros((block.shape[1], 4)), np.zeros((block.shape[1], 3))
            extremes[:, 0] = np.inf
        if not add_moments(block.indptr, block.indices, block.data, target_sum, sums, extremes):
            msg = "counts hold values that are negative or not finite; leave those cells out before refining"
            raise RefineError(msg)
        n += block.shape[0]
    low = np.where(extremes[:, 2] < n, 0.0, extremes[:, 0])
    mean, log_mean = sums[:, 0] / max(n, 1), sums[:, 2] / max(n, 1)
    more = max(n - 1, 1)
    variance = np.maximum(sums[:, 1] - n * mean**2, 0) / more
    log_variance = np.maximum(sums[:, 3] - n * log_mean**2, 0) / more
    return Moments(n, mean, variance, log_mean, log_variance, extremes[:, 1] - low)


def highly_variable(found: Moments, n_top_genes: int, flavor: Flavor = "seurat") -> np.ndarray:
    """Return the ascending indices of the chosen genes, at most ``n_top_genes``."""
    genes = np.flatnonzero(found.spread > _CONSTANT_SPREAD)
    if len(genes) <= n_top_genes:
        return genes
    return np.sort(by_dispersion(found, flavor)[:n_top_genes])


def by_dispersion(found: Moments, flavor: Flavor = "seurat") -> np.ndarray:
    """Return the indices of the genes that vary, the most dispersed first."""
    genes = np.flatnonzero(found.spread > _CONSTANT_SPREAD)
    dispersion = _normalised_dispersion(found, flavor)[genes]
    return genes[np.argsort(-dispersion, kind="stable")]


def _normalised_dispersion(found: Moments, flavor: Flavor) -> np.ndarray:
    """Dispersion in units of that of genes with a similar mean; nan where there is none."""
    # scanpy undoes the logarithm for the one flavour and not for the other.
    mean, variance = (found.mean, found.variance) if flavor == "seurat" else (found.log_mean, found.log_variance)
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    if flavor == "seurat":
        with np.errstate(divide="ignore"):
            dispersion = np.where(dispersion == 0, np.nan, np.log(dispersion))
        bins = pd.cut(pd.Series(np.log1p(mean)), _SEURAT_BINS)
        grouped = pd.Series(dispersion).groupby(bins, observed=True)
        centre, width = grouped.mean(), grouped.std(ddof=1)
        # The only gene of its bin has no spread to be measured by: it counts as one unit away.
        alone = width.isna()
        width[alone], centre[alone] = centre[alone], 0.0
    else:
        edges = np.r_[-np.inf, np.percentile(mean, np.arange(10, 105, 5)), np.inf]
        bins = pd.cut(pd.Series(mean), np.unique(edges))
        grouped = pd.Series(dispersion).groupby(bins, observed=True)
        centre = grouped.median()
        width = grouped.agg(lambda values: _TO_NORMAL * (values - values.median()).abs().median())
    bin_of = bins.cat.codes.to_numpy()
    centre, width = (one.reindex(bins.cat.categories).to_numpy(float)[bin_of] for one in (centre, width))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (dispersion - centre) / width
