"""The regression gate: what it lets pass, and the numbers it tells."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cellray.plugins.gate import Limits, judge

NONE = np.empty(0, bool)
OF_ONE = Limits(type_margin=1)
"""Nothing is asked of single types."""


def of_types(**sizes):
    """Labels of so many cells each, and that all are right."""
    labels = np.repeat(list(sizes), list(sizes.values()))
    return labels, np.ones(len(labels), bool)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_numbers_are_those_of_the_pairs(cells):
    labels, before, after = map(np.array, zip(*cells, strict=True))
    verdict = judge(labels, before, after, NONE, OF_ONE)
    known = verdict.known
    assert known.drop == pytest.approx(before.mean() - after.mean())
    assert known.drop <= known.most <= known.drop + 1.65 / len(cells) ** 0.5
    assert verdict.passed == (known.drop <= 0.015 and (known.most <= 0.015 or known.p_value >= 0.05))
    assert verdict.recall is None
    if changed := known.lost + known.gained:
        expected = binomtest(known.lost, changed, 0.5, alternative="greater").pvalue
        assert known.p_value == pytest.approx(expected)
    assert sum(one.n for one in verdict.types.values()) == known.n
    assert sum(one.lost for one in verdict.types.values()) == known.lost
    for name, one in verdict.types.items():
        assert one.before == pytest.approx(before[labels == name].mean())
    assert json.loads(json.dumps(verdict.facts()))["types"].keys() == set(labels.tolist())


def test_what_was_known_must_not_be_lost():
    labels, before = of_types(a=50, b=50, c=50, d=50)
    after = before.copy()
    after[[0, 50, 100]] = False
    assert judge(labels, before, after, NONE).passed
    after[150] = False
    verdict = judge(labels, before, after, NONE)
    assert not verdict.passed
    assert "2.0 points" in verdict.reason
    assert judge(labels, before, after, NONE, Limits(margin=0.03)).passed


def test_a_loss_within_the_margin_must_be_no_sure_one_that_may_exceed_it():
    """Seven of seven hundred cells are within the margin, seven without a gain are more than chance, and may be more."""
    labels, before = of_types(**dict.fromkeys("abcdefg", 100))
    before[:10] = False
    after = before.copy()
    after[50::100] = False
    verdict = judge(labels, before, after, NONE)
    assert verdict.known.drop == pytest.approx(0.01)
    assert "(7 of 700 cells lost, 0 gained, p 0.0078), up to 1.6 (limit 1.5)" in verdict.reason
    assert not verdict.passed
    # As many losses beside gains may be chance; of ten times as many cells they cannot be more than the margin.
    after[:5] = True
    assert judge(labels, before, after, NONE).passed
    after[:5] = False
    more = np.tile(labels, 10), np.tile(before, 10), np.r_[after, np.tile(before, 9)]
    verdict = judge(*more, NONE)
    assert verdict.known.p_value < 0.01
    assert verdict.passed


def test_a_type_must_not_be_lost_among_others():
    """Ten of a thousand cells are within the margin, but not if all ten are of the one type that looks alike."""
    labels, before = of_types(monocyte=100, others=900)
    after = before.copy()
    after[:10] = False
    verdict = judge(labels, before, after, NONE)
    assert verdict.known.drop == pytest.approx(0.01)
    assert (
        "accuracy on 'monocyte' fell by 10.0 points (10 of 100 cells lost, 0 gained, p 0.00098), up to 14.9"
        in verdict.reason
    )
    assert judge(labels, before, after, NONE, Limits(margin=0.02, type_margin=0.15)).passed
    # As many of all types together, or so few of one that chance explains them, pass.
    after[:] = True
    after[::100] = False
    assert judge(labels, before, after, NONE, Limits(margin=0.02)).passed
    after[:] = True
    after[:4] = False
    assert judge(labels, before, after, NONE).passed


def test_the_new_type_must_be_found():
    labels, same = of_types(a=100)
    assert judge(labels, same, same, np.array([True, True, False, False])).passed
    verdict = judge(labels, same, same, np.array([True, False, False, False]))
    assert not verdict.passed
    assert "25% of 4" in verdict.reason


def test_without_cells_to_judge_by_nothing_passes():
    assert not judge(np.empty(0, str), NONE, NONE, np.ones(3, bool)).passed
