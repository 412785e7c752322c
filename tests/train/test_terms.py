"""Which texts count for and against a cell."""

import numpy as np

from cellray.train.terms import MASKED, NEGATIVE, TARGET, Terms

LINES = {
    "t": {"t", "lymphocyte", "cell"},
    "cd8": {"cd8", "t", "lymphocyte", "cell"},
    "b": {"b", "lymphocyte", "cell"},
    "mono": {"mono", "myeloid", "cell"},
    "lymphocyte": {"lymphocyte", "cell"},
    "myeloid": {"myeloid", "cell"},
}


def terms(widest=0.8):
    return Terms.build(["t", "cd8", "b", "mono"], lambda term: frozenset(LINES[term]), widest)


def test_universe_leaves_out_what_says_too_little():
    assert terms().ids == ["t", "cd8", "b", "mono", "lymphocyte", "myeloid"]
    assert terms(widest=0.5).ids == ["t", "cd8", "b", "mono", "myeloid"]


def relation(label, chosen):
    built = terms()
    at = {name: index for index, name in enumerate(built.ids)}
    row = built.relations(np.array([at[label]]), np.array([at[chosen]]), np.arange(6))[0]
    return dict(zip(built.ids, row.tolist(), strict=True))


def test_a_cell_named_by_its_label():
    assert relation("cd8", "cd8") == {
        "t": NEGATIVE,  # a label of its own: the finer one must win
        "cd8": TARGET,
        "b": NEGATIVE,
        "mono": NEGATIVE,
        "lymphocyte": MASKED,  # true of the cell, and nobody's label
        "myeloid": NEGATIVE,
    }


def test_a_finer_label_may_be_true_of_a_coarse_cell():
    assert relation("t", "t")["cd8"] == MASKED


def test_a_cell_named_by_an_ancestor():
    assert relation("cd8", "lymphocyte") == {
        "t": MASKED,
        "cd8": MASKED,
        "b": NEGATIVE,
        "mono": NEGATIVE,
        "lymphocyte": TARGET,
        "myeloid": NEGATIVE,
    }
