import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from cellray.errors import RefineError
from cellray.refine.graph import knn_graph
from cellray.refine.solve import energy, solve_direct
from cellray.refine.solve import solve as solve_any


def solve(graph, p0, lam, **more):
    """The iteration, which small systems would otherwise not see, to a tolerance that shows float64."""
    return solve_any(graph, p0, lam, **{"tol": 1e-10, "direct_cells": 0, **more})


LAMS = st.floats(-5, 2).map(lambda exponent: 10.0**exponent)


@st.composite
def problems(draw):
    """A random graph, often in several components and with isolated nodes, and probabilities on its nodes."""
    n, c = draw(st.integers(1, 40)), draw(st.integers(2, 100))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    upper = np.triu(rng.random((n, n)) < draw(st.sampled_from([0.0, 0.03, 0.1, 0.5, 1.0])), k=1)
    graph = sparse.csr_matrix((upper | upper.T).astype(np.float32))
    return graph, rng.dirichlet(np.full(c, draw(st.sampled_from([0.05, 1.0, 20.0]))), n)


@given(problem=problems(), lam=LAMS)
@settings(max_examples=150, deadline=None)
def test_invariants(problem, lam):
    graph, p0 = problem
    solution = solve(graph, p0, lam)
    p = solution.p
    assert solution.residual <= 1e-9
    np.testing.assert_allclose(p, solve_direct(graph, p0, lam), atol=1e-8)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-8)
    np.testing.assert_allclose(p.sum(axis=0), p0.sum(axis=0), atol=1e-7)
    assert (p >= p0.min(axis=0) - 1e-8).all()
    assert (p <= p0.max(axis=0) + 1e-8).all()
    assert energy(graph, p) <= energy(graph, p0) + 1e-8
    assert np.linalg.norm(p) <= np.linalg.norm(p0) + 1e-8
    isolated = np.diff(graph.indptr) == 0
    np.testing.assert_array_equal(p[isolated], p0[isolated])
    for component in _components(graph):
        np.testing.assert_allclose(p[component].sum(axis=0), p0[component].sum(axis=0), atol=1e-7)


@given(problem=problems())
@settings(max_examples=50, deadline=None)
def test_components_do_not_mix(problem):
    graph, p0 = problem
    component = _components(graph)[0]
    changed = p0.copy()
    changed[component] = changed[component][:, ::-1]
    p, q = solve(graph, p0, 1.0).p, solve(graph, changed, 1.0).p
    rest = np.setdiff1d(np.arange(len(p0)), component)
    np.testing.assert_allclose(p[rest], q[rest], atol=1e-8)


@given(problem=problems())
@settings(max_examples=50, deadline=None)
def test_limits_and_monotony_in_lam(problem):
    graph, p0 = problem
    np.testing.assert_array_equal(solve(graph, p0, 0.0).p, p0)
    np.testing.assert_allclose(solve(graph, p0, 1e-9).p, p0, atol=1e-6)
    norms = [np.linalg.norm(solve(graph, p0, lam).p) for lam in (0.0, 1e-3, 0.1, 1.0, 10.0, 100.0)]
    assert (np.diff(norms) <= 1e-8).all()
    far = solve(graph, p0, 1e6, tol=1e-6).p
    for component in _components(graph):
        np.testing.assert_allclose(far[component], np.tile(p0[component].mean(axis=0), (len(component), 1)), atol=2e-3)


@given(problem=problems(), lam=LAMS, factor=st.floats(1e-3, 1e3), shift=st.floats(-2, 2))
@settings(max_examples=50, deadline=None)
def test_scaling_and_shifting_commute_with_solving(problem, lam, factor, shift):
    """Hence the label does not depend on the contrast of the scores."""
    graph, p0 = problem
    moved = solve(graph, factor * p0 + shift, lam).p
    np.testing.assert_allclose(moved, factor * solve(graph, p0, lam).p + shift, atol=1e-7 * (factor + 2))


@pytest.mark.parametrize("lam", [1e-5, 0.1, 1.0, 10.0, 100.0])
def test_agrees_with_spsolve_on_a_neighbour_graph_with_hubs(lam):
    rng = np.random.default_rng(0)
    graph = knn_graph(rng.normal(size=(700, 50)).astype(np.float32), 15)
    assert graph.sum(axis=1).max() > 60
    p0 = rng.dirichlet(np.full(12, 0.3), 700).astype(np.float32)
    assert np.abs(solve(graph, p0, lam).p - solve_direct(graph, p0, lam)).max() < 1e-6


