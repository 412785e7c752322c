"""Cells in lists around k-means centres, to find neighbours without looking at every distance.

Contract: all cells of a list are looked up in the same nearby lists, so that their distances are matrix products,
several times faster than an index that serves every cell by itself. How far apart two lists may be, in units of their
own spreads, is read off the true neighbours of a sample: a list amid a large cloud looks into many others, one of a
small cloud into few. Among its candidates the search is exhaustive. Looked up among themselves, the cells of two lists
are compared once, for both. The same points and seed give the same lists on the same machine.
"""

import numpy as np

from cellray.refine.closest import Closest

_CELLS_PER_LIST = 200
_LISTS_PER_ROOT = 1
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
        near = self._near(k)
        for number in np.flatnonzero(np.diff(starts)):
            some = order[starts[number] : starts[number + 1]]
            best = Closest(points[some], k)
            around = self._around[number]
            for one in around[near[number, around]]:
                best.among(self._base[self._cells(one)], self._order[self._cells(one)])
            found[some] = best.names
        return found

    def search_each_other(self, k: int) -> np.ndarray:
        """Return the k nearest of ``base`` to each of its cells, which finds itself: ``search`` at half the cost."""
        best = Closest(self._base, k)
        for number in np.flatnonzero(self._sizes):
            best.within(self._cells(int(number)))
        some, others = np.nonzero(np.triu(self._near(k), 1))
        # From the nearest pair of lists outwards, so that what is near enough is soon known and seldom replaced.
        for pair in np.argsort(self._apart[some, others], kind="stable"):
            best.between(self._cells(some[pair]), self._cells(others[pair]))
        found = np.empty_like(best.names)
        found[self._order] = np.where(best.names >= 0, self._order[best.names], -1)
        return found

    def chain(self) -> np.ndarray:
        """Return the cells of ``base`` list by list, each list followed by the nearest one that is left, (n,) int64."""
        left, at, rank = np.ones(len(self._centres), bool), 0, np.empty(len(self._centres), np.int64)
        for step in range(len(rank)):
            rank[at], left[at] = step, False
            around = self._around[at]
            at = int(around[left[around].argmax()])
        return np.argsort(rank[self._list_of], kind="stable")

    def _cells(self, number: int) -> slice:
        return slice(self._starts[number], self._starts[number + 1])

    def _near(self, k: int) -> np.ndarray:
        """Say which lists are compared, symmetrically: those in reach, and others until there are ``k`` candidates."""
        sizes = self._sizes[self._around]
        few = np.empty(self._apart.shape, bool)
        np.put_along_axis(few, self._around, np.cumsum(sizes, axis=1) - sizes < k, axis=1)
        return few | few.T | (self._apart <= self.reach)

    def _nearest_centre(self, points: np.ndarray) -> np.ndarray:
        import faiss

        return faiss.knn(points, self._centres, 1)[1].ravel()


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distances."""
    lengths = (np.einsum("ij,ij->i", one, one, dtype=np.float64) for one in (some, others))
    return np.add.outer(*lengths) - 2 * (some @ others.T)
