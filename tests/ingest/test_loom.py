"""Loom files."""

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellray.errors import ReadError
from cellray.ingest import loom, read_obs_text, read_rows


def write_loom(path, counts, columns, layers=()):
    with h5py.File(path, "w") as file:
        dense = counts.toarray().T
        file.create_dataset("matrix", data=dense, chunks=(16, 8), compression="gzip")
        for name in layers:
            file.create_dataset(f"layers/{name}", data=dense)
        text = h5py.string_dtype()
        file.create_dataset("row_attrs/Gene", data=np.array([f"S{n}" for n in range(60)], object), dtype=text)
        file.create_dataset("row_attrs/Accession", data=np.array(columns, object), dtype=text)
        file.create_dataset("col_attrs/CellID", data=np.array([f"c{n}" for n in range(50)], object), dtype=text)
        file.create_dataset("col_attrs/donor", data=np.array([f"d{n % 2}" for n in range(50)], object), dtype=text)


def test_loom(plan_of, counts, columns, tmp_path):
    write_loom(tmp_path / "a.loom", counts, columns, ["spliced"])
    plan = plan_of(tmp_path / "a.loom")
    assert (plan.source.kind, plan.layer, plan.gene_key, plan.layout) == ("loom", "X", "Accession", "dense")
    block = read_rows(plan, 7, 33)
    assert (block.counts != counts[7:33]).nnz == 0
    assert block.cell_ids == [f"c{n}" for n in range(7, 33)]
    assert read_obs_text(plan.source, "donor").tolist() == [f"d{n % 2}" for n in range(50)]
    assert plan_of(tmp_path / "a.loom", layer="spliced").layer == "layers/spliced"


def test_broken_loom(plan_of, counts, columns, tmp_path):
    write_loom(tmp_path / "a.loom", counts, columns)
    with h5py.File(tmp_path / "a.loom", "a") as file:
        del file["row_attrs/Gene"], file["row_attrs/Accession"]
    with pytest.raises(ReadError, match="row_attrs holds no names of genes"):
        plan_of(tmp_path / "a.loom")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
    chunks=st.tuples(st.integers(1, 9), st.integers(1, 9)) | st.none(),
    cut=st.tuples(st.integers(0, 8), st.integers(1, 9)),
    bound=st.sampled_from([1, 20, 1 << 24]),
)
def test_any_small_loom(tmp_path_factory, monkeypatch, shape, seed, chunks, cut, bound):
    """Cells of any range are the same, however the file is chunked and whatever a block may hold."""
    path, (n_cells, n_genes) = tmp_path_factory.mktemp("l") / "a.loom", shape
    counts = np.random.default_rng(seed).poisson(0.7, shape)
    with h5py.File(path, "w") as file:
        chunks = chunks and (min(chunks[0], n_genes), min(chunks[1], n_cells))
        file.create_dataset("matrix", data=counts.T, chunks=chunks)
        file["row_attrs/Gene"] = np.array([f"g{n}".encode() for n in range(n_genes)])
        file["col_attrs/CellID"] = np.array([f"c{n}".encode() for n in range(n_cells)])
    start = min(cut[0], n_cells - 1)
    stop = min(start + cut[1], n_cells)
    with monkeypatch.context() as patch, h5py.File(path) as file:
        patch.setattr(loom, "_BLOCK_VALUES", bound)
        patch.setattr(loom.matrices, "BLOCK", 1)
        reader = loom.LoomReader(file)
        block = reader.rows(reader.matrix("X"), start, stop)
        assert reader.cell_names(start, stop) == [f"c{n}" for n in range(start, stop)]
    np.testing.assert_array_equal(block.toarray(), counts[start:stop])


def test_cells_without_names_and_other_attributes(plan_of, counts, columns, tmp_path):
    """Attributes that do not fit the cells are not read, nor are links to other files."""
    write_loom(tmp_path / "a.loom", counts, columns)
    write_loom(tmp_path / "other.loom", counts, columns)
    with h5py.File(tmp_path / "a.loom", "a") as file:
        del file["col_attrs/CellID"]
        file["col_attrs/CellID"] = [b"one"]
        file["col_attrs/umap"] = np.zeros((50, 2))
        file["col_attrs/group/x"] = np.zeros(50)
        reader = loom.LoomReader(file)
        assert reader.keys_beside("obs") == ["donor"]
        assert reader.cell_names(3, 5) == ["3", "4"]
        file["col_attrs/link"] = h5py.ExternalLink(str(tmp_path / "other.loom"), "col_attrs/donor")
        with pytest.raises(ValueError, match="link to another file"):
            reader.keys_beside("obs")


def test_feature_types_of_a_loom(plan_of, counts, columns, tmp_path):
    write_loom(tmp_path / "a.loom", counts, columns)
    with h5py.File(tmp_path / "a.loom", "a") as file:
        file["row_attrs/feature_types"] = np.array([b"Antibody Capture"] * 4 + [b"Gene Expression"] * 56)
    plan = plan_of(tmp_path / "a.loom")
    assert plan.notes == ("left out: 4 antibodies",)
    assert (read_rows(plan, 0, 50).counts != counts[:, 4:]).nnz == 0
