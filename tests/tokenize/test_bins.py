"""scGPT's bins: the official numbers where they are no matter of chance, and one of the allowed ones where they are."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cellray.tokenize.bins import bin_tokens


def bounds(values, n_bins=51):
    """Lowest and highest bin that upstream can draw for each value."""
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
    return np.minimum(left, right + 1), left


def of_row(values, **more):
    row = sparse.csr_matrix(np.asarray(values, np.float32)[None])
    return bin_tokens(row, ["cell"], np.arange(len(values)), max_genes=len(values) + 1, **more)


def test_bins_are_the_official_ones_where_these_are_not_random(shared):
    cases = np.load(shared / "golden" / "scgpt-tiny" / "expected" / "binning_cases.npz")
    certain = 0
    for start, stop in zip(cases["offsets"][:-1], cases["offsets"][1:], strict=True):
        values, digits = cases["values"][start:stop], cases["digits"][start:stop]
        low, high = bounds(values)
        found = of_row(values).bins
        fixed = low == high
        np.testing.assert_array_equal(found[fixed], digits[fixed])
        assert (found >= low).all()
        assert (found <= high).all()
        certain += fixed.sum()
    assert certain > 1000


def test_zeros(shared):
    cases = np.load(shared / "golden" / "scgpt-tiny" / "expected" / "binning_zero_rows.npz")
    for values, binned in zip(cases["values"], cases["binned"], strict=True):
        found = of_row(values, zero_genes=np.arange(len(values)))
        np.testing.assert_array_equal(found.bins[values == 0], 0)
        low, high = bounds(values[values > 0]) if values.any() else (np.empty(0), np.empty(0))
        assert (found.bins[values > 0] >= low).all()
        assert (found.bins[values > 0] <= high).all()
        assert ((binned == 0) == (found.bins == 0)).all()
        np.testing.assert_array_equal(of_row(values).tokens, np.flatnonzero(values))


@pytest.mark.parametrize(
    ("name", "layer", "normalise", "zeros"),
    [
        ("tiefree_nonzero", "tiefree", "total", False),
        ("tiefree_withzeros", "tiefree", "total", True),
        ("counts_nonzero_seed0", None, "log1p", False),
    ],
)
def test_tokens_of_the_fine_tuned_model(shared, name, layer, normalise, zeros):
    import anndata

    data = anndata.read_h5ad(shared / "golden" / "input.h5ad")
    expected = np.load(shared / "golden" / "scgpt-tiny" / "expected" / f"finetuned_{name}.npz")
    values = sparse.csr_matrix(data[:, list(expected["gene_names"])].layers[layer] if layer else data.X)
    if layer is None:
        values = sparse.csr_matrix(data[:, list(expected["gene_names"])].X)
    genes = np.arange(values.shape[1])
    more = {"normalise": normalise, "zero_genes": genes if zeros else None, "max_genes": 3000}
    found = bin_tokens(values, list(data.obs_names), expected["gene_ids"], **more)
    for row, binned in enumerate(expected["binned"]):
        own = slice(found.offsets[row], found.offsets[row + 1])
        kept = genes if zeros else np.flatnonzero(binned)
        np.testing.assert_array_equal(found.tokens[own], expected["gene_ids"][kept])
        low, high = bounds(expected["normed"][row][expected["normed"][row] > 0])
        fixed = low == high
        np.testing.assert_array_equal(
            found.bins[own][found.bins[own] > 0][fixed], binned[binned > 0][fixed], err_msg=str(row)
        )


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(3, 60), st.integers(0, 2**40))
def test_bins_are_always_allowed_ones(values, n_bins, seed):
    values = np.array(values, np.float32)
    found = of_row(values, n_bins=n_bins, seed=seed)
    there = values[values > 0]
    assert len(found.bins) == len(there)
    if len(there):
        low, high = bounds(there, n_bins)
        assert (found.bins >= low).all()
        assert (found.bins <= high).all()


def test_draws_belong_to_seed_cell_and_gene_alone():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.7, (40, 300)).astype(np.float32))
    names, tokens = [f"cell{row}" for row in range(40)], np.arange(300)
    whole = bin_tokens(counts, names, tokens, max_genes=50)
    order = rng.permutation(40)
    mixed = bin_tokens(counts[order], [names[row] for row in order], tokens, max_genes=50)
    for at, row in enumerate(order):
        one, other = (slice(found.offsets[i], found.offsets[i + 1]) for found, i in ((whole, row), (mixed, at)))
        np.testing.assert_array_equal(whole.tokens[one], mixed.tokens[other])
        np.testing.assert_array_equal(whole.bins[one], mixed.bins[other])
    assert (np.diff(whole.offsets) <= 50).all()
    again = bin_tokens(counts, names, tokens, max_genes=50, seed=1)
    assert (again.tokens != whole.tokens).any()
    assert (
        bin_tokens(counts, names, tokens, max_genes=300, seed=1).bins
        != bin_tokens(counts, names, tokens, max_genes=300).bins
    ).any()


def test_a_long_cell_keeps_a_fair_sample_of_its_genes():
    counts = sparse.csr_matrix(np.ones((2000, 20), np.float32))
    found = bin_tokens(counts, [f"c{row}" for row in range(2000)], np.arange(20), max_genes=5)
    kept = np.bincount(found.tokens, minlength=20) / 2000
    assert len(found.tokens) == 10_000
    np.testing.assert_allclose(kept, 0.25, atol=0.05)


def test_draws_are_uniform():
    """A cell with equal values: each bin from 1 to 50 is as likely as any other."""
    counts = sparse.csr_matrix(np.full((500, 40), 3, np.float32))
    bins = bin_tokens(counts, [f"c{row}" for row in range(500)], np.arange(40), max_genes=40).bins
    np.testing.assert_allclose(np.bincount(bins, minlength=51)[1:] / 20_000, 0.02, atol=0.005)


def test_unsigned_counts_do_not_overflow():
    counts = sparse.csr_matrix(np.array([[0, 1, 255, 7]], np.uint8))
    plain = sparse.csr_matrix(np.array([[0, 1, 255, 7]], np.float32))
    found, expected = (bin_tokens(one, ["a"], np.arange(4)) for one in (counts, plain))
    np.testing.assert_array_equal(found.bins, expected.bins)


def test_faster_than_the_usual_loop():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.1, (300, 10_000)).astype(np.float32))
    names = [f"c{row}" for row in range(300)]
    bin_tokens(counts, names, np.arange(10_000))

    def loop():
        for row in range(300):
            bounds(counts.data[counts.indptr[row] : counts.indptr[row + 1]])

    seconds = []
    for work in (loop, lambda: bin_tokens(counts, names, np.arange(10_000), max_genes=5000)):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    assert seconds[0] > 1.5 * seconds[1]


def test_a_tied_value_may_get_the_upper_of_its_bins():
    values = np.random.default_rng(0).integers(1, 4, 200)
    np.testing.assert_array_equal(of_row(values, draw_ties=False).bins, bounds(values)[1])


@given(st.lists(st.integers(1, 9), min_size=2, max_size=40), st.integers(1, 20), st.integers(0, 99))
def test_genes_may_be_kept_by_weight(values, most, seed):
    weights = np.random.default_rng(seed).random(len(values)) + 0.1
    row = sparse.csr_matrix(np.asarray(values, np.float32)[None])
    found = bin_tokens(row, ["cell"], np.arange(len(values)), max_genes=most, draw_ties=False, weights=weights)
    best = np.sort(np.argsort(-(np.asarray(values, np.float32) * weights), kind="stable")[:most])
    np.testing.assert_array_equal(found.tokens, best)
    np.testing.assert_array_equal(found.bins, of_row(values, draw_ties=False).bins[best])
