"""Real cells and the golden input, against anndata and against what the official tokeniser counted."""

import gzip
import json

import anndata
import numpy as np
import pyarrow as pa
import pytest

from cellray import schema
from cellray.ingest import GeneIndex, count_rejects, find_sources, inspect_dataset, read_rows, read_shard


@pytest.fixture(scope="module")
def geneformer(shared):
    def load(name):
        return json.loads(gzip.decompress((shared / "data" / "geneformer" / f"{name}.json.gz").read_bytes()))

    tokens, medians, symbols = load("token_dictionary"), load("gene_median_dictionary"), load("gene_name_id_dict")
    genes = [(name, tokens[name], medians[name]) for name in tokens if name in medians]
    table = pa.table(list(zip(*genes, strict=True)), schema=schema.genes())
    return GeneIndex(table, pa.table([list(symbols), list(symbols.values())], schema=schema.symbols()))


@pytest.mark.parametrize(
    ("name", "n_known"),
    [("liver_he2020", 14514), ("pancreas_baron2016_mini", 12355), ("pbmc_kang2018_1267genes", 1261)],
)
def test_public_datasets(shared, geneformer, name, n_known):
    path = shared / "data" / "datasets" / f"{name}.h5ad"
    plan = inspect_dataset(find_sources([str(path)])[0], geneformer)
    assert (plan.layer, plan.layout, plan.gene_key, plan.n_genes_known) == ("X", "csr", "ensembl_id", n_known)
    adata = anndata.read_h5ad(path)
    shard = read_shard(plan, 50, 150, min_genes=20, n_slots=geneformer.n_genes)
    assert shard.cell_ids == adata.obs_names[50:150].tolist()
    assert set(shard.reject_codes) == {None}
    np.testing.assert_array_equal(shard.n_counts, adata.X[50:150].sum(axis=1).A1)
    kept = plan.slots >= 0
    np.testing.assert_array_equal(shard.counts.sum(axis=1).A1, adata.X[50:150][:, kept].sum(axis=1).A1)
    assert (read_rows(plan, 50, 150).counts != adata.X[50:150]).nnz == 0


def test_golden_input(shared, geneformer):
    path = shared / "golden" / "input.h5ad"
    plan = inspect_dataset(find_sources([str(path)])[0], geneformer)
    shard = read_shard(plan, 0, plan.n_cells, min_genes=20, n_slots=geneformer.n_genes)
    golden = np.load(shared / "golden" / "langcell-tiny" / "expected" / "cell_tokens.npz")
    np.testing.assert_array_equal(shard.n_counts, golden["n_counts"])
    np.testing.assert_array_equal(shard.n_genes, np.diff(golden["full_offsets"]))
    assert count_rejects(plan, min_genes=20, n_slots=geneformer.n_genes) == {"too_few_genes": 1}
