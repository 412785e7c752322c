"""GRIT: scores of a dataset's cells smoothed over the graph of its cells (Hu et al., arXiv 2508.04747).

Contract: principal components of the raw counts, their symmetrised k-nearest-neighbour graph, and the solution of
(I + lam L) P = P0; or, for comparison, one of the paper's two baselines on the same neighbours. With GRIT every row
keeps its sum, every class keeps its total, connected components do not mix, and no score leaves the range its class
had. The label of a cell is the largest score of its row; choosing it, and deciding which cells take part, is the
caller's business. Counts are streamed, scores and graph are held. Nothing is trained.

Readings of the paper, and deviations from it:

1. Its preprocessing appendix ("standard Scanpy") is not published with it. The 2,000 highly variable genes of flavour
   "seurat", the scaling clipped at 10 and the absence of any filter are our reading; each is in ``settings``.
2. ``k`` does not count the cell itself. Read the other way, its graph is ours for ``k - 1``.
3. Its "logits" are rows of probabilities, taken as they are: no softmax before or after.
4. It factorises the matrix once per class; here conjugate gradients solve all classes at once, to the same numbers.
5. Neighbours are approximate above ``graph.EXACT_CELLS`` cells; the share found is told.
6. Batches, given graphs and known labels (anchors) are ours: with anchors (W + lam L) P = W P0 is solved, where an
   anchored cell has its known label as P0 and ``anchor_weight`` in W.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import sparse

from cellray.errors import RefineError
from cellray.refine import vote
from cellray.refine.choose import Rule, choose_lam
from cellray.refine.genes import Flavor
from cellray.refine.graph import Neighbours, existing, nearest, symmetrised
from cellray.refine.pca import Blocks, principal_components
from cellray.refine.solve import energy, solve
from cellray.refine.steps import Steps

Method = Literal["grit", "majority", "average"]

_LIBRARIES_BYTES = 700 << 20  # Python with NumPy, SciPy, Numba and Faiss
_BLOCK_BYTES = 500 << 20  # one block of counts as it is read, and one of its chosen genes, made dense


@dataclass(frozen=True)
class Options:
    """How to refine; the defaults are the command line's.

    Attributes
    ----------
    method
        ``grit``, or the paper's baselines ``majority`` and ``average``.
    lam
        GRIT's strength, >= 0; 0 leaves the scores as they are. ``gcv`` and ``loo`` choose it, see
        ``cellray.refine.choose``.
    k
        Neighbours of a cell, without itself.
    n_pcs, n_top_genes, flavor
        Principal components that distances are measured in, of how many genes, chosen how.
    anchor_weight
        Weight of a known label against 1 of a scored one; infinite holds it.
    seed
        Of the approximate neighbour search and of the choice of lam.
    """

    method: Method = "grit"
    lam: float | Rule = 1.0
    k: int = 15
    n_pcs: int = 50
    n_top_genes: int = 2000
    flavor: Flavor = "seurat"
    anchor_weight: float = np.inf
    seed: int = 0


@dataclass(frozen=True)
class Given:
    """What the dataset brings along, all about the same n cells; None is computed or left out.

    Attributes
    ----------
    points
        (n, p) coordinates instead of principal components.
    graph
        (n, n) adjacency instead of nearest neighbours; its weights count.
    batches
        (n,) integers: neighbours are balanced across them.
    anchors
        (n,) integers: the known label of a cell, or -1.
    """

    points: np.ndarray | None = None
    graph: sparse.csr_matrix | None = None
    batches: np.ndarray | None = None
    anchors: np.ndarray | None = None


@dataclass(frozen=True)
class Refinement:
    """Refined scores ``p`` (n, c) float32, ``points`` (n, p) float32, JSON ``diagnostics``, cost of ``steps``.

    ``graph`` is the (n, n) neighbourhood that scores were smoothed over.
    """

    p: np.ndarray
    points: np.ndarray
    diagnostics: dict[str, Any]
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    graph: sparse.csr_matrix | None = None


def refine(p0: np.ndarray, blocks: Blocks, options: Options | None = None, given: Given | None = None) -> Refinement:
    """Smooth the scores of one dataset.

    Parameters
    ----------
    p0
        (n cells, c labels) float32 probabilities of the encoder.
    blocks
        Each call starts a pass over the raw counts of the same cells in the same order, all genes of the dataset.
    options, given
        How, and with what the dataset brings along.

    Returns
    -------
    Refinement
        ``diagnostics`` holds ``n_cells``, ``n_edges``, ``method``, ``lam``, ``k`` and ``n_pcs`` as used, ``n_changed``
        (cells whose label is another now), ``classes_emptied`` (labels that lost all their cells), ``knn_recall``,
        ``iterations`` and ``residual`` of the solver, and before and after: ``edge_disagreement`` (share of edges
        between cells of different labels), ``energy`` (Tr(P' L P), the paper's logit consistency) and
        ``class_masses`` (column sums); ``settings`` has one entry a step.

    Raises
    ------
    RefineError
        If scores and counts do not belong together, a value is not finite or negative, or the solver does not converge.
    """
    options, given, steps = options or Options(), given or Given(), Steps()
    _check_scores(p0)
    points, point_settings = np.zeros((len(p0), 0), np.float32), {"source": "none"}
    if given.points is not None:
        points, point_settings = np.asarray(given.points, np.float32), {"source": "given"}
    elif given.graph is None:
        with steps("pca"):
            points, point_settings = principal_components(
                blocks, n_pcs=options.n_pcs, n_top_genes=options.n_top_genes, flavor=options.flavor
            )
    if len(points) != len(p0):
        msg = f"scores of {len(p0)} cells do not belong to {len(points)} cells with coordinates"
        raise RefineError(msg)
    with steps("graph"):
        if given.graph is not None:
            found = Neighbours(np.empty((len(p0), 0), np.int32), "given", 1.0)
            graph = existing(given.graph, len(p0))
        else:
            found = nearest(points, options.k, batches=given.batches, seed=options.seed)
            graph = symmetrised(found.indices)
    with steps("solve"):
        p, solver = _smooth(p0, graph, found, options, given)
    before, after = p0.argmax(axis=1), p.argmax(axis=1)
    diagnostics = {
        "method": options.method,
        "n_cells": len(p0),
        "n_edges": graph.nnz // 2,
        "k": found.indices.shape[1],
        "n_pcs": points.shape[1],
        "n_changed": int(np.count_nonzero(before != after)),
        "n_anchored": int(np.count_nonzero(given.anchors >= 0)) if given.anchors is not None else 0,
        "classes_emptied": sorted(set(before.tolist()) - set(after.tolist())),
        "knn_recall": found.recall,
        **solver,
        "edge_disagreement_before": _disagreement(graph, before),
        "edge_disagreement_after": _disagreement(graph, after),
        "energy_before": energy(graph, p0),
        "energy_after": energy(graph, p),
        "class_masses_before": p0.sum(axis=0, dtype=np.float64).tolist(),
        "class_masses_after": p.sum(axis=0, dtype=np.float64).tolist(),
        "settings": {
            "points": point_settings,
            "graph": {"search": found.search, "seed": options.seed, "batches": given.batches is not None},
        },
    }
    return Refinement(p, points, diagnostics, steps.found, graph)


def memory_bytes(n: int, c: int, k: int, p: int = 50, n_top_genes: int = 2000) -> int:
    """Estimate from above the peak memory of a process that calls ``refine``, in bytes, libraries too.

    Parameters
    ----------
    n, c, k, p
        Cells, labels, neighbours and coordinates.
    n_top_genes
        Highly variable genes.
    """
    covariance = 4 * n_top_genes**2 * 8
    points = 4 * n * p * 4  # the points, those in the lists, a chunk on its way
    graph = n * (k + 1) * 60  # neighbours with distances, then index pairs in both directions, thrice while they merge
    scores = n * c * (4 + 4 + 4 * 8)  # in and out in float32, in float64 for the solver
    block = n * 32 * (2 * 8 + 4 * 4)  # what one round of the solver iterates on
    return _LIBRARIES_BYTES + _BLOCK_BYTES + covariance + points + graph + scores + block


def _smooth(
    p0: np.ndarray, graph: sparse.csr_matrix, found: Neighbours, options: Options, given: Given
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the refined scores and what the solver says of itself."""
    known = np.flatnonzero(given.anchors >= 0) if given.anchors is not None else np.empty(0, np.int64)
    start, weights = p0, None
    if len(known):
        start = p0.copy()
        start[known] = 0
        start[known, given.anchors[known]] = 1  # type: ignore[index]
        weights = np.ones(len(p0))
        weights[known] = options.anchor_weight
    if options.method == "grit":
        lam: float | Rule = options.lam
        criterion: dict[str, float] = {}
        if isinstance(lam, str):
            lam, criterion = choose_lam(graph, start, lam, options.seed)
        solution = solve(graph, start, lam, weights=weights, order=found.order)
        p = np.maximum(solution.p, 0).astype(np.float32)  # the exact solution is not negative: only rounding is cut
        facts = {"lam": lam, "iterations": solution.iterations, "residual": solution.residual}
        return p, {**facts, "lam_rule": options.lam, "lam_criterion": criterion} if criterion else facts
    members = vote.around(graph) if given.graph is not None else vote.neighbourhoods(found.indices)
    p = vote.majority(members, start) if options.method == "majority" else vote.average(members, start)
    p[known] = start[known]
    return p, {}


def _check_scores(p0: np.ndarray) -> None:
    if p0.ndim != 2:
        msg = f"scores of shape {p0.shape} are no table of cells and labels"
        raise RefineError(msg)
    if not np.isfinite(p0).all() or np.min(p0, initial=0) < 0:
        row = int(np.argmin((np.isfinite(p0) & (p0 >= 0)).all(axis=1)))
        msg = f"scores of row {row} are negative or not finite: {p0[row].tolist()}; the encoder must be run again"
        raise RefineError(msg)


def _disagreement(graph: sparse.csr_matrix, labels: np.ndarray) -> float:
    rows = np.repeat(np.arange(len(labels)), np.diff(graph.indptr))
    return float(np.mean(labels[rows] != labels[graph.indices])) if graph.nnz else 0.0
