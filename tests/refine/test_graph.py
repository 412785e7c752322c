import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.refine.graph import knn_graph


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


def test_the_approximate_search_is_near_the_exact_one_and_repeats_itself():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(8, 10))[rng.integers(0, 8, 1500)] * 3 + rng.normal(size=(1500, 10))
    points[:60] = points[0]
    points = points.astype(np.float32)
    found = knn_graph(points, 15, exact_cells=0)
    assert_simple_graph(found)
    assert found.sum(axis=1).min() >= 15
    assert (found != knn_graph(points, 15, exact_cells=0)).nnz == 0
    exact = knn_graph(points, 15)[60:, 60:]  # duplicates have many right answers
    assert exact.multiply(found[60:, 60:]).nnz > 0.98 * exact.nnz
