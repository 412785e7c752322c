"""Compiled loops over raw counts in CSR form: normalisation to ``target_sum`` and log1p happen on the way.

Contract: one thread, no copies of the counts, float32 values as scanpy computes them and float64 sums. A cell without
counts is a cell of zeros.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

_TABLE = 32  # counts below this, which most are, have their logarithm computed once a cell


class Scaling(NamedTuple):
    """How a count becomes a scaled value: clip((log1p - mean) * inverse, +-limit) - zero, in float32.

    ``column`` (genes,) int32 is a gene's column or -1; ``mean``, ``inverse`` (of the standard deviation) and ``zero``
    belong to columns. ``zero`` is what a cell without the gene has, so that what is not stored stays 0.
    """

    column: np.ndarray
    mean: np.ndarray
    inverse: np.ndarray
    zero: np.ndarray
    target_sum: float
    limit: np.float32


@njit(fastmath={"reassoc"}, nogil=True, cache=True)  # NaN and infinity must still be seen
def _per_unit(counts, target_sum):
    """Return how many of a cell's ``counts`` make one of ``target_sum``, 0 if it has none."""
    total = np.float64(0)
    for count in counts:
        total += count
    return np.float32(total / target_sum)


@njit(nogil=True, cache=True)
def _room(indptr):
    """Return room for the columns and values of any cell, and three more."""
    longest = 0
    for i in range(len(indptr) - 1):
        longest = max(longest, indptr[i + 1] - indptr[i])
    return np.empty(longest + 3, np.uint32), np.empty(longest + 3, np.float32)


@njit(nogil=True, cache=True)
def _scaled(genes, counts, scaling, columns, values):
    """Write a cell's columns and scaled values to the beginning of ``columns`` and ``values``; returns their number."""
    per_unit = _per_unit(counts, scaling.target_sum)
    if per_unit <= 0:
        return 0
    table = np.empty(_TABLE, np.float32)
    for count in range(_TABLE):
        table[count] = np.log1p(np.float32(count) / per_unit)
    found = np.uint32(0)
    # Without a branch, for which of a cell's genes were chosen cannot be foreseen: others are written over.
    for e in range(len(genes)):
        column = scaling.column[np.uint32(genes[e])]
        columns[found] = column
        values[found] = counts[e]
        found += np.uint32(column >= 0)
    for at in range(found):
        column, whole = columns[at], np.uint32(values[at])
        log = table[whole] if whole < _TABLE and whole == values[at] else np.log1p(values[at] / per_unit)
        scaled = (log - scaling.mean[column]) * scaling.inverse[column]
        values[at] = min(max(scaled, -scaling.limit), scaling.limit) - scaling.zero[column]
    return found


@njit(nogil=True, cache=True)
def add_moments(indptr, indices, data, target_sum, sums, extremes):
    """Add each gene's normalised count, its square, log1p and its square to ``sums`` (genes, 4), all float64.

    ``extremes`` (genes, 3): smallest and largest log1p among the entries that are not zero, and their number.
    Returns whether all counts were finite and not negative; sums of others are worth nothing.
    """
    powers = np.empty((_TABLE + 1, 4))  # what a count adds; the last row is for one that has none of its own
    good = True
    for i in range(len(indptr) - 1):
        per_unit = _per_unit(data[indptr[i] : indptr[i + 1]], target_sum)
        good &= np.isfinite(per_unit)
        if per_unit > 0:
            for count in range(_TABLE):
                _powers(np.float32(count), per_unit, powers[count])
        for e in range(indptr[i], indptr[i + 1]):
            value = data[e]
            good &= value >= 0
            if not (value > 0 and per_unit > 0):
                continue
            at = np.uint32(value)
            if not (at < _TABLE and at == value):
                at = np.uint32(_TABLE)
                _powers(np.float32(value), per_unit, powers[at])
            gene = np.uint32(indices[e])
            for power in range(4):
                sums[gene, power] += powers[at, power]
            log = powers[at, 2]
            if log < extremes[gene, 0]:
                extremes[gene, 0] = log
            if log > extremes[gene, 1]:
                extremes[gene, 1] = log
            extremes[gene, 2] += 1
    return good


@njit(nogil=True, cache=True, inline="always")
def _powers(count, per_unit, out):
    """Set ``out`` (4,) to the normalised count, its square, log1p and its square."""
    value = np.float64(count / per_unit)
    log = np.float64(np.log1p(count / per_unit))
    out[0], out[1], out[2], out[3] = value, value * value, log, log * log


@njit(nogil=True, cache=True)
def fill_scaled(indptr, indices, data, scaling, out, sums):
    """Set ``out`` (cells, chosen genes) float32 to scaled values, and add them to ``sums`` (chosen genes,) float64."""
    out[:] = 0
    columns, values = _room(indptr)
    for i in range(len(indptr) - 1):
        own = slice(indptr[i], indptr[i + 1])
        for at in range(_scaled(indices[own], data[own], scaling, columns, values)):
            out[i, columns[at]] = values[at]
            sums[columns[at]] += values[at]


@njit(nogil=True, cache=True)
def project_scaled(indptr, indices, data, scaling, axes, out):
    """Add to ``out`` (cells, p) the scaled values times ``axes`` (chosen genes, p), all float32."""
    columns, values = _room(indptr)
    for i in range(len(indptr) - 1):
        own = slice(indptr[i], indptr[i + 1])
        found = _scaled(indices[own], data[own], scaling, columns, values)
        columns[found : found + 3] = 0
        values[found : found + 3] = 0
        point = out[i]
        # Four genes at a time: the sums are then loaded and stored a quarter as often.
        for at in range(0, found, 4):
            v0, v1, v2, v3 = values[at], values[at + 1], values[at + 2], values[at + 3]
            a0, a1, a2, a3 = axes[columns[at]], axes[columns[at + 1]], axes[columns[at + 2]], axes[columns[at + 3]]
            for j in range(len(point)):
                point[j] += v0 * a0[j] + v1 * a1[j] + v2 * a2[j] + v3 * a3[j]
