"""What an answer is worth: the paper's reward and that of the released code.

``batch`` (Cell-o1, equation 2): 1 if every cell is right, 0 if not, -1 if the format is not valid.
``mixed`` (the released code): the mean of the share of right cells and of that 1 or 0; -1 also if the number of items
is not that of the cells or an item is there twice.

Contract: text in, number out; the official reading (``cellray.puzzles.answer.official``) decides.
"""

from collections.abc import Callable

from cellray.puzzles.answer import official
from cellray.puzzles.puzzle import Puzzle

Reward = Callable[[str, Puzzle], float]
INVALID = -1.0


def batch(text: str, puzzle: Puzzle) -> float:
    """Return the paper's reward."""
    read = official(text)
    return float(_right(read.items, puzzle) == len(puzzle) == len(read.items)) if read.valid else INVALID


def mixed(text: str, puzzle: Puzzle) -> float:
    """Return the reward of the released code."""
    read = official(text)
    items = read.items
    if not read.valid or len(items) != len(puzzle) or len(set(items)) < len(items):
        return INVALID
    right = _right(items, puzzle)
    return (right / len(puzzle) + (right == len(puzzle))) / 2


def _right(items: tuple[str, ...], puzzle: Puzzle) -> int:
    return sum(one.lower() == other.lower() for one, other in zip(items, puzzle.answer, strict=False))


REWARDS: dict[str, Reward] = {"batch": batch, "mixed": mixed}
