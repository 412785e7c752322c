"""GRIT: scores of a dataset's cells smoothed over the graph of its cells (Hu et al., arXiv 2508.04747).

Contract: principal components of the raw counts, their symmetrised k-nearest-neighbour graph, and the solution of
(I + lam L) P = P0. Every row keeps its sum, every class keeps its total, connected components do not mix, and no score
leaves the range its class had. The label of a cell is the largest score of its row; choosing it, and deciding which
cells take part, is the caller's business. Nothing is trained and ``lam`` is not tuned.

Readings of the paper, and deviations from it:

1. Its preprocessing appendix ("standard Scanpy") is not published with it. The 2,000 highly variable genes of flavour
   "seurat", the scaling clipped at 10 and the absence of any filter are our reading; each is in ``settings``.
2. ``k`` does not count the cell itself. Read the other way, its graph is ours for ``k - 1``.
3. Its "logits" are rows of probabilities, taken as they are: no softmax before or after.
4. It factorises the matrix once per class; here conjugate gradients solve all classes at once, to the same numbers.
5. Neighbours are approximate above ``graph.EXACT_CELLS`` cells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from cellray.errors import RefineError
from cellray.refine.graph import EXACT_CELLS, knn_graph
from cellray.refine.pca import principal_components
from cellray.refine.solve import energy, solve

_LIBRARIES_BYTES = 600 << 20  # Python with scanpy, scikit-learn and their compiled code


@dataclass(frozen=True)
class Refinement:
    """Refined scores ``p`` (n, c) float32, components ``points`` (n, p) float32, and JSON-ready ``diagnostics``."""

    p: np.ndarray
    points: np.ndarray
    diagnostics: dict[str, Any]


def refine(p0: np.ndarray, counts: sparse.csr_matrix, *, lam: float, k: int, n_pcs: int, seed: int = 0) -> Refinement:
    """Smooth the scores of one dataset.

    Parameters
    ----------
    p0
        (n cells, c labels) float32 probabilities of the encoder.
    counts
        (n cells, genes) raw counts of the same cells in the same order, all genes of the dataset.
    lam
        Strength, >= 0; 0 leaves the scores as they are.
    k
        Neighbours of a cell, without itself.
    n_pcs
        Principal components that distances are measured in.
    seed
        Of the principal components and of the approximate neighbour search.

    Returns
    -------
    Refinement
        ``diagnostics`` holds ``n_cells``, ``n_edges``, ``lam``, ``k`` and ``n_pcs`` (as used), ``n_changed`` (cells
        whose label is another now), ``iterations`` and ``residual`` of the solver, and before and after:
        ``edge_disagreement`` (share of edges between cells of different labels), ``energy`` (Tr(P' L P), the paper's
        logit consistency) and ``class_masses`` (column sums); ``settings`` has one entry a step.

    Raises
    ------
    RefineError
        If scores and counts do not belong together, a value is not finite or negative, or the solver does not converge.
    """
    if p0.ndim != 2 or p0.shape[0] != counts.shape[0]:
        msg = f"scores of shape {p0.shape} do not belong to the counts of {counts.shape[0]} cells"
        raise RefineError(msg)
    for what, values in (("scores", p0), ("counts", counts.data)):
        if not np.isfinite(values).all() or np.min(values, initial=0) < 0:
            msg = f"{what} hold values that are negative or not finite; leave those cells out before refining"
            raise RefineError(msg)
    points, pca_settings = principal_components(counts, n_pcs=n_pcs, seed=seed)
    graph = knn_graph(points, k, seed=seed)
    solution = solve(graph, p0, lam)
    p = np.maximum(solution.p, 0).astype(np.float32)  # the exact solution is not negative: only rounding is cut
    n_cells = len(p0)
    diagnostics = {
        "n_cells": n_cells,
        "n_edges": graph.nnz // 2,
        "lam": lam,
        "k": max(0, min(k, n_cells - 1)),
        "n_pcs": points.shape[1],
        "n_changed": int(np.count_nonzero(p.argmax(axis=1) != p0.argmax(axis=1))),
        "iterations": solution.iterations,
        "residual": solution.residual,
        "edge_disagreement_before": _edge_disagreement(graph, p0),
        "edge_disagreement_after": _edge_disagreement(graph, p),
        "energy_before": energy(graph, p0),
        "energy_after": energy(graph, p),
        "class_masses_before": p0.sum(axis=0, dtype=np.float64).tolist(),
        "class_masses_after": p.sum(axis=0, dtype=np.float64).tolist(),
        "settings": {
            "pca": pca_settings,
            "graph": {"search": "exact" if n_cells <= EXACT_CELLS else "nndescent", "seed": seed},
            "solve": {"method": "conjugate gradients", "preconditioner": "diagonal"},
        },
    }
    return Refinement(p, points, diagnostics)


def memory_bytes(n: int, c: int, k: int, nnz: int, n_top_genes: int = 2000) -> int:
    """Estimate from above the peak memory of a process that calls ``refine``, in bytes, inputs and libraries too.

    Parameters
    ----------
    n, c, k
        Cells, labels and neighbours.
    nnz
        Non-zero counts of the dataset.
    n_top_genes
        Highly variable genes, which are made dense.
    """
    matrix = 4 * nnz * 8  # the caller's counts, ours, and two passing copies while genes are selected
    dense = 3 * n * n_top_genes * 8  # selected genes in float64: scaled, centred for the decomposition, and in passing
    graph = 4 * (2 * n * k) * 16  # at most 2 k entries a cell, as index pairs, both directions and in float64
    scores = 10 * n * c * 8  # what the solver iterates on
    return _LIBRARIES_BYTES + matrix + max(dense, graph + scores)


def _edge_disagreement(graph: sparse.csr_matrix, p: np.ndarray) -> float:
    edges = graph.tocoo()
    labels = p.argmax(axis=1)
    return float(np.mean(labels[edges.row] != labels[edges.col])) if edges.nnz else 0.0
