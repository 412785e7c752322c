"""Counts computed back from log-normalised values, and values that are nearly whole."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cellray.ingest.values import Conversion, converted, near_integer, recovered


def logs(counts, totals):
    scaled = np.asarray(counts) / np.asarray(counts).sum(axis=1, keepdims=True) * totals
    return sparse.csr_matrix(np.log1p(scaled).astype(np.float32))


@given(
    rows=st.lists(st.lists(st.integers(0, 3000), min_size=12, max_size=12), min_size=1, max_size=5),
    target=st.sampled_from([1e4, 1e6, 1234.5, 777]),
)
def test_counts_come_back_exactly(rows, target):
    counts = np.array(rows)
    counts[:, 0] = 1  # as in every real cell, some gene has one molecule
    found, good = recovered(logs(counts, target))
    assert good.all()
    assert found.tolist() == counts[counts > 0].tolist()


@given(smallest=st.integers(2, 10), others=st.lists(st.integers(11, 500), min_size=3, max_size=20))
def test_the_smallest_count_need_not_be_one(smallest, others):
    counts = np.array([[smallest, *others]])
    divisor = np.gcd.reduce(counts[0])
    found, good = recovered(logs(counts, 1e4))
    assert good.all()
    assert (found * divisor).tolist() == counts[0].tolist()


def test_what_was_no_count_is_not_made_one():
    rng = np.random.default_rng(0)
    values = sparse.csr_matrix(np.log1p(rng.gamma(1.0, 2.0, (20, 50))).astype(np.float32))
    found, good = recovered(values)
    assert not good.any()
    np.testing.assert_array_equal(found, values.data.astype(np.float64))
    assert (converted(values, Conversion.LOG1P, integers=True) != values).nnz == 0


def test_a_bad_cell_does_not_touch_its_neighbours():
    counts = np.array([[1, 2, 3, 4], [1, 5, 0, 7], [0, 0, 0, 0], [1, 1, 9, 0]])
    values = logs(np.maximum(counts, 0) + (counts.sum(1, keepdims=True) == 0), 1e4).tolil()
    values[2] = 0
    values[1, 1] += 0.01
    values = values.tocsr()
    _, good = recovered(values)
    assert good.tolist() == [True, False, True, True]


@pytest.mark.parametrize("cuts", [[0, 30], [0, 7, 8, 30]])
def test_the_same_however_cells_are_cut(cuts):
    counts = np.random.default_rng(1).poisson(1.0, (30, 40)) + np.eye(30, 40, dtype=int)
    values = logs(counts, 1e4)
    blocks = [converted(values[a:b], Conversion.LOG1P, integers=True) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(sparse.vstack(blocks).toarray(), counts)


def test_nearly_whole_values_are_rounded_and_others_are_not():
    values = sparse.csr_matrix(np.array([[0.9999999, 3.0000002, 2.5, -1.0, 1e-5, np.nan]], np.float32))
    result = converted(values, Conversion.NONE, integers=True).toarray()[0]
    np.testing.assert_array_equal(result, [1, 3, 2.5, -1, 0, np.nan])
    assert converted(values, Conversion.NONE, integers=False) is values
    assert near_integer(np.array([1.0005, 1.002, np.nan, np.inf])).tolist()[:3] == [True, False, False]


def test_rounding_as_asked():
    values = sparse.csr_matrix(np.array([[0.3, 0.8, 2.5, 7.0]], np.float32))
    assert converted(values, Conversion.ROUND, integers=True).toarray().tolist() == [[0, 1, 2, 7]]


def test_proportions_of_log_values():
    counts = np.array([[1.0, 2.0, 7.0]])
    result = converted(logs(counts, 1e4), Conversion.EXPM1, integers=False).toarray()
    np.testing.assert_allclose(result, counts / 10 * 1e4, rtol=1e-6)
