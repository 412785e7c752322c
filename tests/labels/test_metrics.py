import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cellray.labels.metrics import BROAD_BRANCHES, accuracy, confusion, graded, macro_f1
from cellray.labels.ontology import Ontology

PAIRS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=60)


def test_a_worked_example():
    truth, predicted = list("aaabb"), list("aabbc")
    assert accuracy(truth, predicted) == pytest.approx(3 / 5)
    assert macro_f1(truth, predicted) == pytest.approx((2 * 2 / 5 + 2 * 1 / 4 + 0) / 3)
    labels, matrix = confusion(truth, predicted)
    assert labels == ["a", "b", "c"]
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, [[2, 1, 0], [0, 1, 1], [0, 0, 0]])


@given(PAIRS)
@settings(max_examples=50, deadline=None)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_agree_with_scikit_learn(pairs):
    truth, predicted = (list(side) for side in zip(*pairs, strict=True))
    labels, matrix = confusion(truth, predicted)
    assert labels == sorted({*truth, *predicted})
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(truth, predicted, labels=labels))
    assert accuracy(truth, predicted) == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert macro_f1(truth, predicted) == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))


def test_graded_relations():
    t_cell, lymphocyte, cd4, b_cell = "CL:0000084", "CL:0000542", "CL:0000624", "CL:0000236"
    hepatocyte, fibroblast = "CL:0000182", "CL:0000057"
    truth = [t_cell, t_cell, t_cell, t_cell, hepatocyte, "", t_cell, "CL:0000003"]
    predicted = [t_cell, lymphocyte, cd4, b_cell, fibroblast, t_cell, "not an id", "CL:0000000"]
    shares = graded(truth, predicted, Ontology())
    assert shares == {
        "exact": 2 / 8,
        "ancestor": 1 / 8,
        "descendant": 1 / 8,
        "same_branch": 1 / 8,
        "other": 1 / 8,
        "unknown": 2 / 8,
    }


def test_broad_branches_are_current_terms_none_within_another():
    ontology = Ontology()
    for branch in BROAD_BRANCHES:
        assert ontology.find(branch) == branch
        assert ontology.ancestors(branch).isdisjoint(set(BROAD_BRANCHES) - {branch})


@pytest.mark.parametrize("pair", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_unequal_or_empty_input_is_refused(pair):
    for metric in (accuracy, macro_f1, confusion, lambda *two: graded(*two, Ontology())):
        with pytest.raises(ValueError, match="labels"):
            metric(*pair)
