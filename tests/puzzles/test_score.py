"""The official metrics against numbers worked out by hand, and the stricter ones."""

import math

import pytest

from cellray.puzzles import Puzzle
from cellray.puzzles.answer import written
from cellray.puzzles.score import chance, score

LABELS = ("a", "b", "c", "d")


def puzzle(n=4):
    return Puzzle("x ", tuple((f"G{at}",) for at in range(n)), LABELS[:n], LABELS[:n])


def test_official_metrics():
    puzzles = [puzzle(), puzzle(), puzzle(), puzzle(2)]
    texts = [
        written("", "abcd"),  # exact
        written("", "ABDD"),  # a, b and d right, in other case; three different of four
        "a | b | c | d",  # no format: nothing right
        written("", ["a", "b", "z"]),  # longer than the puzzle: still exact
    ]
    found = score(puzzles, texts)["all"]
    assert found["puzzles"] == 4
    assert found["cell_acc_micro"] == pytest.approx((4 + 3 + 0 + 2) / 14)
    assert found["cell_acc_macro"] == pytest.approx((1 + 0.75 + 0 + 1) / 4)
    assert found["batch_acc"] == 0.5
    assert found["batch_acc_se"] == pytest.approx(math.sqrt(0.25 / 4))
    assert found["format"] == 0.75
    assert found["uniqueness"] == pytest.approx((1 + 0.75 + 0 + 1) / 4)
    assert found["count_ok"] == 0.5
    assert found["permutation"] == 0.25
    assert found["in_vocabulary"] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)


def test_by_number_of_cells():
    found = score([puzzle(), puzzle(2)], [written("", "abcd"), written("", "ba")])
    assert found["4"]["batch_acc"] == 1
    assert found["2"]["batch_acc"] == 0
    assert found["2"]["cell_acc_micro"] == 0


def test_lenient_reading_never_changes_the_official_numbers():
    found = score([puzzle()], ["Answer:\n1. a\n2. b\n3. c\n4. d"])["all"]
    assert found["cell_acc_micro"] == 0
    assert found["lenient_cell_acc"] == 1


def test_chance():
    assert chance(4) == (0.25, 1 / 24)
