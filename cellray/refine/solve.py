"""Graph-regularised least squares: the P that minimises ||P - P0||^2 + lam Tr(P' L P), that is (I + lam L) P = P0.

Contract: ``L = D - A`` is the unnormalised Laplacian. All columns are solved together in float64 by conjugate
gradients with the diagonal as preconditioner, started at P0. The inverse of ``I + lam L`` has norm 1, so the residual
bounds the error. Reference: Hestenes and Stiefel (1952), one independent recurrence per column. It does not know what
the columns mean, and it does not clip or normalise them.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from cellray.errors import RefineError

_MAX_ITERATIONS = 5_000
_ACCEPTED = 1e-6


@dataclass(frozen=True)
class Solution:
    """``p`` (n, c) float64; ``residual`` is the largest over columns of ||P0 - (I + lam L) P|| / ||P0||."""

    p: np.ndarray
    iterations: int
    residual: float


def solve(graph: sparse.csr_matrix, p0: np.ndarray, lam: float, *, tol: float = 1e-10) -> Solution:
    """Solve (I + lam L) P = P0 by preconditioned conjugate gradients.

    Parameters
    ----------
    graph
        (n, n) symmetric non-negative adjacency with an empty diagonal.
    p0
        (n, c) scores.
    lam
        Strength of the smoothing, finite and >= 0; 0 gives ``p0``.
    tol
        Relative residual to reach in every column.

    Raises
    ------
    RefineError
        If ``lam`` or a score is not usable, or the iteration ends above ``tol``. An iteration that ends below it is
        still refused when rounding keeps the true residual above 1e-6, which happens for an enormous ``lam``.
    """
    b = _checked(p0, lam)
    adjacency = graph.astype(np.float64)
    diagonal = 1.0 + lam * _degrees(adjacency)

    def system(p: np.ndarray) -> np.ndarray:
        return diagonal * p - lam * (adjacency @ p)

    scale = np.linalg.norm(b, axis=0)
    scale[scale == 0] = 1.0
    x = b.copy()
    r = b - system(x)
    z = r / diagonal
    direction = z.copy()
    rz = _dots(r, z)
    iterations = 0
    while (reached := _largest(r, scale)) > tol and iterations < _MAX_ITERATIONS:
        product = system(direction)
        step = _ratio(rz, _dots(direction, product))
        x += step * direction
        r -= step * product
        z = r / diagonal
        rz, previous = _dots(r, z), rz
        direction = z + _ratio(rz, previous) * direction
        iterations += 1

    residual = _largest(b - system(x), scale)
    if not (reached <= tol and residual <= _ACCEPTED):
        msg = f"lam {lam:g}: residual {residual:.1e} after {iterations} iterations, wanted {tol:.0e}; use a smaller lam"
        raise RefineError(msg)
    return Solution(x, iterations, residual)


def solve_direct(graph: sparse.csr_matrix, p0: np.ndarray, lam: float) -> np.ndarray:
    """Solve the same system by one factorisation: the reference, for small graphs only, as its fill-in explodes."""
    from scipy.sparse.linalg import spsolve

    b = _checked(p0, lam)
    adjacency = graph.astype(np.float64)
    diagonal = 1.0 + lam * _degrees(adjacency).ravel()
    return spsolve((sparse.diags(diagonal) - lam * adjacency).tocsc(), b).reshape(b.shape)


def energy(graph: sparse.csr_matrix, p: np.ndarray) -> float:
    """Return Tr(P' L P), the sum over edges of the squared distance between the scores of their two cells."""
    p = p.astype(np.float64, copy=False)
    adjacency = graph.astype(np.float64)
    return float(np.sum(p * (_degrees(adjacency) * p - adjacency @ p)))


def _checked(p0: np.ndarray, lam: float) -> np.ndarray:
    if not 0 <= lam < np.inf:
        msg = f"lam is {lam}; it must be a finite number >= 0"
        raise RefineError(msg)
    b = p0.astype(np.float64)
    if not np.isfinite(b).all():
        row = int(np.argmin(np.isfinite(b).all(axis=1)))
        msg = f"scores of row {row} are not finite: {b[row].tolist()}; the encoder must be run again"
        raise RefineError(msg)
    return b


def _degrees(adjacency: sparse.csr_matrix) -> np.ndarray:
    """Row sums as an (n, 1) column."""
    return np.asarray(adjacency.sum(axis=1), dtype=np.float64).reshape(-1, 1)


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner product of each column of ``a`` with the same column of ``b``."""
    return np.einsum("ij,ij->j", a, b)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """``above / below``, 0 where a column is solved exactly and both have vanished."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _largest(residual: np.ndarray, scale: np.ndarray) -> float:
    return float(np.max(np.linalg.norm(residual, axis=0) / scale, initial=0.0))
