"""Refined scores to groups of uncertain cells: what a language model is asked about, within a budget of cells.

Contract: a cell is uncertain if its runner-up is nearly as good as its winner. Uncertain cells of one Leiden cluster
and one donor are a group. The budget of cells goes to the groups of the smallest margin, as evenly as their sizes
allow, and in a group to its least certain cells. Deterministic given the seed. It knows labels by number alone and
asks nobody.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

_FEWEST = 3  # cells of a group worth a question
_PLAUSIBLE = 4
_LEAST_SHARE = 0.05  # of the best label's mean score, for another to be plausible


@dataclass(frozen=True)
class Group:
    """Cells to be labelled as one.

    Attributes
    ----------
    cells
        (m,) int64, which of the scored cells, ascending.
    donor
        Theirs, empty where donors are not known.
    plausible
        Numbers of labels, the best by mean score first: two to four.
    margin
        Of the mean scores: (best - second) / best, 0 to 1.
    """

    cells: np.ndarray
    donor: str
    plausible: tuple[int, ...]
    margin: float


def relative_margin(p: np.ndarray) -> np.ndarray:
    """Return (n,) float32: by how much of itself the best score of each row of ``p`` (n, c) leads; 0 if all are 0."""
    two = np.partition(p, -2, axis=1)[:, -2:]
    return np.where(two[:, 1] > 0, (two[:, 1] - two[:, 0]) / np.maximum(two[:, 1], 1e-30), 0).astype(np.float32)


def uncertain_groups(
    p: np.ndarray,
    graph: sparse.csr_matrix,
    donors: np.ndarray,
    among: np.ndarray,
    *,
    share: float,
    margin: float,
    seed: int = 0,
) -> list[Group]:
    """Choose the groups to ask about.

    Parameters
    ----------
    p
        (n, c) refined scores.
    graph
        (n, n) neighbours of the cells.
    donors
        (n,) str.
    among
        (n,) bool, the cells that may be chosen.
    share
        Of the n cells, at most so many are chosen.
    margin
        A cell is uncertain if its relative margin is below.

    Returns
    -------
    list of Group
        The least certain first.
    """
    budget = int(share * len(p))
    lead = relative_margin(p)
    uncertain = np.flatnonzero((lead < margin) & among)
    if budget < _FEWEST or len(uncertain) < _FEWEST:
        return []
    clusters = leiden(graph, seed)
    numbers = np.unique(donors[uncertain], return_inverse=True)[1]
    kinds = np.unique(np.stack([clusters[uncertain], numbers]), axis=1, return_inverse=True)[1].reshape(-1)
    order = np.argsort(kinds, kind="stable")
    members = np.split(uncertain[order], np.flatnonzero(np.diff(kinds[order])) + 1)
    means = [p[cells].mean(axis=0) for cells in members]
    leads = [float(relative_margin(mean[None])[0]) for mean in means]
    asked = sorted(
        (at for at in range(len(members)) if len(members[at]) >= _FEWEST), key=lambda at: (leads[at], members[at][0])
    )[: budget // _FEWEST]
    most = _even(np.array([len(members[at]) for at in asked]), budget)
    found = []
    for at in asked:
        least_certain = members[at][np.argsort(lead[members[at]], kind="stable")]
        cells = np.sort(least_certain[:most])
        found.append(Group(cells, str(donors[cells[0]]), _plausible(p[cells].mean(axis=0)), leads[at]))
    return found


def leiden(graph: sparse.csr_matrix, seed: int = 0) -> np.ndarray:
    """Return (n,) int64 communities of a graph (Traag et al., arXiv 1810.08473; modularity, resolution 1)."""
    import anndata
    import scanpy as sc

    cells = anndata.AnnData(shape=(graph.shape[0], 0))
    sc.tl.leiden(cells, adjacency=graph, flavor="igraph", directed=False, n_iterations=2, random_state=seed)
    return cells.obs["leiden"].to_numpy().astype(np.int64)


def _even(sizes: np.ndarray, budget: int) -> int:
    """Return the largest number of cells that every group may have, if it has as many, within the budget."""
    low, high = 0, budget
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= budget else (low, middle - 1)
    return low


def _plausible(mean: np.ndarray) -> tuple[int, ...]:
    best = np.argsort(-mean, kind="stable")[:_PLAUSIBLE]
    kept = [int(at) for at in best if mean[at] >= _LEAST_SHARE * mean[best[0]]]
    return tuple(kept if len(kept) > 1 else best[:2].tolist())
