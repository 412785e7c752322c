"""Compiled loops over raw counts in CSR form: normalisation to ``target_sum`` and log1p happen on the way.

Contract: one thread, no copies of the counts, float32 values as scanpy computes them and float64 sums. A cell without
counts is a cell of zeros.
"""

import numpy as np
from numba import njit

_TABLE = 16  # counts below this, which most are, have their logarithm computed once a cell


@njit(nogil=True, cache=True)
def _per_unit(indptr, data, i, target_sum, table):
    """Return the counts of cell i that make one of ``target_sum``, 0 if it has none; ``table`` gets its logarithms."""
    total = np.float64(0)
    for e in range(indptr[i], indptr[i + 1]):
        total += data[e]
    per_unit = np.float32(total / target_sum)
    if total > 0:
        for count in range(len(table)):
            table[count] = np.log1p(np.float32(count) / per_unit)
    return per_unit


@njit(nogil=True, cache=True, inline="always")
def _log(value, per_unit, table):
    """Return log1p(value / per_unit)."""
    whole = int(value)
    if 0 <= whole < len(table) and whole == value:
        return table[whole]
    return np.log1p(np.float32(value) / per_unit)


@njit(nogil=True, cache=True)
def add_moments(indptr, indices, data, target_sum, sums, extremes):
    """Add each gene's normalised count, its square, log1p and its square to ``sums`` (genes, 4), all float64.

    ``extremes`` (genes, 3): smallest and largest log1p among the entries that are not zero, and their number.
    """
    table = np.empty(_TABLE, np.float32)
    for i in range(len(indptr) - 1):
        per_unit = _per_unit(indptr, data, i, target_sum, table)
        if per_unit <= 0:
            continue
        for e in range(indptr[i], indptr[i + 1]):
            if data[e] == 0:
                continue
            gene = indices[e]
            value = np.float32(data[e]) / per_unit
            log = _log(data[e], per_unit, table)
            sums[gene, 0] += value
            sums[gene, 1] += np.float64(value) * value
            sums[gene, 2] += log
            sums[gene, 3] += np.float64(log) * log
            if log < extremes[gene, 0]:
                extremes[gene, 0] = log
            if log > extremes[gene, 1]:
                extremes[gene, 1] = log
            extremes[gene, 2] += 1


@njit(nogil=True, cache=True)
def fill_scaled(indptr, indices, data, target_sum, column, mean, scale, zero, limit, out):
    """Set ``out`` (cells, chosen genes) float32 to scaled log counts minus those of a cell without the gene.

    ``column`` (genes,) is a gene's column or -1; ``mean``, ``scale`` and ``zero`` belong to columns: a value is
    clip((log1p - mean) / scale, +-limit) - zero, so that what is not stored stays 0.
    """
    out[:] = 0
    table = np.empty(_TABLE, np.float32)
    for i in range(len(indptr) - 1):
        per_unit = _per_unit(indptr, data, i, target_sum, table)
        if per_unit <= 0:
            continue
        for e in range(indptr[i], indptr[i + 1]):
            at = column[indices[e]]
            if at >= 0 and data[e] != 0:
                value = (_log(data[e], per_unit, table) - mean[at]) / scale[at]
                out[i, at] = min(max(value, -limit), limit) - zero[at]
