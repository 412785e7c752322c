"""Several answers to one puzzle: what they agree on, and the one to keep.

Contract: answers are permutations of the offered candidates (``accepted``), invalid ones are None and count as no vote.
The one kept is the medoid: the answer with the smallest sum of Hamming distances to all (Cell-o1's follow-up scOPD,
``DGPR``); of equal ones the first. ``guarded`` decides whether a second answer may replace it. Nothing is asked here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellray.puzzles.puzzle import Puzzle, one_each

STABLE = 0.75
"""Share of votes from which a cell's label counts as settled."""

Answer = tuple[str, ...]


@dataclass(frozen=True)
class Vote:
    """The medoid, its number among the answers, and (cells,) the share of answers that gives each cell its label."""

    answer: Answer
    chosen: int
    support: tuple[float, ...]
    votes: tuple[Counter[str], ...]

    @property
    def unstable(self) -> list[int]:
        """Cells whose label is not the most frequent one, or too rarely given."""
        return [
            number
            for number, (label, share) in enumerate(zip(self.answer, self.support, strict=True))
            if share < STABLE or self.votes[number][label] < max(self.votes[number].values())
        ]


def vote(answers: Sequence[Answer | None]) -> Vote | None:
    """Return the vote of all valid answers; None without any."""
    valid = [(number, answer) for number, answer in enumerate(answers) if answer is not None]
    if not valid:
        return None
    votes = tuple(map(Counter, zip(*(answer for _, answer in valid), strict=True)))
    # The sum of distances to all answers is least where the labels have the most votes.
    agreement = [sum(votes[cell][label] for cell, label in enumerate(answer)) for _, answer in valid]
    number, answer = valid[int(np.argmax(agreement))]
    support = tuple(votes[cell][label] / len(valid) for cell, label in enumerate(answer))
    return Vote(answer, number, support, votes)


def challenger(answers: Sequence[Answer | None], found: Vote) -> int | None:
    """Return the number of the other answer with the most votes on the unstable cells."""
    best, most = None, -1
    for number, answer in enumerate(answers):
        if answer is None or answer == found.answer:
            continue
        votes = sum(found.votes[cell][answer[cell]] for cell in found.unstable)
        if votes > most:
            best, most = number, votes
    return best


def guarded(found: Vote, again: Answer | None, puzzle: Puzzle) -> Answer:
    """Return ``again`` if it keeps every settled cell and gives the others what some answer gave, else the vote."""
    if again is None or not one_each(again, puzzle):
        return found.answer
    unstable = set(found.unstable)
    kept = all(again[cell] == label for cell, label in enumerate(found.answer) if cell not in unstable)
    supported = all(found.votes[cell][label] > 0 for cell, label in enumerate(again))
    return again if kept and supported else found.answer


def second_look(puzzle: Puzzle, first: str, second: str) -> list[dict[str, str]]:
    """Return the chat that asks for one answer in view of two (their texts)."""
    asked = puzzle.messages()[-1]["content"]
    request = (
        "Two earlier attempts disagree. Compare them with the cells and candidates above, then solve the puzzle again "
        "in the same format.\n\n"
        f"Attempt 1:\n{first}\n\nAttempt 2:\n{second}"
    )
    return [{"role": "user", "content": f"{asked}\n\n{request}"}]
