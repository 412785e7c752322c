"""Whether an updated plugin may be promoted: what it knew before, by paired tests on cells never trained on.

Contract: the same cells are labelled by both versions. A version fails when the share of right labels fell by more than
a margin, or certainly fell and by more than the margin perhaps; when the new type takes cells of a known one, certainly
and perhaps more than a margin of them (a mean over many types hides one that looks alike); or when it does not find its
new type. The numbers are told whatever they show. It does not promote.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binom

_CHANCE = 0.05
_BOUND = 1.645  # of a normal distribution's upper twentieth


@dataclass(frozen=True)
class Limits:
    """What an update may cost, and must achieve.

    Attributes
    ----------
    margin
        Most that the share of right labels of all known cells may fall.
    type_margin
        Most that the new type may take of one known type, where it certainly takes any. (Not corrected for the number
        of types: a version that is refused wrongly is still there to be promoted by hand.)
    least_recall
        Least share of the new type's held-out cells that must be found, where there are any.
    """

    margin: float = 0.015
    type_margin: float = 0.03
    least_recall: float = 0.5


@dataclass(frozen=True)
class Change:
    """How cells of known types fared.

    Attributes
    ----------
    n, before, after, drop
        Number of cells, the share of them that each version labels rightly, and the difference.
    lost, gained
        Cells right before and wrong after, and the reverse.
    p_value
        Chance of at least so many lost among those that changed if losses and gains were equally likely (exact
        one-sided McNemar test).
    most
        What the drop may be in truth: the upper end of its one-sided 95 % interval (normal, for pairs).
    """

    n: int
    before: float
    after: float
    drop: float
    lost: int
    gained: int
    p_value: float
    most: float

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray) -> "Change":
        """Compare which cells are labelled rightly, (n,) bool each."""
        n, lost, gained = len(before), int(np.sum(before & ~after)), int(np.sum(after & ~before))
        if n == 0:
            return cls(0, 0.0, 0.0, 0.0, 0, 0, 1.0, 0.0)
        drop = (lost - gained) / n
        p_value = float(binom.sf(lost - 1, lost + gained, 0.5)) if lost + gained else 1.0
        most = drop + _BOUND * float(np.sqrt((lost + gained) / n - drop**2) / np.sqrt(n))
        return cls(n, float(np.mean(before)), float(np.mean(after)), drop, lost, gained, p_value, most)

    def may_exceed(self, margin: float) -> bool:
        """Whether the share certainly fell, and by more than ``margin`` perhaps."""
        return self.p_value < _CHANCE and self.most > margin

    def told(self, margin: float) -> str:
        """Return the numbers for a reader."""
        pairs = f"{self.lost} of {self.n} cells lost, {self.gained} gained, p {self.p_value:.2g}"
        return f"{100 * self.drop:.1f} points ({pairs}), up to {100 * self.most:.1f} (limit {100 * margin:.1f})"


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes
    ----------
    passed, reason
        Whether the version may be promoted, and why not.
    known
        Change of all known cells.
    taken
        That of each known type's, where those count as lost that the new type takes, and no others.
    n_new, recall
        Held-out cells of the new type and the share of them found; None without any.
    """

    passed: bool
    reason: str
    known: Change
    taken: dict[str, Change]
    n_new: int
    recall: float | None

    def facts(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def judge(
    truth: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    found: np.ndarray,
    label: str,
    limits: Limits | None = None,
) -> Verdict:
    """Compare two versions.

    Parameters
    ----------
    truth, before, after
        (n,) str: the type of each cell of a known type, and what the old and the new version say.
    found
        (m,) bool: whether each held-out cell of the new type is found.
    label
        The new type.
    limits
        What is asked; None: the defaults.
    """
    limits = limits or Limits()
    was, now = before == truth, after == truth
    known = Change.of(was, now)
    kept = np.where(was, after != label, now)
    taken = {str(name): Change.of(was[truth == name], kept[truth == name]) for name in np.unique(truth)}
    recall = float(np.mean(found)) if len(found) else None
    reasons = []
    if known.n == 0:
        reasons.append("there are no held-out cells of known types to judge by")
    if known.drop > limits.margin or known.may_exceed(limits.margin):
        reasons.append(f"accuracy on known types fell by {known.told(limits.margin)}")
    reasons += [
        f"the new type takes of {name!r} {change.told(limits.type_margin)}"
        for name, change in taken.items()
        if change.may_exceed(limits.type_margin)
    ]
    if recall is not None and recall < limits.least_recall:
        reasons.append(f"only {recall:.0%} of {len(found)} held-out cells of the new type are found")
    return Verdict(not reasons, "; ".join(reasons), known, taken, len(found), recall)
