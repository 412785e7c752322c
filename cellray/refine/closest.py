"""The nearest of many points, read off matrix products of squared distances.

Contract: distances are computed in float32, in blocks that stay in the processor's cache; of equally distant points the
one that came first is kept. Centre the points beforehand: far from 0, differences drown. It does not choose which
points are compared.
"""

import numpy as np
from numba import njit

_RUN = 64
_BLOCK = 512  # rows and columns of distances held at a time
_FAR = np.float32(3e38)


def nearest_of_all(points: np.ndarray, base: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest of ``base`` (n, p) for each of ``points`` (m, p), comparing with all; (m, k) int32."""
    best = Closest(points, k)
    best.among(base, np.arange(len(base), dtype=np.int32))
    return best.names


class Closest:
    """The k nearest so far of each of ``points`` (m, p): ``names`` (m, k) int32, -1 where there are fewer."""

    def __init__(self, points: np.ndarray, k: int) -> None:
        self._points, self._factors = points, _left(points)
        self._values = np.full((len(points), k), _FAR, np.float32)
        self.names = np.full((len(points), k), -1, np.int32)

    def among(self, base: np.ndarray, names: np.ndarray) -> None:
        """Compare all points with (n, p) others."""
        self._compare(slice(0, len(self.names)), _right(base), names)

    def within(self, own: slice) -> None:
        """Compare the points ``own`` with each other; points are named by their place from here on."""
        self._compare(own, _right(self._points[own]), np.arange(own.start, own.stop, dtype=np.int32))

    def between(self, some: slice, others: slice) -> None:
        """Compare the points ``some`` with ``others``, for both."""
        right = _right(self._points[others])
        for rows in _blocks(some):
            for columns in _blocks(others):
                squared = self._factors[rows] @ right[columns.start - others.start : columns.stop - others.start].T
                _smallest_of_both(squared, rows.start, columns.start, self._values, self.names)

    def _compare(self, some: slice, right: np.ndarray, names: np.ndarray) -> None:
        for rows in _blocks(some):
            for block in _blocks(slice(0, len(right))):
                squared = self._factors[rows] @ right[block].T
                _smallest(squared, names[block], self._values[rows], self.names[rows])


def _blocks(whole: slice) -> list[slice]:
    return [slice(at, min(at + _BLOCK, whole.stop)) for at in range(whole.start, whole.stop, _BLOCK)]


def _left(points: np.ndarray) -> np.ndarray:
    """Factors whose products with ``_right`` are squared distances: one matrix product and nothing after it."""
    norms = np.einsum("ij,ij->i", points, points)[:, None]
    return np.concatenate([-2 * points, norms, np.ones_like(norms)], axis=1)


def _right(points: np.ndarray) -> np.ndarray:
    norms = np.einsum("ij,ij->i", points, points)[:, None]
    return np.concatenate([points, np.ones_like(norms), norms], axis=1)


@njit(nogil=True, cache=True, inline="always")
def _put(value, name, best, own):
    """Insert where it belongs among the sorted ``best`` (k,), whose last is dropped."""
    at = len(best) - 1
    while at > 0 and best[at - 1] > value:
        best[at], own[at] = best[at - 1], own[at - 1]
        at -= 1
    best[at], own[at] = value, name


@njit(fastmath=True, nogil=True, cache=True)
def _smallest(squared, names, values, chosen):
    """Put ``squared`` (m, n) and ``names`` where they are smaller than the sorted ``values`` (m, k)."""
    n, last = len(names), values.shape[1] - 1
    for i in range(len(squared)):
        row, best = squared[i], values[i]
        for start in range(0, n, _RUN):
            if start + _RUN <= n:
                # Nearly all runs end here: counting without a branch is many times faster than looking one by one.
                worst, nearer = best[last], 0
                for j in range(_RUN):
                    nearer += row[np.uint32(start + j)] < worst
                if not nearer:
                    continue
            for j in range(start, min(start + _RUN, n)):
                if row[j] < best[last]:
                    _put(row[j], names[j], best, chosen[i])


@njit(fastmath=True, nogil=True, cache=True)
def _smallest_of_both(squared, first, second, values, chosen):
    """Do as ``_smallest`` for rows ``first`` on and ``second`` on of ``values`` (all, k), named by their rows."""
    n, last = squared.shape[1], values.shape[1] - 1
    farthest = np.empty(n, np.float32)
    for j in range(n):
        farthest[j] = values[second + j, last]
    for i in range(len(squared)):
        row, best = squared[i], values[first + i]
        for start in range(0, n, _RUN):
            if start + _RUN <= n:
                worst, nearer = best[last], 0
                for j in range(_RUN):
                    at = np.uint32(start + j)
                    nearer += row[at] < max(worst, farthest[at])
                if not nearer:
                    continue
            for j in range(start, min(start + _RUN, n)):
                if row[j] < best[last]:
                    _put(row[j], second + j, best, chosen[first + i])
                if row[j] < farthest[j]:
                    _put(row[j], first + i, values[second + j], chosen[second + j])
                    farthest[j] = values[second + j, last]
