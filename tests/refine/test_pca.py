import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from cellray.refine.genes import highly_variable, moments
from cellray.refine.pca import principal_components as of_blocks

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def principal_components(counts, **more):
    """Of counts in three blocks of unequal length."""
    cuts = [0, counts.shape[0] // 3, counts.shape[0] // 3 + 1, counts.shape[0]]
    blocks = [counts[start:stop] for start, stop in itertools.pairwise(cuts)]
    return of_blocks(lambda: blocks, **more)


def blobs(n, genes, seed=0, groups=4):
    """Poisson counts of a few groups of cells with their own expression profiles."""
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.3, 1.0, (groups, genes))
    return sparse.csr_matrix(rng.poisson(profiles[rng.integers(0, groups, n)]).astype(np.float32))


def scanpy_by_hand(counts, n_pcs, n_top_genes):
    import anndata
    import scanpy as sc

    data = anndata.AnnData(counts.copy())
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    sc.pp.highly_variable_genes(data, flavor="seurat", n_top_genes=n_top_genes)
    data = data[:, data.var["highly_variable"]].copy()
    sc.pp.scale(data, max_value=10)
    sc.pp.pca(data, n_comps=n_pcs, svd_solver="arpack")
    return data.obsm["X_pca"]


def assert_equal_up_to_sign(ours, theirs):
    signs = np.sign(np.sum(ours * theirs, axis=0))
    np.testing.assert_allclose(ours * signs, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.filterwarnings("ignore:zero-centering")
@pytest.mark.parametrize("n", [300, 700])
def test_equals_the_scanpy_calls_up_to_sign(n):
    counts = blobs(n, 2500)
    points, settings = principal_components(counts, n_pcs=3, n_top_genes=800)
    assert settings["n_genes"] == 800
    assert_equal_up_to_sign(points, scanpy_by_hand(counts, 3, 800))


@pytest.mark.filterwarnings("ignore:zero-centering")
def test_equals_the_scanpy_calls_on_real_cells():
    path = SHARED / "data" / "datasets" / "pancreas_baron2016_mini.h5ad"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    import anndata

    counts = sparse.csr_matrix(anndata.read_h5ad(path).X, dtype=np.float32)
    points, settings = principal_components(counts, n_pcs=50)
    assert settings["n_genes"] == 2000
    assert_equal_up_to_sign(points, scanpy_by_hand(counts, 50, 2000))


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_chooses_the_genes_that_scanpy_chooses(flavor):
    import anndata
    import scanpy as sc

    counts = blobs(400, 3000, seed=5)
    data = anndata.AnnData(counts.copy())
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    sc.pp.highly_variable_genes(data, flavor=flavor, n_top_genes=500)
    theirs = np.flatnonzero(data.var["highly_variable"])
    found = moments([counts[:150], counts[150:]], 1e4)
    np.testing.assert_array_equal(highly_variable(found, 500, flavor), theirs)
    plain = data.X.toarray()
    np.testing.assert_allclose(found.log_mean, plain.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.log_variance, plain.var(axis=0, ddof=1), rtol=1e-4, atol=1e-7)


def test_leaves_the_input_alone_and_repeats_itself():
    counts = blobs(600, 900)
    before = counts.copy()
    first, _ = principal_components(counts, n_pcs=20, n_top_genes=600)
    second, _ = principal_components(counts, n_pcs=20, n_top_genes=600)
    assert first.dtype == np.float32
    assert first.shape == (600, 20)
    np.testing.assert_array_equal(first, second)
    assert (counts != before).nnz == 0


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("genes", [1, 2, 30, 2600])
def test_tiny_datasets_give_what_they_can(n, genes):
    points, settings = principal_components(blobs(n, genes), n_pcs=50)
    assert points.shape == (n, settings["n_pcs"])
    assert settings["n_pcs"] <= max(0, min(50, n - 1, genes))
    assert np.isfinite(points).all()


def test_few_genes_are_all_taken():
    counts = blobs(80, 40)
    _, settings = principal_components(counts, n_pcs=50)
    assert settings["n_genes"] == int(np.count_nonzero(np.ptp(counts.toarray(), axis=0)))
    assert settings["n_pcs"] == settings["n_genes"]


def test_constant_genes_do_not_count():
    rng = np.random.default_rng(1)
    varying = rng.poisson(3.0, (60, 5))
    varying[:, 4] = 40 - varying[:, :4].sum(axis=1)  # equal totals: a gene constant in the counts stays constant
    counts = np.hstack([varying, np.full((60, 3), 7), np.zeros((60, 2), int)])
    points, settings = principal_components(sparse.csr_matrix(counts.astype(np.float32)))
    assert settings["n_genes"] == 5
    one_gene = sparse.csr_matrix(rng.poisson(9, (60, 1)).astype(np.float32) + 1)
    assert principal_components(one_gene)[0].shape == (60, 0)
    assert points.shape[1] == 5


def test_cells_without_counts_and_duplicates_pass():
    counts = blobs(3, 2500)[np.random.default_rng(0).integers(0, 3, 50)].tolil()
    counts[7] = 0
    points, _ = principal_components(counts.tocsr(), n_pcs=20)
    again, _ = principal_components(counts.tocsr(), n_pcs=20)
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points, again)


def test_genes_without_a_dispersion_do_not_stop_it():
    counts = sparse.csr_matrix(np.eye(12, 24, dtype=np.float32) + np.eye(12, 24, k=12, dtype=np.float32))
    points, settings = principal_components(counts, n_top_genes=10)
    assert settings["n_genes"] == 10
    assert np.isfinite(points).all()
