"""Rank tokens against a plain argsort loop, the official tokens, and their own invariants."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from cellray.tokenize import rank_tokens, token_batches


def loop(counts, n_counts, tokens, medians, max_genes):
    """The definition, one row at a time."""
    rows = []
    for row in range(counts.shape[0]):
        line = counts[[row]].tocoo()
        at, x = line.col[line.data != 0], line.data[line.data != 0]
        value = (x / n_counts[row] * np.float32(1e4)) / medians[at]
        rows.append(tokens[at][np.argsort(-value, kind="stable")][:max_genes])
    return rows


def split(flat, offsets):
    return [flat[a:b] for a, b in pairwise(offsets)]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 40)),
        elements=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 250, 65536]),
    ),
    st.integers(1, 50),
    st.randoms(use_true_random=False),
)
def test_equals_the_loop(dense, max_genes, random):
    counts = sparse.csr_matrix(dense)
    genes = dense.shape[1]
    tokens = np.array(random.sample(range(2, 60000), genes))
    # Few distinct medians, so that exact ties happen.
    medians = np.array([random.choice([0.5, 1.0, 1.5, 2.0, 1e-3, 700.0]) for _ in range(genes)])
    n_counts = np.maximum(dense.sum(1), 1).astype(np.float32)
    flat, offsets = rank_tokens(counts, n_counts, tokens, medians, max_genes)
    expected = loop(counts, n_counts, tokens, medians, max_genes)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(split(flat, offsets), expected, strict=True))


def test_a_stored_zero_is_no_gene():
    counts = sparse.csr_matrix(
        (np.array([0, 3, 0, 1], np.float32), np.array([0, 1, 2, 0]), np.array([0, 3, 4])), (2, 3)
    )
    flat, offsets = rank_tokens(counts, np.array([3, 1], np.float32), np.array([7, 8, 9]), np.ones(3), 10)
    assert [part.tolist() for part in split(flat, offsets)] == [[8], [7]]


def test_an_empty_cell_has_no_tokens():
    flat, offsets = rank_tokens(
        sparse.csr_matrix((2, 4), dtype=np.float32), np.zeros(2, np.float32), np.arange(4), np.ones(4), 10
    )
    assert len(flat) == 0
    assert offsets.tolist() == [0, 0, 0]


def test_order_is_by_count_over_median():
    counts = sparse.csr_matrix(np.array([[4, 4, 1]], np.float32))
    flat, _ = rank_tokens(counts, np.array([9], np.float32), np.array([10, 11, 12]), np.array([4.0, 1.0, 0.1]), 2)
    assert flat.tolist() == [12, 11]


def test_official_tokens(golden):
    expected = np.load(golden.folder / "expected" / "cell_tokens.npz")
    flat, offsets = golden.tokens(2048)
    np.testing.assert_array_equal(offsets, expected["trunc_offsets"])
    np.testing.assert_array_equal(flat, expected["trunc_ids"])


@given(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(1, 300)), st.integers(1, 1000))
def test_batches_cover_every_cell_within_the_budget(lengths, budget):
    batches = list(token_batches(lengths, budget))
    assert sorted(np.concatenate([*batches, np.empty(0, int)]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


@pytest.mark.parametrize("max_genes", [1, 3])
def test_max_genes_keeps_the_highest(max_genes):
    counts = sparse.csr_matrix(np.arange(1, 6, dtype=np.float32)[None])
    flat, _ = rank_tokens(counts, np.array([15], np.float32), np.arange(5), np.ones(5), max_genes)
    assert flat.tolist() == [4, 3, 2, 1, 0][:max_genes]
