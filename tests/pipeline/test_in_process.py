"""An AnnData in memory: labels of a run over a file of the same cells, in every shape, without Ray and unchanged."""

import subprocess
import sys
import textwrap

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cellray
from cellray import schema
from cellray.errors import CountsError, MissingKeyError, NoLabelError, SettingError
from cellray.pipeline import annotate
from cellray.settings import AnnotateSettings

HOW = {"k": 5, "shard_cells": 20}
COLUMNS = [schema.OBS_PREFIX + name for name in schema.OBS_COLUMNS]


@pytest.fixture(scope="module")
def from_file(cells, tiny_model, ray, tmp_path_factory):
    """The annotated copy of the cells' file."""
    out = tmp_path_factory.mktemp("file") / "out"
    settings = {"inputs": (str(cells),), "out": str(out), "model": str(tiny_model), "cluster_key": "cell_type", **HOW}
    assert annotate(AnnotateSettings.checked(**settings)).exit_code == 0
    return anndata.read_h5ad(out / "cells.h5ad")


def shapes(cells, tmp_path):
    plain = anndata.read_h5ad(cells)
    yield "csr", plain.copy()
    csc = plain.copy()
    csc.X = sparse.csc_matrix(csc.X)
    yield "csc", csc
    dense = plain.copy()
    dense.X = dense.X.toarray().astype(np.int64)
    yield "dense", dense
    layer = plain.copy()
    layer.layers["counts"] = layer.X.copy()
    layer.X = sparse.csr_matrix(np.log1p(layer.X))
    yield "layer", layer
    raw = plain.copy()
    raw.raw = plain.copy()
    raw.X = None
    yield "raw", raw[:, :100]
    rng = np.random.default_rng(0)
    order = rng.permutation(60) % 48
    shuffled = plain[order].copy()
    shuffled.obs_names = [f"more-{n}" for n in range(60)]
    first = [int(np.flatnonzero(order == row)[0]) for row in range(48)]
    view = shuffled[first]
    yield "view", view
    backed = anndata.read_h5ad(cells, backed="r")
    yield "backed", backed
    csc.write_h5ad(tmp_path / "csc.h5ad")
    yield "backed csc", anndata.read_h5ad(tmp_path / "csc.h5ad", backed="r")


def test_labels_are_those_of_a_file_in_every_shape(cells, from_file, tiny_model, tmp_path):
    for name, adata in shapes(cells, tmp_path):
        assert cellray.annotate(adata, model=str(tiny_model), progress=False, **HOW) is adata
        for column in COLUMNS:
            mine, file = adata.obs[column], from_file.obs[column]
            assert mine.dtype == file.dtype, (name, column)
            if file.dtype == np.float32:
                np.testing.assert_allclose(mine.to_numpy(), file.to_numpy(), atol=1e-5, err_msg=name)
            else:
                assert mine.astype(object).fillna("").tolist() == file.astype(object).fillna("").tolist(), name
        np.testing.assert_allclose(adata.obsm["X_langcell"], from_file.obsm["X_langcell"], atol=2e-3, err_msg=name)
        record = adata.uns["cellray"]
        assert set(record) | {"cluster_key"} == set(from_file.uns["cellray"]), name
        assert record["model_digest"] == from_file.uns["cellray"]["model_digest"]
        assert record["plan"]["kind"] == record["plan"]["content_hash"] == "memory"


