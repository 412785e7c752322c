"""The regression gate: what it lets pass, and the numbers it tells."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cellray.plugins.gate import Limits, judge

NONE = np.empty(0, bool)
NEW = "new"


def of_types(**sizes):
    """So many cells of each type."""
    return np.repeat(np.array(list(sizes), dtype="<U9"), list(sizes.values()))


def said(truth, rows, other="else"):
    """What a version says that is wrong about some rows."""
    found = truth.copy()
    found[rows] = other
    return found


@given(st.lists(st.tuples(*map(st.sampled_from, ("abc", "abc", ["a", "b", "c", NEW]))), min_size=1, max_size=200))
def test_numbers_are_those_of_the_pairs(cells):
    truth, before, after = map(np.array, zip(*cells, strict=True))
    verdict = judge(truth, before, after, NONE, NEW, Limits(type_margin=9))  # nothing is asked of single types
    was, now, known = before == truth, after == truth, verdict.known
    assert known.drop == pytest.approx(was.mean() - now.mean())
    assert known.drop <= known.most <= known.drop + 1.65 / len(cells) ** 0.5
    assert verdict.passed == (known.drop <= 0.015 and (known.most <= 0.015 or known.p_value >= 0.05))
    assert verdict.recall is None
    if changed := known.lost + known.gained:
        expected = binomtest(known.lost, changed, 0.5, alternative="greater").pvalue
        assert known.p_value == pytest.approx(expected)
    assert json.loads(json.dumps(verdict.facts()))["taken"].keys() == set(truth.tolist())
    for name, one in verdict.taken.items():
        own = truth == name
        assert (one.n, one.before) == (own.sum(), pytest.approx(was[own].mean()))
        assert one.lost == (own & was & (after == NEW)).sum()
        assert one.gained == (own & ~was & now).sum()


def test_what_was_known_must_not_be_lost():
    truth = of_types(a=50, b=50, c=50, d=50)
    assert judge(truth, truth, said(truth, [0, 50, 100]), NONE, NEW).passed
    after = said(truth, [0, 50, 100, 150])
    verdict = judge(truth, truth, after, NONE, NEW)
    assert not verdict.passed
    assert "2.0 points" in verdict.reason
    assert judge(truth, truth, after, NONE, NEW, Limits(margin=0.03)).passed


def test_a_loss_within_the_margin_must_be_no_sure_one_that_may_exceed_it():
    """Seven of seven hundred cells are within the margin; seven without a gain are not chance, and may be more."""
    truth = of_types(**dict.fromkeys("abcdefg", 100))
    before = said(truth, slice(0, 10))
    after = said(before, slice(50, None, 100))
    verdict = judge(truth, before, after, NONE, NEW)
    assert verdict.known.drop == pytest.approx(0.01)
    assert "(7 of 700 cells lost, 0 gained, p 0.0078), up to 1.6 (limit 1.5)" in verdict.reason
    assert not verdict.passed
    # As many losses beside gains may be chance; of ten times as many cells they cannot be more than the margin.
    gains = after.copy()
    gains[:5] = truth[:5]
    assert judge(truth, before, gains, NONE, NEW).passed
    verdict = judge(np.tile(truth, 10), np.tile(before, 10), np.r_[after, np.tile(before, 9)], NONE, NEW)
    assert verdict.known.p_value < 0.01
    assert verdict.passed


def test_the_new_type_must_not_take_a_known_one():
    """Six of a thousand cells are nothing, but not if the new type takes all of them from the one that looks alike."""
    truth = of_types(monocyte=100, others=900)
    verdict = judge(truth, truth, said(truth, slice(0, 6), NEW), NONE, NEW, Limits(margin=0.02))
    assert verdict.known.drop == pytest.approx(0.006)
    assert (
        verdict.reason == "the new type takes of 'monocyte' 6.0 points (6 of 100 cells lost, 0 gained, p 0.016), "
        "up to 9.9 (limit 3.0)"
    )
    for after, limits in (
        (said(truth, slice(0, 6), NEW), Limits(margin=0.02, type_margin=0.1)),
        (said(truth, slice(0, 6)), Limits(margin=0.02)),  # lost to another known type: part of the mean
        (said(truth, slice(0, 4), NEW), Limits(margin=0.02)),  # so few may be chance
        (said(truth, slice(0, None, 100), NEW), Limits(margin=0.02)),  # a few of each
    ):
        assert judge(truth, truth, after, NONE, NEW, limits).passed


def test_the_new_type_must_be_found():
    truth = of_types(a=100)
    assert judge(truth, truth, truth, np.array([True, True, False, False]), NEW).passed
    verdict = judge(truth, truth, truth, np.array([True, False, False, False]), NEW)
    assert not verdict.passed
    assert "25% of 4" in verdict.reason


def test_without_cells_to_judge_by_nothing_passes():
    nothing = np.empty(0, str)
    assert not judge(nothing, nothing, nothing, np.ones(3, bool), NEW).passed
