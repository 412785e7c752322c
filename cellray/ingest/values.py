"""Values of a matrix made into counts: rounded, or computed back from log-normalised ones.

Contract: works on a block of whole cells and gives the same numbers however cells are cut into blocks. A cell whose
counts cannot be had keeps values that are no integers, so that it is rejected when it is judged. ``layers`` decides
which conversion a dataset needs.

Counts are computed back from x = log(1 + count * s) without knowing s, the cell's scale: exp(x) - 1 of the cell's
smallest value is s times a small whole number, and the right one makes all values of the cell whole. A cell whose
counts all share a divisor is found divided by it; proportions, and so labels, are the same.
"""

from enum import StrEnum

import numpy as np
from scipy import sparse

TOLERANCE = 1e-3
"""How far from a whole number a count may be."""

_RELATIVE = 1e-6  # of large counts: what is left of float32 after log and exp
_MOST_OF_SMALLEST = 10  # the smallest count of a cell is at most this


class Conversion(StrEnum):
    """What is done to the values of a matrix before they are judged."""

    NONE = "none"
    ROUND = "round"
    LOG1P = "log1p"
    EXPM1 = "expm1"


def converted(counts: sparse.csr_matrix, conversion: Conversion, *, integers: bool) -> sparse.csr_matrix:
    """Return the cells of ``counts`` (csr float32, canonical) converted; with ``integers`` near ones become whole."""
    if conversion is Conversion.LOG1P:
        return _with_values(counts, recovered(counts)[0])
    if conversion is Conversion.EXPM1:
        with np.errstate(over="ignore"):
            counts = _with_values(counts, np.expm1(counts.data.astype(np.float64)))
    elif conversion is Conversion.ROUND:
        counts = _with_values(counts, np.rint(counts.data))
    if not integers:
        return counts
    # Nearly all blocks are whole already, and every pass over a dataset comes by here.
    odd = np.flatnonzero(counts.data != np.rint(counts.data))
    moved = odd[near_integer(counts.data[odd])]
    if len(moved):
        values = counts.data.copy()
        values[moved] = np.rint(values[moved])
        counts = _with_values(counts, values)
    return counts


def near_integer(values: np.ndarray) -> np.ndarray:
    """Say which values are whole numbers but for rounding, bool."""
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        return np.abs(values - np.rint(values)) < np.maximum(TOLERANCE, _RELATIVE * np.abs(values))


def recovered(counts: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Compute counts back from log1p values of scaled counts.

    Parameters
    ----------
    counts
        csr of whole cells, values x = log(1 + count * scale), without explicit zeros.

    Returns
    -------
    values
        float64[nnz], the counts; of a cell that has none, its values as they were.
    found
        bool[n], whether the cell's counts were found; a cell without values counts as found.
    """
    n = counts.shape[0]
    lengths = np.diff(counts.indptr)
    filled = np.flatnonzero(lengths > 0)
    values = counts.data.astype(np.float64)
    found = np.ones(n, bool)
    if not len(filled):
        return values, found
    starts = counts.indptr[filled]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scaled = np.expm1(values)
        smallest = np.minimum.reduceat(scaled, starts)
        usable = np.isfinite(smallest) & (smallest > 0)
        done = np.zeros(len(filled), bool)
        row = np.repeat(np.arange(len(filled)), lengths[filled])
        result = values.copy()
        for divisor in range(1, _MOST_OF_SMALLEST + 1):
            todo = usable & ~done
            if not todo.any():
                break
            step = smallest / divisor
            whole = np.rint(scaled / step[row])
            # The smallest value alone gives the step to its own precision; all values together give it better.
            step = np.add.reduceat(scaled * whole, starts) / np.add.reduceat(whole * whole, starts)
            count = scaled / step[row]
            good = np.logical_and.reduceat(near_integer(count) & (np.rint(count) >= 1), starts) & todo
            result = np.where(good[row], np.rint(count), result)
            done |= good
    found[filled] = done
    return result, found


def _with_values(counts: sparse.csr_matrix, values: np.ndarray) -> sparse.csr_matrix:
    with np.errstate(over="ignore"):
        changed = sparse.csr_matrix(
            (values.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape
        )
    changed.eliminate_zeros()
    return changed
