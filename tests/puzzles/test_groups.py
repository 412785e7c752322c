"""Uncertain cells to groups, groups to windows, and answers back: budgets hold, and windows overlap where they must."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cellray.puzzles.groups import leiden, relative_margin, uncertain_groups
from cellray.puzzles.windows import MOST_GROUPS, reconciled, windows


@pytest.fixture(scope="module")
def dataset():
    """300 cells in three cliques of neighbours; those of the second are undecided between labels 1 and 2."""
    rng = np.random.default_rng(0)
    clique = np.repeat([0, 1, 2], 100)
    joined = (clique[:, None] == clique) & (rng.random((300, 300)) < 0.2)
    graph = sparse.csr_matrix((joined | joined.T).astype(np.float32))
    p = np.full((300, 5), 0.01, np.float32)
    p[clique == 0, 0] = p[clique == 2, 3] = 0.9
    p[clique == 1, 1], p[clique == 1, 2] = 0.45, 0.44
    return p + rng.random(p.shape).astype(np.float32) * 0.005, graph, clique


def chosen(dataset, donors=None, among=None, **more):
    p, graph, _ = dataset
    donors = np.full(len(p), "") if donors is None else donors
    among = np.ones(len(p), bool) if among is None else among
    return uncertain_groups(p, graph, donors, among, **({"share": 0.1, "margin": 0.5} | more))


def test_only_uncertain_cells_are_asked_about(dataset):
    (group,) = chosen(dataset, share=1)
    assert (dataset[2][group.cells] == 1).all()
    assert set(group.plausible) == {1, 2}
    assert group.margin < 0.1
    assert chosen(dataset, margin=1e-6) == []


def test_groups_are_of_one_donor_and_within_the_budget(dataset):
    donors = np.array(["a", "b", "c"])[np.arange(300) % 3]
    for share, n_cells in ((0.03, 9), (0.1, 30), (0.5, 100), (1.0, 100)):
        groups = chosen(dataset, donors, share=share)
        cells = np.concatenate([group.cells for group in groups])
        assert len(cells) == n_cells <= share * 300
        assert np.ptp([len(group.cells) for group in groups]) <= 1
        assert len(set(cells.tolist())) == len(cells)
        assert all(set(donors[group.cells]) == {group.donor} for group in groups)
        assert [group.margin for group in groups] == sorted(group.margin for group in groups)
    assert chosen(dataset, donors, share=0.005) == []


def test_cells_without_a_label_are_not_asked_about(dataset):
    among = np.arange(300) % 2 == 0
    for group in chosen(dataset, among=among, share=1):
        assert among[group.cells].all()


def test_choice_is_reproducible(dataset):
    once, again = chosen(dataset), chosen(dataset)
    assert all((a.cells == b.cells).all() and a.margin == b.margin for a, b in zip(once, again, strict=True))
    assert (leiden(dataset[1], 3) == leiden(dataset[1], 3)).all()


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=8))
def test_relative_margin(rows):
    found = relative_margin(np.array(rows, np.float32))
    assert ((found >= 0) & (found <= 1)).all()
    for row, margin in zip(rows, found, strict=True):
        if sorted(row)[-1] == sorted(row)[-2]:
            assert margin == 0


@given(st.lists(st.integers(0, 6), max_size=60))
def test_windows_hold_every_group_once_or_twice(likeliest):
    dealt = windows(likeliest)
    times = np.bincount([group for window in dealt for group in window], minlength=len(likeliest))
    assert set(times.tolist()) <= ({1} if len(dealt) < 2 else {1, 2})
    for window in dealt:
        assert len(window) <= MOST_GROUPS
        labels = [likeliest[group] for group in window]
        assert len(set(labels)) == len(labels)
    assert len({tuple(window) for window in dealt}) == len(dealt)


def test_more_groups_than_a_window_holds_overlap():
    dealt = windows(list(range(20)))
    assert sorted(map(len, dealt)) == [5, 5, 15, 15]
    assert set(dealt[0]) & set(dealt[2])


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ([], None),
        ([("a", 1.0)], "a"),
        ([("a", 0.4), ("b", 0.6)], "b"),
        ([("a", 0.5), ("b", 0.5)], None),
        ([("a", 0.3), ("b", 0.5), ("a", 0.3)], "a"),
    ],
)
def test_reconciling(said, label):
    assert reconciled(said) == label
