"""Encodings of AnnData before 0.7, still found in public files, written by hand."""

import h5py
import numpy as np
import pytest

from cellray.ingest import read_rows


def compound(names, **columns):
    fields = [("index", h5py.string_dtype()), *((name, h5py.string_dtype()) for name in columns), ("number", "i4")]
    table = np.zeros(len(names), fields)
    for name, values in ({"index": names} | columns).items():
        table[name] = values
    return table


def sparse_group(file, path, matrix, **attributes):
    group = file.create_group(path)
    group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
    group.attrs.update(attributes)


@pytest.fixture
def cells(counts):
    return [f"c{row}" for row in range(counts.shape[0])]


def test_compound_tables_and_raw_beside_x(counts, columns, cells, plan_of, tmp_path):
    path = tmp_path / "a.h5ad"
    with h5py.File(path, "w") as file:
        file["obs"] = compound(cells)
        file["X"] = np.log1p(counts.toarray()[:, :30])
        file["var"] = compound([f"v{n}" for n in range(30)])
        sparse_group(file, "raw.X", counts, h5sparse_format=b"csr", h5sparse_shape=counts.shape)
        file["raw.var"] = compound([f"v{n}" for n in range(60)], gene_ids=columns)
    plan = plan_of(path)
    assert (plan.layer, plan.gene_key, plan.n_genes_known) == ("raw.X", "gene_ids", 55)
    block = read_rows(plan, 10, 20)
    assert block.cell_ids == cells[10:20]
    np.testing.assert_array_equal(block.counts.toarray(), counts[10:20].toarray())


def test_categories_beside_the_columns(counts, cells, plan_of, tmp_path):
    path = tmp_path / "a.h5ad"
    with h5py.File(path, "w") as file:
        sparse_group(file, "X", counts, **{"encoding-type": "csr_matrix", "shape": counts.shape})
        for name, index in (("obs", cells), ("var", [f"v{n}" for n in range(60)])):
            group = file.create_group(name)
            group.attrs["_index"] = "index"
            group["index"] = index
        file["var/symbol"] = np.array([*range(30), *range(29), -1], np.int8)
        file["var/__categories/symbol"] = [f"GENE{n}" for n in range(30)]
    plan = plan_of(path)
    assert (plan.gene_key, plan.gene_kind) == ("symbol", "symbol")
    assert plan.slots.tolist() == [*range(30), *range(29), -1]