def test_nothing_else_of_the_object_changes(cells, tiny_model, tmp_path):
    adata = anndata.read_h5ad(cells)
    # Neither canonical nor sorted: what reads it must not mend it.
    counts = adata.X.tocsr()
    flipped = [np.arange(a, b)[::-1] for a, b in zip(counts.indptr[:-1], counts.indptr[1:], strict=True)]
    order = np.concatenate(flipped)
    data = np.concatenate([counts.data[order], [0.0]]).astype(np.float32)
    indices = np.concatenate([counts.indices[order], [3]]).astype(np.int32)
    indptr = counts.indptr.copy()
    indptr[-1] += 1
    adata.X = sparse.csr_matrix((data, indices, indptr), shape=counts.shape)
    adata.uns["mine"] = {"a": 1}
    adata.obs["cellray_of_old"] = 1
    before = (data.copy(), indices.copy(), indptr.copy(), list(adata.obs.columns), adata.var.copy())
    cellray.annotate(adata, model=str(tiny_model), **HOW)
    held = adata.X
    for now, then in zip((held.data, held.indices, held.indptr), before[:3], strict=True):
        np.testing.assert_array_equal(now, then)
    kept = [name for name in before[3] if name != "cellray_of_old"]
    assert list(adata.obs.columns) == [*kept, *COLUMNS]
    pd.testing.assert_frame_equal(adata.var, before[4])
    assert adata.uns["mine"] == {"a": 1}
    # A second time replaces, and the result can be saved and read.
    first = adata.obs.copy()
    cellray.annotate(adata, model=str(tiny_model), **HOW)
    pd.testing.assert_frame_equal(adata.obs, first)
    adata.write_h5ad(tmp_path / "saved.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "saved.h5ad").obs.columns) == list(adata.obs.columns)


def test_an_error_leaves_the_object_as_it_was(cells, tiny_model):
    adata = anndata.read_h5ad(cells)
    columns = list(adata.obs.columns)
    with pytest.raises(NoLabelError, match="all 48 cells were rejected"):
        cellray.annotate(adata, model=str(tiny_model), min_genes=100_000)
    with pytest.raises(NoLabelError, match="all 48 cells were rejected"):
        cellray.embed(adata, model=str(tiny_model), min_genes=100_000)
    with pytest.raises(MissingKeyError, match="adata: no layer 'spliced'"):
        cellray.annotate(adata, model=str(tiny_model), layer="spliced")
    with pytest.raises(MissingKeyError, match="obs has no 'leiden'"):
        cellray.annotate(adata, model=str(tiny_model), cluster_key="leiden")
    adata.X = adata.X - 3.5 * (adata.X > 0)
    with pytest.raises(CountsError, match="adata: no raw counts"):
        cellray.annotate(adata, model=str(tiny_model))
    assert (list(adata.obs.columns), list(adata.obsm), list(adata.uns)) == (columns, [], [])


def test_what_the_object_brings_along(cells, from_file, tiny_model):
    adata = anndata.read_h5ad(cells)
    adata.obs["known"] = np.where(np.arange(48) < 10, adata.obs["cell_type"].astype(str), "")
    adata.obs["donor"] = pd.Categorical(np.where(np.arange(48) % 2, "a", "b"))
    rng = np.random.default_rng(0)
    adata.obsm["X_rep"] = rng.normal(size=(48, 4))
    weights = rng.random((48, 48)) * (rng.random((48, 48)) < 0.2)
    adata.obsp["joined"] = sparse.csr_matrix(weights + weights.T)
    how = {"model": str(tiny_model), "progress": False, "cluster_key": "cell_type"}
    cellray.annotate(adata, anchor_key="known", k=5, **how)
    called = adata.obs["cellray_cell_type"].astype(object)
    annotated = (adata.obs["cellray_status"] == "annotated").to_numpy()
    rows = np.flatnonzero(annotated & (np.arange(48) < 10))
    assert called.iloc[rows].tolist() == adata.obs["known"].iloc[rows].tolist()
    assert adata.uns["cellray"]["refinement"]["n_anchored"] == len(rows) > 5
    cellray.annotate(adata, graph_batch_key="donor", k=6, **how)
    assert adata.uns["cellray"]["refinement"]["settings"]["graph"]["batches"]
    cellray.annotate(adata, use_rep="X_rep", k=5, **how)
    assert adata.uns["cellray"]["refinement"]["n_pcs"] == 4
    cellray.annotate(adata, use_graph="joined", **how)
    assert adata.uns["cellray"]["refinement"]["settings"]["graph"]["search"] == "given"
    cellray.annotate(adata, **HOW, **how)
    for name in (schema.CLUSTER_CELL_TYPE, schema.CLUSTER_SHARE):
        column = schema.OBS_PREFIX + name
        pd.testing.assert_series_equal(adata.obs[column], from_file.obs[column])


def test_what_is_decided_is_said_and_recorded(cells, tiny_model, capsys):
    adata = anndata.read_h5ad(cells)
    adata.var["feature_types"] = ["Gene Expression"] * 290 + ["Antibody Capture"] * 10
    cellray.annotate(adata, model=str(tiny_model), progress=True)
    said = capsys.readouterr().err
    assert "adata: left out: 10 antibodies" in said
    assert "adata: 45 annotated, 3 rejected" in said
    assert "encoding" in said
    assert "GRIT is skipped" in said, "45 cells of 15 neighbours"
    assert adata.uns["cellray"]["plan"]["notes"] == ["left out: 10 antibodies"]
    assert adata.uns["cellray"]["plan"]["n_columns"] == 290
    cellray.annotate(adata, model=str(tiny_model), progress=False)
    cellray.annotate(adata, model=str(tiny_model))  # a test is no terminal
    assert capsys.readouterr().err == ""


def test_embedding(cells, from_file, tiny_model):
    adata = anndata.read_h5ad(cells)
    assert cellray.embed(adata, model=str(tiny_model), shard_cells=20) is adata
    assert not [name for name in adata.obs if name.startswith("cellray_")]
    embedding = adata.obsm["X_langcell"]
    assert np.flatnonzero(np.isnan(embedding).any(axis=1)).tolist() == [5]
    there = from_file.obs["cellray_status"] == "annotated"
    np.testing.assert_allclose(embedding[there], from_file.obsm["X_langcell"][there], atol=2e-3)


def test_what_only_files_can_have_is_refused(cells, tiny_model):
    adata = anndata.read_h5ad(cells)
    many = anndata.AnnData(sparse.csr_matrix((100_001, 1), dtype=np.float32))
    with pytest.raises(SettingError, match=r"100,001 cells .* cellray.annotate\('cells.h5ad', out='FOLDER'\)"):
        cellray.annotate(many)
    for name, value in {"reason": "mini-cell-o1", "address": "auto", "encoders": 2}.items():
        with pytest.raises(SettingError, match=f"setting '{name}'"):
            cellray.annotate(adata, model=str(tiny_model), **{name: value})
    with pytest.raises(SettingError, match="to_memory"):
        cellray.annotate(anndata.read_h5ad(cells, backed="r")[:10])
    adata.X = adata.X.astype(str).toarray() if not sparse.issparse(adata.X) else adata.X.toarray().astype(object)
    with pytest.raises(cellray.CellRayError, match=r"adata: X holds values of type object.*astype"):
        cellray.annotate(adata, model=str(tiny_model))


def test_ray_is_not_even_imported(cells, tiny_model):
    script = """
        import sys, anndata, cellray
        adata = cellray.annotate(anndata.read_h5ad(sys.argv[1]), model=sys.argv[2], k=5, progress=True)
        assert "ray" not in sys.modules
        print(adata.obs["cellray_status"].value_counts().to_dict())
        import ray
        assert not ray.is_initialized()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(cells), str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'annotated': 45, 'rejected': 3}"
