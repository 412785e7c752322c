import csv
import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cellray.labels.metrics import (
    BROAD_BRANCHES,
    accuracy,
    confusion,
    graded,
    graded_score,
    hierarchical_f1,
    macro_f1,
)
from cellray.labels.ontology import Ontology
from cellray.labels.spoken import spoken

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


@pytest.mark.parametrize(
    ("truth", "said", "score"),
    [
        ("T cell", "T cells", 1),
        ("CD14+ Mono", "CD14-positive monocytes", 1),
        ("Memory CD4 T", "T cells", 0.5),
        ("T cell", "CD8+ T cell", 0.5),
        ("T cell", "leukocyte", 0),  # right, but of no lineage
        ("NK", "NK cells or CD8+ T cells", 0.25),
        ("Naive CD4 T", "T cells or B cells", 0.25),
        ("DC", "T cells or B cells", 0),
        ("T cell", "B cell", 0),
        ("T cell", "", 0),
        ("cluster seven", "Cluster  Seven", 1),
        ("cluster seven", "T cell", 0),
        ("NK/T Cell", "natural killer cell", 1),
    ],
)
def test_graded_score(truth, said, score):
    assert graded_score(spoken(truth), spoken(said), Ontology()) == score


def test_no_truth_has_no_score():
    assert np.isnan(graded_score(spoken("unknown"), spoken("T cell"), Ontology()))


def test_graded_scores_agree_with_published_judgements(shared):
    """Pairs of real predictions that people graded, as far as both sides name a term: mostly the same grade."""
    with gzip.open(shared / "data" / "cellreasoner" / "pair_scores.csv.gz", "rt") as file:
        rows = [
            (row["Ground Truth"], row["Model Prediction"], float(row["Evaluation Score"]))
            for row in csv.DictReader(file)
        ]
    ontology, ours, theirs = Ontology(), [], []
    for true, said, score in rows:
        one, other = spoken(true), spoken(said)
        if any(one.term_ids) and any(other.term_ids) and len(said) < 60:
            ours.append(graded_score(one, other, ontology))
            theirs.append(score)
    assert len(ours) > 5000
    assert np.corrcoef(ours, theirs)[0, 1] > 0.7


@given(st.lists(st.sampled_from(["CL:0000084", "CL:0000542", "CL:0000624", "CL:0000182", ""]), min_size=1, max_size=9))
@settings(max_examples=30)
def test_hierarchical_f1_of_the_same_terms(terms):
    ontology = Ontology()
    assert hierarchical_f1(terms, terms, ontology) == float(any(terms))
    assert hierarchical_f1(terms, terms[::-1], ontology) == hierarchical_f1(terms[::-1], terms, ontology)


def test_hierarchical_f1_grows_with_relation():
    ontology = Ontology()
    found = [hierarchical_f1(["CL:0000624"], [term], ontology) for term in ("CL:0000182", "CL:0000542", "CL:0000084")]
    assert 0 <= found[0] < found[1] < found[2] < 1
