"""The graph of neighbouring cells: unweighted, undirected, without self loops.

Contract: cells i and j are joined when either is among the ``k`` nearest of the other in Euclidean distance, ``k``
not counting the cell itself. Cells at the same place are neighbours like any others. Points without coordinates have
no neighbours. Up to ``EXACT_CELLS`` cells every distance is looked at; above, cells are searched for in the nearest of
many lists (``cellray.refine.lists``), as many of them as it takes to find ``RECALL`` of the neighbours of a sample, and
what was found of it is told. With batches, every cell gets equally many neighbours from each of them, as
in BBKNN (Polanski et al. 2020). It does not weight edges, prune hubs or connect components.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from cellray.errors import RefineError
from cellray.refine.closest import nearest_of_all
from cellray.refine.lists import Lists

EXACT_CELLS = 20_000
RECALL = 0.995  # aimed at on one sample, so that 0.99 holds on another
_SAMPLE = 500


@dataclass(frozen=True)
class Neighbours:
    """Directed neighbours.

    Attributes
    ----------
    indices
        (n, k) int32, a cell's neighbours in no promised order; -1 where there are fewer.
    search
        ``exact``, ``nearby lists`` or ``none``.
    recall
        Share of the true neighbours of a sample of cells that was found.
    order
        (n,) the cells in an order that keeps near ones together, if the search came by one.
    """

    indices: np.ndarray
    search: str
    recall: float
    order: np.ndarray | None = None


def nearest(
    points: np.ndarray,
    k: int = 15,
    *,
    batches: np.ndarray | None = None,
    seed: int = 0,
    exact_cells: int = EXACT_CELLS,
) -> Neighbours:
    """Find the nearest other cells of every cell.

    Parameters
    ----------
    points
        (n, p) float32 coordinates.
    k
        Neighbours of a cell; at most ``n - 1`` are taken.
    batches
        (n,) integer batch of each cell: ``max(1, k // number of batches)`` neighbours are taken from each.
    seed
        Of the lists and the sample.
    exact_cells
        Largest number of cells that is searched exhaustively.
    """
    n_cells = len(points)
    k = min(k, n_cells - 1)
    if k < 1 or points.shape[1] == 0:
        return Neighbours(np.empty((n_cells, 0), np.int32), "none", 1.0)
    points = np.ascontiguousarray(points, dtype=np.float32)
    points = points - points.mean(axis=0, dtype=np.float64).astype(np.float32)  # far from 0, differences would drown
    everyone = np.arange(n_cells)
    if batches is None:
        return _among(points, everyone, k, seed, exact_cells)
    kinds = np.unique(batches)
    share = max(1, k // len(kinds))
    parts = [_among(points, np.flatnonzero(batches == kind), share, seed, exact_cells) for kind in kinds]
    search = "exact" if all(part.search == "exact" for part in parts) else "nearby lists"
    indices = np.concatenate([part.indices for part in parts], axis=1)
    return Neighbours(indices, search, min(part.recall for part in parts))


def directed(indices: np.ndarray) -> sparse.csr_matrix:
    """Point every cell to its ``indices`` (n, k), -1 standing for none; (n, n) float32 ones."""
    n_cells, k = indices.shape
    rows = np.repeat(np.arange(n_cells, dtype=np.int32), k)
    there = indices.ravel() >= 0
    rows, columns = rows[there], indices.ravel()[there]
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(n_cells, n_cells))


def symmetrised(indices: np.ndarray) -> sparse.csr_matrix:
    """Join cells of which either has the other among its ``indices``; (n, n) float32 ones, sorted."""
    edges = directed(indices)
    joined = sparse.csr_matrix(edges.maximum(edges.T))
    joined.sort_indices()
    return joined


def knn_graph(points: np.ndarray, k: int = 15, **more: Any) -> sparse.csr_matrix:
    """Build the symmetrised graph of the ``nearest`` cells."""
    return symmetrised(nearest(points, k, **more).indices)


def existing(graph: sparse.spmatrix, n_cells: int) -> sparse.csr_matrix:
    """Check a graph that came with the data; its weights count, its direction and self loops do not."""
    if graph.shape != (n_cells, n_cells):
        msg = f"the graph has shape {graph.shape}, there are {n_cells} cells"
        raise RefineError(msg)
    found = sparse.csr_matrix(graph, dtype=np.float32, copy=True)
    if not np.isfinite(found.data).all() or np.min(found.data, initial=0) < 0:
        msg = "the graph has weights that are negative or not finite"
        raise RefineError(msg)
    found.setdiag(0)
    found = sparse.csr_matrix(found.maximum(found.T))
    found.eliminate_zeros()
    found.sort_indices()
    return found


def _among(points: np.ndarray, some: np.ndarray, k: int, seed: int, exact_cells: int) -> Neighbours:
    """Nearest of the cells ``some`` to every cell; a cell is not its own neighbour."""
    wanted = min(k + 1, len(some))  # a cell finds itself, if it is among them
    base = points[some] if len(some) < len(points) else points
    if len(some) <= exact_cells:
        return Neighbours(_without_self(some, nearest_of_all(points, base, wanted), k), "exact", 1.0)
    lists = Lists(base, seed)
    sample = np.sort(np.random.default_rng(seed).choice(len(points), min(_SAMPLE, len(points)), replace=False))
    recall = lists.reach_for(points[sample], nearest_of_all(points[sample], base, wanted), RECALL)
    if len(some) < len(points):
        return Neighbours(_without_self(some, lists.search(points, wanted), k), "nearby lists", recall)
    return Neighbours(_without_self(some, lists.search_each_other(wanted), k), "nearby lists", recall, lists.chain())


def _without_self(some: np.ndarray, found: np.ndarray, k: int) -> np.ndarray:
    """Name neighbours by cell and take each cell out of its own list, or else its last neighbour; (n, k) int32."""
    names = np.where(found >= 0, some[found], -1).astype(np.int32)
    own = names == np.arange(len(names), dtype=np.int32)[:, None]
    if names.shape[1] <= k:  # too few cells to choose from: nothing is left over
        names[own] = -1
        return names
    # A cell that is not in its own list (of another batch, or crowded out by duplicates) has one neighbour too many.
    own[~own.any(axis=1), -1] = True
    return names[~own].reshape(len(names), k)
