"""A value of lam from the scores alone: generalised cross-validation, or leaving one cell out.

Contract: the rule's criterion is evaluated on a fixed grid and the smallest wins; all values are told. Traces and
diagonals of the smoother A = (I + lam L)^-1 come from seeded random probes (Hutchinson 1990). Neither rule knows the
truth, and on measured data neither is reliably better than lam = 1: both take systematic errors of the encoder for
signal. Sources: Golub, Heath and Wahba 1979 (GCV); the leave-one-out identity of linear smoothers.
"""

from typing import Literal

import numpy as np
from scipy import sparse

from cellray.refine.solve import solve

Rule = Literal["gcv", "loo"]

GRID = tuple(float(f"{10**exponent:.3g}") for exponent in np.arange(-2, 2.1, 0.4))
_PROBES = 32
_TOL = 1e-4


def choose_lam(graph: sparse.csr_matrix, p0: np.ndarray, rule: Rule, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Return the chosen lam and the criterion at every value of ``GRID``.

    Parameters
    ----------
    graph
        (n, n) adjacency.
    p0
        (n, c) scores.
    rule
        ``gcv``: n ||R||^2 / (c (n - tr A)^2). ``loo``: sum_i ||R_i / (1 - A_ii)||^2 / (n c). R = P0 - P.
    """
    n, c = p0.shape
    probes = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), (n, _PROBES))
    degrees = np.asarray(graph.sum(axis=1), np.float64).ravel()
    both = np.concatenate([p0, probes], axis=1)
    criterion = {}
    for lam in GRID:
        smooth = solve(graph, both, lam, tol=_TOL).p
        rest = p0 - smooth[:, :c]
        own = np.mean(probes * smooth[:, c:], axis=1)
        if rule == "gcv":
            value = n * np.sum(rest**2) / (c * max(n - own.sum(), 1e-9) ** 2)
        else:
            # Bounds of A_ii for degree d; a cell without neighbours is its own prediction and says nothing.
            own = np.clip(own, 1 / (1 + lam * degrees), 1 - 0.5 * lam * degrees / (1 + lam * degrees))
            joined = degrees > 0
            value = np.sum((rest[joined] / (1 - own[joined])[:, None]) ** 2) / max(joined.sum() * c, 1)
        criterion[f"{lam:g}"] = float(value)
    return float(min(criterion, key=criterion.__getitem__)), criterion
