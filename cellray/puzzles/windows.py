"""Groups of cells to puzzles of at most fifteen, and the answers of several puzzles about a group back to one.

Contract: groups whose likeliest label is the same never share a window, for a puzzle gives each label once. Where one
window does not hold all groups of a donor, they are dealt twice, in opposite order, so that every group is asked beside
others. What windows say of a group is weighed by their support; a draw decides nothing. It neither builds prompts nor
asks.
"""

from collections.abc import Iterable, Sequence

MOST_GROUPS = 15


def windows(likeliest: Sequence[int], most: int = MOST_GROUPS) -> list[list[int]]:
    """Deal groups of one donor into windows.

    Parameters
    ----------
    likeliest
        Label of each group; no window has two groups of the same.
    most
        Groups of a window.

    Returns
    -------
    list of list of int
        Numbers of groups, ascending in each window. Every group is in one window if that holds all, else in two or,
        where both would be the same, in one.
    """
    first = _dealt(likeliest, range(len(likeliest)), most)
    if len(first) < 2:
        return first
    again = _dealt(likeliest, reversed(range(len(likeliest))), most)
    return first + [window for window in again if window not in first]


def reconciled(said: Iterable[tuple[str, float]]) -> str | None:
    """Return what most of the support is for, of (label, support) pairs; None of nothing and of a draw."""
    votes: dict[str, float] = {}
    for label, support in said:
        votes[label] = votes.get(label, 0) + support
    ranked = sorted(votes.values(), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0] == ranked[1]):
        return None
    return max(votes, key=lambda label: votes[label])


def _dealt(likeliest: Sequence[int], order: Iterable[int], most: int) -> list[list[int]]:
    """Give each group the first window that has room and no group of its label."""
    found: list[list[int]] = []
    for group in order:
        for window in found:
            if len(window) < most and likeliest[group] not in {likeliest[other] for other in window}:
                window.append(group)
                break
        else:
            found.append([group])
    return [sorted(window) for window in found]
