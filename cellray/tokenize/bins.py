"""Binned expression of scGPT: a cell is its genes and, for each, the quantile bin of its value among the cell's own.

Contract: the tokens of a cell are a pure function of its values, its name and the seed. Bins 1 to ``n_bins - 1`` are
upstream's (numpy's linear quantiles of the cell's non-zero values, float64), 0 is that of zeros. It adds no CLS or
padding token (the encoder does) and does not select genes.

Deviations from the scGPT repository:

1. A value that coincides with two edges or more is put into one of their bins at random, as upstream does, but the
   draw belongs to the seed, the cell's name and the gene, where upstream's depends on workers and on the cells before.
2. So does the choice of genes for a cell that is longer than the model takes. Both draws are SplitMix64 numbers.
3. Columns of the same gene are one token with their sum; upstream keeps them apart.
4. Instead of drawing, a model may ask for the upper bin of a tied value, and for the genes of the largest weighted
   value: raw counts of a few thousand molecules are mostly ties, and draws would be most of what a small model sees.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import sparse

_TARGET_SUM = np.float32(1e4)
_SMALL = 1024


@dataclass(frozen=True)
class BinTokens:
    """Cells as ragged arrays: gene tokens uint16, bins int16, and (n + 1,) int64 offsets."""

    tokens: np.ndarray
    bins: np.ndarray
    offsets: np.ndarray


def bin_tokens(
    values: sparse.csr_matrix,
    cell_ids: Sequence[str],
    tokens: np.ndarray,
    *,
    n_bins: int = 51,
    max_genes: int = 1199,
    seed: int = 0,
    normalise: str = "none",
    zero_genes: np.ndarray | None = None,
    draw_ties: bool = True,
    weights: np.ndarray | None = None,
) -> BinTokens:
    """Bin each cell's values and choose its genes.

    Parameters
    ----------
    values
        (n, g) non-negative values, one column a model gene.
    cell_ids
        Names of the n cells.
    tokens
        (g,) token id of each column, below 65,536.
    n_bins
        Bins, that of zeros included.
    max_genes
        Genes kept of each cell; of a longer one so many are drawn.
    seed
        Of both draws.
    normalise
        ``none``, ``total`` (1e4 a cell) or ``log1p`` (of that): what values go through before they are binned.
    zero_genes
        Ascending columns whose zeros are tokens too; None: zeros are none.
    draw_ties
        Whether a value that coincides with several edges gets one of their bins at random, or the upper one.
    weights
        (g,) positive: of a cell longer than ``max_genes`` the genes of the largest value times weight are kept, the
        first of equals; None: genes drawn.
    """
    values = sparse.csr_matrix(values)
    data = _normalised(values, normalise)
    keys = cell_keys(cell_ids, seed)
    indptr, indices = values.indptr.astype(np.int64), values.indices.astype(np.int32, copy=False)
    digits = bin_rows(indptr, indices, data, keys if draw_ties else keys[:0], n_bins)
    rank = None if weights is None else data * weights[indices]
    if zero_genes is not None:
        if rank is not None:
            _, _, rank = _with_zeros(indptr, indices, rank, np.asarray(zero_genes, np.int32))
        indptr, indices, digits = _with_zeros(indptr, indices, digits, np.asarray(zero_genes, np.int32))
    elif not digits.all():
        kept = digits > 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
        indices, digits = indices[kept], digits[kept]
        rank = None if rank is None else rank[kept]
    indptr, chosen = _choose(indptr, indices, keys, max_genes, rank)
    return BinTokens(tokens.astype(np.uint16)[indices[chosen]], digits[chosen], indptr)


def cell_keys(cell_ids: Sequence[str], seed: int) -> np.ndarray:
    """Return a uint64 for each cell that depends on its name and ``seed`` alone, the same in every process."""
    start = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(start + name.encode("utf-8", "surrogatepass"), digest_size=8) for name in cell_ids)
    return np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint64)


def _normalised(values: sparse.csr_matrix, normalise: str) -> np.ndarray:
    data = values.data.astype(np.float32)
    if normalise == "none":
        return data
    totals = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel().astype(np.float32)
    scale = np.where(totals > 0, totals, np.float32(1)) / _TARGET_SUM
    data = data / np.repeat(scale, np.diff(values.indptr))
    return np.log1p(data) if normalise == "log1p" else data


@njit(nogil=True, cache=True)
def _uniform(key, number):
    """Return the ``number``-th of a cell's random numbers in [0, 1)."""
    mixed = key + np.uint64(0x9E3779B97F4A7C15) * (np.uint64(number) + np.uint64(1))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.float64((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0


@njit(nogil=True, cache=True)
def bin_rows(indptr, indices, data, keys, n_bins):
    """Return the int16 bins of the entries of CSR rows: 1 to ``n_bins - 1``, 0 for entries that are 0.

    Without ``keys`` (an empty array) a tied value gets the upper of its bins.
    """
    edges = np.empty(n_bins - 1, np.float64)
    digits = np.zeros(len(data), np.int16)
    left, right = np.empty(_SMALL, np.int16), np.empty(_SMALL, np.int16)  # bins that a small count can have
    for row in range(len(indptr) - 1):
        own = data[indptr[row] : indptr[row + 1]]
        found, small = _sorted(own)
        if len(found) == 0:
            continue
        for edge in range(len(edges)):
            _set_edge(found, edge, edges)
        if small:
            at = 0
            for count in range(np.int64(found[-1]) + 1):  # edges ascend, and so do counts
                while at < len(edges) and edges[at] < count:
                    at += 1
                right[count] = at
                equal = at
                while equal < len(edges) and edges[equal] == count:
                    equal += 1
                left[count] = equal
        for e in range(indptr[row], indptr[row + 1]):
            value = data[e]
            if value == 0:
                continue
            if small:
                high, low = np.int64(left[np.uint32(value)]), np.int64(right[np.uint32(value)])
            else:
                high = np.searchsorted(edges, np.float64(value), side="right")
                low = np.searchsorted(edges, np.float64(value), side="left")
            if high - low <= 1 or len(keys) == 0:
                digits[e] = high
            else:
                draw = _uniform(keys[row], indices[e])
                digits[e] = np.int16(np.ceil(draw * (low - high) + high))
    return digits


@njit(nogil=True, cache=True)
def _sorted(values):
    """Return the sorted non-zero values, and whether all are whole numbers below ``_SMALL``, which are counted."""
    counted = np.zeros(_SMALL, np.int32)
    n, small = 0, True
    for value in values:
        n += value != 0
        whole = np.uint32(min(value, np.float32(_SMALL)))
        if whole < _SMALL and whole == value:
            counted[whole] += 1
        else:
            small = False
    if not small:
        return np.sort(values[values != 0]), False
    found = np.empty(n, np.float32)
    at = 0
    for count in range(1, _SMALL):
        for _ in range(counted[count]):
            found[at] = count
            at += 1
        if at == n:
            break
    return found, True


@njit(nogil=True, cache=True, inline="always")
def _set_edge(found, edge, edges):
    """Set edge number ``edge`` to numpy's linear quantile of the sorted values ``found``."""
    n, last = len(found), len(edges) - 1
    position = (edge * (1.0 / last) if edge < last else 1.0) * (n - 1)
    below = int(np.floor(position))
    weight = position - below
    low = np.float64(found[below])
    high = np.float64(found[min(below + 1, n - 1)])
    step = high - low
    edges[edge] = low + step * weight if weight < 0.5 else high - step * (1 - weight)


def _with_zeros(
    indptr: np.ndarray, indices: np.ndarray, digits: np.ndarray, genes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay every cell out over all of ``genes``, zeros included."""
    n = len(indptr) - 1
    at = np.searchsorted(genes, indices)
    full = np.zeros((n, len(genes)), digits.dtype)
    full[np.repeat(np.arange(n), np.diff(indptr)), at] = digits
    return np.arange(n + 1, dtype=np.int64) * len(genes), np.tile(genes, n), full.ravel()


def _choose(
    indptr: np.ndarray, indices: np.ndarray, keys: np.ndarray, most: int, rank: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | slice]:
    """Return new offsets and the entries kept, in their order: of a long cell ``most``, the highest in ``rank``.

    Without ``rank`` they are drawn without replacement.
    """
    lengths = np.diff(indptr)
    if (lengths <= most).all():
        return indptr.astype(np.int64), slice(None)
    kept = np.ones(len(indices), bool)
    for row in np.flatnonzero(lengths > most):
        own = slice(indptr[row], indptr[row + 1])
        kept[own] = False
        if rank is None:
            first = np.argpartition(_draws(keys[row], indices[own]), most)[:most]
        else:
            first = np.argsort(-rank[own], kind="stable")[:most]
        kept[indptr[row] + first] = True
    return np.concatenate([[0], np.cumsum(np.minimum(lengths, most))]), np.flatnonzero(kept)


@njit(nogil=True, cache=True)
def _draws(key, indices):
    """Return one random number for each gene of a cell, others than those that bins are drawn with."""
    found = np.empty(len(indices), np.float64)
    for at in range(len(indices)):
        found[at] = _uniform(key ^ np.uint64(0xD1B54A32D192ED03), indices[at])
    return found
