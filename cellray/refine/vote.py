"""The GRIT paper's two baselines: a cell takes the most frequent label, or the mean scores, of its neighbourhood.

Contract: the neighbourhood is the cell itself and its directed nearest neighbours (Hu et al., arXiv 2508.04747,
section 4). One pass, no smoothing beyond one step. A tied vote goes to the label with the larger mean score.
"""

import numpy as np
from scipy import sparse

from cellray.refine.graph import directed

_TIE = 1e-3  # share of the mean scores in a vote, far below one vote of any neighbourhood


def neighbourhoods(indices: np.ndarray) -> sparse.csr_matrix:
    """Return the (n, n) matrix that averages over each cell and its ``indices`` (n, k); -1 stands for none."""
    return _averaging(directed(indices))


def around(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the averaging matrix of a given graph: each cell and those it is joined to, all alike."""
    members = graph.copy()
    members.data = np.ones_like(members.data)
    return _averaging(members)


def average(members: sparse.csr_matrix, p0: np.ndarray) -> np.ndarray:
    """Mean scores of every neighbourhood, (n, c) float32."""
    return np.asarray(members @ p0, np.float32)


def majority(members: sparse.csr_matrix, p0: np.ndarray) -> np.ndarray:
    """Share of every label in every neighbourhood, (n, c) float32; ties are broken by a trace of the mean scores."""
    votes = np.zeros_like(p0, dtype=np.float32)
    votes[np.arange(len(p0)), p0.argmax(axis=1)] = 1
    return average(members, (1 - _TIE) * votes + _TIE * p0)


def _averaging(members: sparse.csr_matrix) -> sparse.csr_matrix:
    with_self = sparse.csr_matrix(members + sparse.eye_array(members.shape[0], dtype=np.float32, format="csr"))
    return sparse.csr_matrix(sparse.diags_array(1 / np.asarray(with_self.sum(axis=1)).ravel()) @ with_self)