def test_columns_of_zeros_stay_zero():
    graph = sparse.csr_matrix(np.ones((4, 4), np.float32) - np.eye(4, dtype=np.float32))
    p0 = np.zeros((4, 3))
    p0[:, 0] = 1.0
    np.testing.assert_allclose(solve(graph, p0, 1.0).p, p0, atol=1e-12)


@pytest.mark.parametrize("lam", [-1.0, float("nan"), float("inf")])
def test_lam_must_be_a_finite_number_of_at_least_zero(lam):
    with pytest.raises(RefineError, match="lam is"):
        solve(sparse.csr_matrix((2, 2)), np.full((2, 2), 0.5), lam)


def test_scores_must_be_finite():
    p0 = np.full((3, 2), 0.5)
    p0[1, 1] = np.nan
    with pytest.raises(RefineError, match="row 1"):
        solve(sparse.csr_matrix((3, 3)), p0, 1.0)


def test_a_lam_beyond_float64_is_refused():
    rng = np.random.default_rng(0)
    graph = knn_graph(rng.normal(size=(400, 20)).astype(np.float32), 15)
    with pytest.raises(RefineError, match=r"lam 1e\+14: residual .*smaller lam"):
        solve(graph, rng.dirichlet(np.ones(5), 400), 1e14)


def _components(graph):
    count, member = connected_components(graph)
    return [np.flatnonzero(member == index) for index in range(count)]


@given(problem=problems(), lam=LAMS, seed=st.integers(0, 2**32 - 1), direct_cells=st.sampled_from([0, 100]))
@settings(max_examples=60, deadline=None)
def test_weighted_and_held_cells_against_a_dense_solution(problem, lam, seed, direct_cells):
    graph, p0 = problem
    rng = np.random.default_rng(seed)
    weights = rng.choice([1.0, 2.5, 40.0, np.inf], len(p0))
    held = np.isinf(weights)
    dense = graph.toarray().astype(float)
    matrix = lam * (np.diag(dense.sum(axis=1)) - dense) + np.diag(np.where(held, 0, weights))
    matrix[held] = np.eye(len(p0))[held]
    expected = np.linalg.solve(matrix, np.where(held, 1, weights)[:, None] * p0)
    found = solve(graph, p0, lam, weights=weights, direct_cells=direct_cells)
    np.testing.assert_allclose(found.p, expected, atol=1e-7)
    np.testing.assert_array_equal(found.p[held], p0[held])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_must_be_above_zero(weight):
    with pytest.raises(RefineError, match="weight of row 1"):
        solve(sparse.csr_matrix((3, 3)), np.full((3, 2), 0.5), 1.0, weights=np.array([1.0, weight, 1.0]))


def test_the_order_of_cells_does_not_matter():
    rng = np.random.default_rng(1)
    graph, p0 = knn_graph(rng.normal(size=(3000, 4)).astype(np.float32), 10), rng.random((3000, 40))
    weights = np.where(np.arange(3000) % 50 == 0, np.inf, 1.0)
    order = np.random.default_rng(2).permutation(3000)
    for trust in (None, weights):
        plain, ordered = (solve(graph, p0, 2.0, weights=trust, order=one).p for one in (None, order))
        np.testing.assert_allclose(ordered, plain, atol=1e-8)


@given(
    lam=st.floats(0, allow_nan=False, allow_infinity=False),
    weight=st.floats(1e-6, 1e300) | st.just(float("inf")),
    direct=st.booleans(),
)
@settings(max_examples=60)
def test_any_finite_lam_is_solved_or_refused(lam, weight, direct):
    """Never an endless loop, whatever overflows float32."""
    graph = sparse.csr_matrix(np.ones((6, 6)) - np.eye(6))
    p0 = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    weights = np.array([weight, 1, 1, 1, 1, 1])
    try:
        solution = solve(graph, p0, lam, weights=weights, tol=1e-5, direct_cells=100 if direct else 0)
    except RefineError as error:
        assert "lam" in str(error) or "weight" in str(error)  # noqa: PT017
        return
    assert np.isfinite(solution.p).all()
    assert solution.residual <= 1e-5
