"""Whether an updated plugin may be promoted: what it knew before, by a paired test on cells never trained on.

Contract: the same cells are labelled by both versions; a version fails when the share of right labels fell by more than
``margin``, and by more than chance would explain, or when it does not find its new type. The numbers are told whatever
they show. It does not promote.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binom

MARGIN = 0.015
LEAST_RECALL = 0.5


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes
    ----------
    passed, reason
        Whether the version may be promoted, and why not.
    n_known, before, after, drop
        Cells of known types, the share of them that each version labels rightly, and the difference.
    lost, gained
        Cells right before and wrong after, and the reverse.
    p_value
        Chance of at least so many lost among those that changed if losses and gains were equally likely (exact
        one-sided McNemar test).
    n_new, recall
        Held-out cells of the new type and the share of them found; None without any.
    """

    passed: bool
    reason: str
    n_known: int
    before: float
    after: float
    drop: float
    lost: int
    gained: int
    p_value: float
    n_new: int
    recall: float | None

    def facts(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def judge(
    before: np.ndarray,
    after: np.ndarray,
    found: np.ndarray,
    *,
    margin: float = MARGIN,
    least_recall: float = LEAST_RECALL,
) -> Verdict:
    """Compare two versions.

    Parameters
    ----------
    before, after
        (n,) bool: whether each cell of a known type is labelled rightly by the old and the new version.
    found
        (m,) bool: whether each held-out cell of the new type is.
    margin
        Most that the share of right labels may fall.
    least_recall
        Least share of the new type's cells that must be found, where there are any.
    """
    lost, gained = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    n = len(before)
    drop = (lost - gained) / n if n else 0.0
    p_value = float(binom.sf(lost - 1, lost + gained, 0.5)) if lost + gained else 1.0
    recall = float(np.mean(found)) if len(found) else None
    reasons = []
    if n == 0:
        reasons.append("there are no held-out cells of known types to judge by")
    if drop > margin:
        reasons.append(
            f"accuracy on known types fell by {100 * drop:.1f} points (limit {100 * margin:.1f}; {lost} cells lost, "
            f"{gained} gained, p {p_value:.2g})"
        )
    if recall is not None and recall < least_recall:
        reasons.append(f"only {recall:.0%} of {len(found)} held-out cells of the new type are found")
    shares = [float(np.mean(one)) if n else 0.0 for one in (before, after)]
    return Verdict(
        not reasons, "; ".join(reasons), n, shares[0], shares[1], drop, lost, gained, p_value, len(found), recall
    )
