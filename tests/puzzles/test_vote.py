"""Votes of several answers, and the solver without a language model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.ingest import find_sources
from cellray.puzzles import Puzzle
from cellray.puzzles.build import BuildSettings, build
from cellray.puzzles.cells import Ranking, read_ranked
from cellray.puzzles.centroid import Profiles, assign
from cellray.puzzles.puzzle import NONE, one_each
from cellray.puzzles.score import score
from cellray.puzzles.scoring import compared
from cellray.puzzles.vote import challenger, guarded, second_look, vote

LABELS = ("a", "b", "c", "d")
PUZZLE = Puzzle("x ", tuple((f"G{at}",) for at in range(4)), LABELS)


def hamming(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True))


@given(st.lists(st.permutations(LABELS).map(tuple) | st.none(), min_size=1, max_size=9))
def test_the_vote_is_the_medoid(answers):
    found = vote(answers)
    valid = [one for one in answers if one is not None]
    if not valid:
        assert found is None
        return
    distances = [sum(hamming(one, other) for other in valid) for one in valid]
    assert sum(hamming(found.answer, other) for other in valid) == min(distances)
    assert answers[found.chosen] == found.answer
    expected = [np.mean([other[cell] == label for other in valid]) for cell, label in enumerate(found.answer)]
    assert found.support == pytest.approx(expected)


def test_a_second_look_is_guarded():
    answers = [tuple("abcd"), tuple("abcd"), tuple("abdc"), tuple("abdc"), tuple("abcd"), None]
    found = vote(answers)
    assert found.answer == tuple("abcd")
    assert found.unstable == [2, 3]
    assert challenger(answers, found) == 2
    assert guarded(found, tuple("abdc"), PUZZLE) == tuple("abdc")
    assert guarded(found, tuple("badc"), PUZZLE) == tuple("abcd")  # settled cells changed
    assert guarded(found, None, PUZZLE) == tuple("abcd")
    assert guarded(found, tuple("abcc"), PUZZLE) == tuple("abcd")
    assert vote([tuple("abcd")] * 4).unstable == []
    (message,) = second_look(PUZZLE, "first", "second")
    assert PUZZLE.user in message["content"]
    assert "first" in message["content"]


@given(st.integers(1, 6), st.integers(0, 3), st.booleans(), st.integers(0, 99))
def test_assignments_are_one_to_one(n, more, none, seed):
    candidates = tuple(f"t{at}" for at in range(n + more)) + ((NONE,) if none else ())
    scores = np.random.default_rng(seed).normal(size=(n, len(candidates)))
    puzzle = Puzzle("x ", tuple(("G",) for _ in range(n)), candidates)
    assert one_each(assign(scores, candidates), puzzle)


def test_profiles_solve_puzzles_that_random_permutations_do_not(labelled):
    (source,) = find_sources([str(labelled)])
    found = build([read_ranked(source, Ranking(top_genes=12))], BuildSettings(min_cells=3, max_cells=6, per_size=20))
    profiles = Profiles.of(found["train"])
    answers = ["<think></think>\n<answer>" + " | ".join(profiles.solve(one)) + "</answer>" for one in found["test"]]
    assert score(found["test"], answers)["all"]["cell_acc_micro"] > 0.95
    table = compared(found["test"], None, found["train"], found["train"])
    assert table["centroid, clean"]["all"]["puzzles"] == len(found["test"])
    assert table["random"]["all"]["cell_acc_micro"] < 0.5


def test_candidates_that_no_profile_knows():
    profiles = Profiles.of([Puzzle("x ", (("A", "B"), ("C", "D")), ("s", "t"), ("s", "t"))])
    puzzle = Puzzle("x ", (("C", "D"), ("A", "B"), ("E",)), ("new", "s", "t"))
    assert profiles.solve(puzzle) == ("t", "s", "new")
    assert one_each(Profiles.of([]).solve(puzzle), puzzle)
