"""The graph of neighbouring cells: unweighted, undirected, without self loops.

Contract: cells i and j are joined when either is among the ``k`` nearest of the other in Euclidean distance, ``k``
not counting the cell itself. Cells at the same place are neighbours like any others. Points without coordinates have
no neighbours. Neighbours are exact up to ``EXACT_CELLS`` cells; above that they come from a seeded nearest-neighbour
descent, which misses a few of them. It does not weight edges, prune hubs or connect components.
"""

import numpy as np
from scipy import sparse

EXACT_CELLS = 50_000


def knn_graph(points: np.ndarray, k: int = 15, *, seed: int = 0, exact_cells: int = EXACT_CELLS) -> sparse.csr_matrix:
    """Build the symmetrised k-nearest-neighbour graph.

    Parameters
    ----------
    points
        (n, p) float32 coordinates.
    k
        Neighbours of a cell; at most ``n - 1`` are taken.
    seed
        Of the approximate search.
    exact_cells
        Largest number of cells that is searched exhaustively.

    Returns
    -------
    csr_matrix
        (n, n) float32 adjacency, symmetric, ones only, empty diagonal, sorted indices.
    """
    n_cells, n_coordinates = points.shape
    k = min(k, n_cells - 1)
    if k < 1 or n_coordinates == 0:
        return sparse.csr_matrix((n_cells, n_cells), dtype=np.float32)
    neighbours = _exact(points, k) if n_cells <= exact_cells else _approximate(points, k, seed)
    rows = np.repeat(np.arange(n_cells), neighbours.shape[1])
    columns = neighbours.ravel()
    other = rows != columns
    ones = np.ones(np.count_nonzero(other), dtype=np.float32)
    directed = sparse.csr_matrix((ones, (rows[other], columns[other])), shape=(n_cells, n_cells))
    return directed.maximum(directed.T).tocsr()


def _exact(points: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    # Asked without a query, scikit-learn leaves each point out of its own neighbours by index, duplicates or not.
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors(return_distance=False)


def _approximate(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    from pynndescent import NNDescent

    found, _ = NNDescent(points, n_neighbors=k + 1, metric="euclidean", random_state=seed).neighbor_graph
    # A cell that is not in its own list (duplicates crowd it out) has one neighbour too many: the farthest goes.
    own = found == np.arange(len(found))[:, None]
    own[~own.any(axis=1), -1] = True
    return found[~own].reshape(len(found), k)
