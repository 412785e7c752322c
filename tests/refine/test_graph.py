import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellray.errors import RefineError
from cellray.refine.graph import existing, knn_graph, nearest, symmetrised
from cellray.refine.lists import Lists


def by_hand(points, k):
    """Symmetrised neighbours from the full distance matrix; only for points without ties."""
    squared = ((points[:, None, :] - points[None, :, :]).astype(np.float64) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    joined = np.zeros(squared.shape, bool)
    np.put_along_axis(joined, squared.argsort(axis=1)[:, :k], values=True, axis=1)
    return joined | joined.T


def assert_simple_graph(graph):
    assert graph.dtype == np.float32
    assert (graph != graph.T).nnz == 0
    assert graph.diagonal().sum() == 0
    assert set(graph.data.tolist()) <= {1.0}
    assert graph.has_sorted_indices


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60), p=st.integers(1, 8), k=st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_equals_the_distance_matrix(seed, n, p, k):
    points = np.random.default_rng(seed).normal(size=(n, p)).astype(np.float32)
    graph = knn_graph(points, k)
    assert_simple_graph(graph)
    np.testing.assert_array_equal(graph.toarray() > 0, by_hand(points, min(k, n - 1)))


def test_duplicates_lose_themselves_and_nobody_else():
    points = np.repeat(np.random.default_rng(0).normal(size=(3, 4)), 40, axis=0).astype(np.float32)
    graph = knn_graph(points, 15)
    assert_simple_graph(graph)
    assert graph.sum(axis=1).min() >= 15
    group = np.arange(120) // 40
    edges = graph.tocoo()
    assert (group[edges.row] == group[edges.col]).all()


@pytest.mark.parametrize(("n", "p"), [(0, 0), (1, 0), (1, 3), (5, 0)])
def test_no_neighbours_without_other_cells_or_coordinates(n, p):
    graph = knn_graph(np.zeros((n, p), np.float32), 15)
    assert graph.shape == (n, n)
    assert graph.nnz == 0


@pytest.fixture(scope="module")
def many():
    """Cells of 30 types in 20 dimensions, 300 of them at one place."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 20))[rng.integers(0, 30, 24_000)] * 3 + rng.normal(size=(24_000, 20))
    points[:300] = points[0]
    return points.astype(np.float32)


def test_the_approximate_search_is_near_the_exact_one_and_repeats_itself(many):
    found = nearest(many, 15)
    assert found.search == "nearby lists"
    assert found.recall >= 0.99
    np.testing.assert_array_equal(found.indices, nearest(many, 15).indices)
    assert (found.indices != np.arange(len(many))[:, None]).all()
    assert (found.indices[:300] < 300).all()  # duplicates find each other
    graph = symmetrised(found.indices)
    assert_simple_graph(graph)
    exact = symmetrised(nearest(many, 15, exact_cells=len(many)).indices)[300:, 300:]
    assert exact.multiply(graph[300:, 300:]).nnz > 0.99 * exact.nnz


def test_recall_is_that_of_the_search(many):
    """The build's own figure, on a sample, against all cells."""
    found = nearest(many, 15)
    exact = nearest(many, 15, exact_cells=len(many)).indices
    share = np.mean([len(set(a) & set(b)) / 15 for a, b in zip(found.indices[300:], exact[300:], strict=True)])
    assert share >= 0.99
    assert abs(share - found.recall) < 0.01


@pytest.mark.parametrize("reach", [0.0, 0.7, np.inf])
def test_cells_looked_up_among_themselves_are_looked_up_once_for_both(many, reach):
    points = many[300:5000] - many.mean(0)
    lists = Lists(points, 0)
    lists.reach = reach
    both, each = np.sort(lists.search_each_other(16)), np.sort(lists.search(points, 16))
    assert np.mean(both == each) > 0.9999  # ties in float32
    assert (both >= 0).all()


@pytest.mark.parametrize("exact_cells", [20_000, 100])
def test_batches_give_equally_many_neighbours(many, exact_cells):
    points, batches = many[:6000], np.arange(6000) % 3
    found = nearest(points, 12, batches=batches, exact_cells=exact_cells)
    assert found.indices.shape == (6000, 12)
    np.testing.assert_array_equal(np.sort(batches[found.indices], axis=1), np.tile(np.repeat([0, 1, 2], 4), (6000, 1)))
    assert (found.indices != np.arange(6000)[:, None]).all()
    assert found.recall >= 0.99


def test_a_batch_smaller_than_its_share_gives_what_it_has():
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    batches = np.r_[np.zeros(38, int), [1, 1]]
    found = nearest(points, 10, batches=batches)
    assert (np.sort(found.indices[38:], axis=1)[:, -6:] >= 0).all()
    graph = symmetrised(found.indices)
    assert_simple_graph(graph)
    assert (graph[:38, 38:].sum(axis=1) == 2).all()


def test_a_given_graph_is_made_simple():
    given = sparse.csr_matrix(np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.25, 0.0, 0.0]]))
    expected = np.array([[0, 0.5, 0.25], [0.5, 0, 0], [0.25, 0, 0]])
    found = existing(given, 3)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.nnz == 4
    assert given[0, 0] == 1.0
    given.data[0] = -1
    with pytest.raises(RefineError, match="negative"):
        existing(given, 3)


def test_the_order_of_the_search_keeps_near_cells_together(many):
    order = nearest(many, 15).order
    np.testing.assert_array_equal(np.sort(order), np.arange(len(many)))
    steps = np.linalg.norm(np.diff(many[order], axis=0), axis=1)
    assert np.median(steps) < 0.6 * np.median(np.linalg.norm(np.diff(many, axis=0), axis=1))


@pytest.mark.parametrize("exact_cells", [20_000, 100])
def test_points_far_from_the_origin(many, exact_cells):
    points = many[1000:4000]
    here, there = (nearest(one, 10, exact_cells=exact_cells).indices for one in (points, points + 3000))
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(here, there, strict=True)])
    assert same > 0.98
