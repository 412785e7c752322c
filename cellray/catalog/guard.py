"""Whether a new version may take the place of the one in use without a person's word.

Contract: every limit of ``Guard`` that is passed gives one sentence with the value and the limit; none means yes. What
cannot be compared is refused.
"""

from collections.abc import Sequence

from cellray.catalog.catalogue import Guard
from cellray.catalog.diff import Diff


def refusals(diff: Diff, guard: Guard, offered: Sequence[str]) -> list[str]:
    """Return why a version may not be promoted; ``offered`` is its label set."""
    found = []
    if diff.n_before and diff.n_common == 0:
        found.append("no cell of the version in use is in the new one, so nothing can be compared")
    if diff.changed > guard.max_changed:
        found.append(
            f"{diff.changed:.1%} of {diff.n_common:,} cells changed their label; at most {guard.max_changed:.1%} may"
        )
    removed = (diff.n_before - diff.n_common) / max(1, diff.n_before)
    if removed > guard.max_removed:
        found.append(f"{removed:.1%} of {diff.n_before:,} cells are gone; at most {guard.max_removed:.1%} may")
    before, after = diff.without_label()
    if after - before > guard.max_abstained_rise:
        found.append(
            f"cells without a label rose from {before:.1%} to {after:.1%}; by at most "
            f"{guard.max_abstained_rise:.1%} they may"
        )
    for name in diff.vanished_types:
        cells = diff.types_before[name]
        if cells >= guard.min_vanished_cells and name not in guard.may_vanish:
            why = "no cell has it any more" if name in offered else "it is not in the label set any more"
            found.append(f"type {name!r} vanished: {cells:,} cells had it, and {why}")
    return found
