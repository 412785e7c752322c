"""The regression gate: what it lets pass, and the numbers it tells."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cellray.plugins.gate import judge

NONE = np.empty(0, bool)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_numbers_are_those_of_the_pairs(pairs):
    before, after = np.array(pairs).T
    verdict = judge(before, after, NONE)
    assert verdict.drop == pytest.approx(before.mean() - after.mean())
    assert verdict.passed == (verdict.drop <= 0.015)
    assert verdict.recall is None
    if changed := verdict.lost + verdict.gained:
        expected = binomtest(verdict.lost, changed, 0.5, alternative="greater").pvalue
        assert verdict.p_value == pytest.approx(expected)


def test_what_was_known_must_not_be_lost():
    before = np.ones(200, bool)
    after = before.copy()
    after[:3] = False
    assert judge(before, after, NONE).passed
    after[:4] = False
    verdict = judge(before, after, NONE)
    assert not verdict.passed
    assert "2.0 points" in verdict.reason
    assert judge(before, after, NONE, margin=0.03).passed


def test_the_new_type_must_be_found():
    same = np.ones(100, bool)
    assert judge(same, same, np.array([True, True, False, False])).passed
    verdict = judge(same, same, np.array([True, False, False, False]))
    assert not verdict.passed
    assert "25% of 4" in verdict.reason


def test_without_cells_to_judge_by_nothing_passes():
    assert not judge(NONE, NONE, np.ones(3, bool)).passed
