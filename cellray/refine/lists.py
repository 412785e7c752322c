"""Cells in lists around k-means centres, to find neighbours without looking at every distance.

Contract: all cells of a list are looked up in the same nearby lists, so that their distances are matrix products,
several times faster than an index that serves every cell by itself. How far apart two lists may be, in units of their
own spreads, is read off the true neighbours of a sample: a list amid a large cloud looks into many others, one of a
small cloud into few. Among its candidates the search is exhaustive. The same points and seed give the same lists on
the same machine.
"""

import numpy as np
from numba import njit

_CELLS_PER_LIST = 200
_LISTS_PER_ROOT = 1
_RUN = 64
_ROWS, _COLUMNS = 512, 512  # of distances held at a time
_FAR = np.float32(3e38)
_TINY = 1e-12


class Lists:
    """Cells of ``base`` (n, p) float32 in lists; those of a list are looked up in those at most ``reach`` from it.

    Parameters
    ----------
    base
        The cells to be found.
    seed
        Of the centres.
    """

    def __init__(self, base: np.ndarray, seed: int) -> None:
        import faiss

        n_lists = max(1, min(len(base) // _CELLS_PER_LIST, int(_LISTS_PER_ROOT * len(base) ** 0.5)))
        means = faiss.Kmeans(
            base.shape[1], n_lists, niter=5, seed=seed + 1, min_points_per_centroid=1, max_points_per_centroid=32
        )
        means.train(base)
        self._centres = np.asarray(means.centroids)
        self._list_of = self._nearest_centre(base)
        self._order = np.argsort(self._list_of, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(self._list_of[self._order], np.arange(n_lists + 1))
        self._base = base[self._order]
        self._norms = np.einsum("ij,ij->i", self._base, self._base)
        self._sizes = np.diff(self._starts)
        away = base - self._centres[self._list_of]
        spread = np.bincount(self._list_of, np.einsum("ij,ij->i", away, away), n_lists) / np.maximum(self._sizes, 1)
        squared = np.maximum(_distances(self._centres, self._centres), 0)
        np.fill_diagonal(squared, 0)
        self._apart = squared / (spread[:, None] + spread + _TINY)
        self._around = np.argsort(squared, axis=1, kind="stable").astype(np.int32)
        self.reach = np.inf

    def reach_for(self, points: np.ndarray, neighbours: np.ndarray, share: float) -> float:
        """Set ``reach`` so that ``share`` of the true ``neighbours`` (m, k) of ``points`` is found; returns what is."""
        needed = np.sort(self._apart[self._nearest_centre(points)[:, None], self._list_of[neighbours]].ravel())
        self.reach = float(needed[int(np.ceil(share * len(needed))) - 1])
        return float(np.mean(needed <= self.reach))

    def search(self, points: np.ndarray, k: int) -> np.ndarray:
        """Return the k nearest of ``base`` among the candidates of each point, (n, k) int32; -1: there are fewer."""
        found = np.empty((len(points), k), np.int32)
        list_of = self._nearest_centre(points)
        order = np.argsort(list_of, kind="stable")
        starts = np.searchsorted(list_of[order], np.arange(len(self._centres) + 1))
        for number in np.flatnonzero(np.diff(starts)):
            some = order[starts[number] : starts[number + 1]]
            best = _Best(points[some], k)
            around = self._around[number]
            enough = np.cumsum(self._sizes[around]) - self._sizes[around] < k
            for one in around[enough | (self._apart[number, around] <= self.reach)]:
                own = slice(self._starts[one], self._starts[one + 1])
                best.among(self._base[own], self._norms[own], self._order[own])
            found[some] = best.names
        return found

    def chain(self) -> np.ndarray:
        """Return the cells of ``base`` list by list, each list followed by the nearest one that is left, (n,) int64."""
        left, at, rank = np.ones(len(self._centres), bool), 0, np.empty(len(self._centres), np.int64)
        for step in range(len(rank)):
            rank[at], left[at] = step, False
            around = self._around[at]
            at = int(around[left[around].argmax()])
        return np.argsort(rank[self._list_of], kind="stable")

    def _nearest_centre(self, points: np.ndarray) -> np.ndarray:
        import faiss

        return faiss.knn(points, self._centres, 1)[1].ravel()


def nearest_of_all(points: np.ndarray, base: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest of ``base`` (n, p) for each of ``points`` (m, p), comparing with all; (m, k) int32."""
    found = np.empty((len(points), k), np.int32)
    norms, names = np.einsum("ij,ij->i", base, base), np.arange(len(base), dtype=np.int32)
    for at in range(0, len(points), _ROWS):
        best = _Best(points[at : at + _ROWS], k)
        best.among(base, norms, names)
        found[at : at + _ROWS] = best.names
    return found


class _Best:
    """The k nearest so far of each of ``points``: ``names`` (m, k) int32, -1 where there are fewer."""

    def __init__(self, points: np.ndarray, k: int) -> None:
        self._points = points
        self._values = np.full((len(points), k), _FAR, np.float32)
        self.names = np.full((len(points), k), -1, np.int32)

    def among(self, base: np.ndarray, norms: np.ndarray, names: np.ndarray) -> None:
        """Compare with (n, p) others of squared ``norms``, in blocks that stay in the processor's cache."""
        for first in range(0, len(self.names), _ROWS):
            rows = slice(first, first + _ROWS)
            for at in range(0, len(base), _COLUMNS):
                block = slice(at, at + _COLUMNS)
                products = self._points[rows] @ base[block].T
                _smallest(products, norms[block], names[block], self._values[rows], self.names[rows])


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distances."""
    lengths = (np.einsum("ij,ij->i", one, one, dtype=np.float64) for one in (some, others))
    return np.add.outer(*lengths) - 2 * (some @ others.T)


@njit(fastmath=True, nogil=True, cache=True)
def _smallest(products, norms, names, values, chosen):
    """Put ``norms - 2 * products`` (m, n) and ``names`` where they are smaller than the sorted ``values`` (m, k)."""
    n, last = len(norms), values.shape[1] - 1
    two = np.float32(2)
    for i in range(len(products)):
        row, best, own = products[i], values[i], chosen[i]
        for start in range(0, n, _RUN):
            if start + _RUN <= n:
                # Nearly all runs end here: counting without a branch is many times faster than looking one by one.
                worst, nearer = best[last], 0
                for j in range(_RUN):
                    nearer += norms[np.uint32(start + j)] - two * row[np.uint32(start + j)] < worst
                if not nearer:
                    continue
            for j in range(start, min(start + _RUN, n)):
                value = norms[j] - two * row[j]
                if value < best[last]:
                    at = last
                    while at > 0 and best[at - 1] > value:
                        best[at], own[at] = best[at - 1], own[at - 1]
                        at -= 1
                    best[at], own[at] = value, names[j]
