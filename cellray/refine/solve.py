"""Graph-regularised least squares: the P that minimises sum_i w_i ||P_i - P0_i||^2 + lam Tr(P' L P).

Contract: solves (W + lam L) P = W P0, where ``L = D - A`` is the unnormalised Laplacian and W the diagonal of
``weights``, all 1 unless given; a cell of infinite weight keeps its scores. Large systems: conjugate gradients with
the diagonal as preconditioner and an independent recurrence per class (Hestenes and Stiefel 1952), in float32 on
blocks of classes over cells ordered for locality, started again on the float64 residual until
that is small enough: convergence is measured, not assumed. With weights of at least 1 the inverse has norm at most 1,
so the residual bounds the error. Small systems: one factorisation. It does not know what the columns mean, and it does
not clip or normalise them.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee

from cellray.errors import RefineError
from cellray.refine import kernels
from cellray.refine.kernels import WIDTH

DIRECT_CELLS = 500
MAX_LAM = 1e30
"""Larger strengths and weights would leave the range of float32; no result differs long before."""
_Edges = tuple[np.ndarray, np.ndarray, np.ndarray]  # of a CSR matrix
_MAX_ITERATIONS = 5_000
_PATIENCE = 300  # iterations without a smaller residual
_AIM = 0.5  # of the tolerance: what a float32 round stops at, so that the float64 check seldom asks for another


@dataclass(frozen=True)
class Solution:
    """``p`` (n, c) float64; ``residual`` bounds ||W P0 - (W + lam L) P|| / ||W P0|| of every class."""

    p: np.ndarray
    iterations: int
    residual: float


def solve(
    graph: sparse.csr_matrix,
    p0: np.ndarray,
    lam: float,
    *,
    weights: np.ndarray | None = None,
    order: np.ndarray | None = None,
    tol: float = 1e-5,
    direct_cells: int = DIRECT_CELLS,
) -> Solution:
    """Solve (W + lam L) P = W P0.

    Parameters
    ----------
    graph
        (n, n) symmetric non-negative adjacency with an empty diagonal.
    p0
        (n, c) scores.
    lam
        Strength of the smoothing, 0 to ``MAX_LAM``; 0 gives ``p0``.
    weights
        (n,) trust in each cell's scores, > 0; infinite holds them. None: 1 everywhere.
    order
        (n,) the cells in an order that keeps joined ones together; None to find one (reverse Cuthill-McKee).
    tol
        Relative residual to reach in every class, in float64.
    direct_cells
        Largest system that is factorised.

    Raises
    ------
    RefineError
        If ``lam``, a weight or a score is not usable, or the residual stays above ``tol``.
    """
    b, w = _checked(p0, lam, weights)
    free = np.isfinite(w)
    if not free.all():
        return _around_held(graph, b, lam, w, free, order, tol, direct_cells)
    if lam == 0 or len(b) == 0:
        return Solution(b, 0, 0.0)
    system, right = _System(graph, lam, w), w[:, None] * b
    if len(b) <= direct_cells:
        p, iterations = system.factorised(right), 0
        residual = system.residual(right, p)
    else:
        p, iterations, residual = _conjugate_gradients(system, right, b, order, tol)
    if not residual <= tol:
        msg = f"lam {lam:g}: residual {residual:.1e} after {iterations} iterations, wanted {tol:.0e}; use a smaller lam"
        raise RefineError(msg)
    return Solution(p, iterations, residual)


def solve_direct(graph: sparse.csr_matrix, p0: np.ndarray, lam: float, weights: np.ndarray | None = None) -> np.ndarray:
    """Solve for finite ``weights`` by one float64 factorisation: the reference, whose fill-in explodes with size."""
    b, w = _checked(p0, lam, weights)
    return _System(graph, lam, w).factorised(w[:, None] * b)


def energy(graph: sparse.csr_matrix, p: np.ndarray) -> float:
    """Return Tr(P' L P), the sum over edges of the squared distance between the scores of their two cells."""
    degrees = np.asarray(graph.sum(axis=1), np.float64).ravel()
    return sum(
        float(np.sum(block * (degrees[:, None] * block - graph @ block)))
        for block in (p[:, at : at + WIDTH].astype(np.float64) for at in range(0, p.shape[1], WIDTH))
    )


class _System:
    """The matrix W + lam L: float32 weights of the edges, float64 diagonal."""

    def __init__(self, graph: sparse.csr_matrix, lam: float, w: np.ndarray) -> None:
        self.graph, self.lam, self.w = graph, lam, w
        self.diagonal = w + lam * np.asarray(graph.sum(axis=1), np.float64).ravel()

    def factorised(self, b: np.ndarray) -> np.ndarray:
        from scipy.sparse.linalg import spsolve

        matrix = sparse.diags_array(self.diagonal) - self.lam * self.graph.astype(np.float64)
        return spsolve(sparse.csc_matrix(matrix), b).reshape(b.shape)

    def residual(self, b: np.ndarray, p: np.ndarray) -> float:
        """Largest relative residual of a class."""
        largest = 0.0
        for at in range(0, b.shape[1], WIDTH):
            part, x = b[:, at : at + WIDTH], p[:, at : at + WIDTH]
            left = np.linalg.norm(part - self.diagonal[:, None] * x + self.lam * (self.graph @ x), axis=0)
            scale = np.linalg.norm(part, axis=0)
            largest = max(largest, float(np.max(left / np.where(scale > 0, scale, 1.0))))
        return largest

    def permuted(self, order: np.ndarray) -> "_System":
        return _System(sparse.csr_matrix(self.graph[order][:, order]), self.lam, self.w[order])


def _conjugate_gradients(
    system: _System, b: np.ndarray, start: np.ndarray, order: np.ndarray | None, tol: float
) -> tuple[np.ndarray, int, float]:
    """Solve for all classes, block by block; returns P, the most iterations and the largest residual of a block."""
    if order is None:
        order = reverse_cuthill_mckee(system.graph, symmetric_mode=True)
    local = system.permuted(order)
    p, most, largest = np.empty_like(b), 0, 0.0
    for at in range(0, b.shape[1], WIDTH):
        columns = slice(at, min(at + WIDTH, b.shape[1]))
        right, x = (np.zeros((len(b), WIDTH)) for _ in range(2))
        right[:, : columns.stop - at] = b[order, columns]
        x[:, : columns.stop - at] = start[order, columns]
        iterations, residual = _block(local, right, x, tol)
        most, largest = max(most, iterations), max(largest, residual)
        p[order, columns] = x[:, : columns.stop - at]
    return p, most, largest


def _block(system: _System, b: np.ndarray, x: np.ndarray, tol: float) -> tuple[int, float]:
    """Improve ``x`` in place until its float64 residual is small or stops falling; returns iterations and residual.

    ``b`` is used up. A round that gets nowhere in float32 (an enormous ``lam``) is followed by rounds in float64.
    """
    edges = (system.graph.indptr, system.graph.indices, system.graph.data.astype(np.float32, copy=False))
    # Classes differ by many orders of magnitude, and squares of small scores would vanish in float32.
    norm = np.linalg.norm(b, axis=0)
    scale = 2.0 ** np.floor(np.log2(np.where(norm > 0, norm, 1)))  # a power of two, so that nothing is rounded
    b /= scale
    x /= scale
    squares, last, iterations = np.empty(WIDTH), np.inf, 0
    precision: type[np.floating] = np.float32
    before = x.copy()
    while True:
        r = np.empty(b.shape, precision)
        kernels.remainder(*edges, system.diagonal, system.lam, b, x, r, squares)
        worst = float(np.sqrt(squares.max()))
        # Not finite: a lam or a weight is out of the range of float32, or even of float64.
        stuck = worst > last / 2 or not np.isfinite(worst)
        if worst <= tol or (stuck and precision is np.float64):
            x *= scale
            return iterations, worst
        if stuck:
            x[:] = before
            precision, last = np.float64, np.inf
            continue
        last = worst
        before = x.copy()
        moved, done = _round(edges, system.diagonal.astype(precision), precision(system.lam), r, _AIM * tol)
        x += moved
        iterations += done


def _round(edges: _Edges, diagonal: np.ndarray, lam: np.floating, r: np.ndarray, goal: float) -> tuple[np.ndarray, int]:
    """Solve for the right-hand side ``r``, which is used up, in its precision; returns the solution and iterations."""
    inverse = 1 / diagonal
    p = r * inverse[:, None]
    q, moved = np.empty_like(p), np.zeros_like(p)
    rz = np.einsum("ij,ij->j", r, p, dtype=np.float64)
    new_rz, rr, pq = np.empty(WIDTH), np.empty(WIDTH), np.empty(WIDTH)
    best, best_at, iterations = np.inf, 0, 0
    # Rounding can keep the recurrence from its goal; the caller sees the residual and goes on in float64.
    while best > goal and iterations - best_at < _PATIENCE and iterations < _MAX_ITERATIONS:
        kernels.multiply(*edges, diagonal, lam, p, q, pq)
        kernels.advance(_ratio(rz, pq).astype(r.dtype), inverse, p, q, moved, r, new_rz, rr)
        kernels.turn(_ratio(new_rz, rz).astype(r.dtype), inverse, r, p)
        rz[:] = new_rz
        iterations += 1
        if (left := float(np.sqrt(rr.max()))) < best:
            best, best_at = left, iterations
    return moved, iterations


def _around_held(
    graph: sparse.csr_matrix,
    b: np.ndarray,
    lam: float,
    w: np.ndarray,
    free: np.ndarray,
    order: np.ndarray | None,
    tol: float,
    direct_cells: int,
) -> Solution:
    """Solve for the free cells; edges to held ones pull them towards scores that are known."""
    inner = sparse.csr_matrix(graph[free][:, free])
    pull = sparse.csr_matrix(graph[free][:, ~free])
    # A cell with edges to held ones trusts its own scores and theirs: one weight, and the mean of both as its scores.
    outward = lam * np.asarray(pull.sum(axis=1), np.float64).ravel()
    weights = w[free] + outward
    wanted = (w[free][:, None] * b[free] + lam * (pull @ b[~free])) / weights[:, None]
    if order is not None:
        order = (np.cumsum(free) - 1)[order[free[order]]]
    found = solve(inner, wanted, lam, weights=weights, order=order, tol=tol, direct_cells=direct_cells)
    p = b.copy()
    p[free] = found.p
    return Solution(p, found.iterations, found.residual)


def _checked(p0: np.ndarray, lam: float, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= lam <= MAX_LAM:
        msg = f"lam is {lam}; it must be a number from 0 to {MAX_LAM:g}"
        raise RefineError(msg)
    b = p0.astype(np.float64)
    if not np.isfinite(b).all():
        row = int(np.argmin(np.isfinite(b).all(axis=1)))
        msg = f"scores of row {row} are not finite: {b[row].tolist()}; the encoder must be run again"
        raise RefineError(msg)
    w = np.ones(len(b)) if weights is None else weights.astype(np.float64)
    usable = (w > 0) & ((w <= MAX_LAM) | np.isinf(w))
    if not usable.all():
        row = int(np.argmin(usable))
        msg = f"the weight of row {row} is {w[row]}; weights must be above 0 and at most {MAX_LAM:g}, or infinite"
        raise RefineError(msg)
    return b, w


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """``above / below``, 0 where a column is solved exactly and both have vanished."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
