"""Annotated copies of what is no ``.h5ad``: genes alone of what is built, the whole of any AnnData, names read once."""

import zipfile

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem
from scipy import sparse

from cellray import manifest as manifests
from cellray import write
from cellray.ingest import find_sources, inspect_dataset
from cellray.ingest.genes import GeneIndex
from cellray.ingest.reader import Reader
from cellray.ingest.tenx import TenxReader
from cellray.models import checkpoints
from cellray.pipeline import annotate
from cellray.pipeline.annotated_copy import write_copy
from cellray.settings import AnnotateSettings


@pytest.fixture(scope="module")
def clean(cells):
    """The cells with one table of every kind beside them."""
    data = anndata.read_h5ad(cells)
    data.obs["donor"] = pd.Categorical(np.where(np.arange(48) % 2, "a", "b"))
    data.obsm["X_pca"] = np.ones((48, 2), np.float32)
    data.layers["other"] = sparse.csr_matrix(data.X * 2)
    data.uns["title"] = "mine"
    return data


@pytest.fixture(scope="module")
def inputs(clean, tmp_path_factory):
    """A 10x file with antibodies, MuData with a modality that is no RNA, a zipped store, a loom file."""
    folder = tmp_path_factory.mktemp("inputs")
    counts = sparse.hstack([clean.X, np.full((48, 2), 30.0)]).tocsr().astype(np.int32)
    with h5py.File(folder / "tenx.h5", "w") as file:
        group = file.create_group("matrix")
        names = [*clean.var_names, "CD4", "CD8A"]
        group["barcodes"] = np.array(list(clean.obs_names), "S")
        group["data"], group["indices"], group["indptr"] = counts.data, counts.indices, counts.indptr
        group["shape"] = np.array(counts.shape[::-1])
        group["features/id"] = group["features/name"] = np.array(names, "S")
        group["features/feature_type"] = np.array(["Gene Expression"] * clean.n_vars + ["Antibody Capture"] * 2, "S")
        group["features/genome"] = np.array(["GRCh38"] * len(names), "S")
    with h5py.File(folder / "multi.h5mu", "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
        write_elem(file, "mod/rna", clean)
        write_elem(file, "mod/prot", anndata.AnnData(np.full((48, 2), 30.0)))
    clean.write_zarr(folder / "store")
    with zipfile.ZipFile(folder / "zipped.zarr.zip", "w") as archive:
        for path in sorted((folder / "store").rglob("*")):
            if path.is_file():
                archive.write(path, str(path.relative_to(folder)))
    with h5py.File(folder / "cells.loom", "w") as file:
        file["matrix"] = clean.X.toarray().T
        file["row_attrs/Gene"] = np.array(list(clean.var_names), "S")
        file["col_attrs/CellID"] = np.array(list(clean.obs_names), "S")
        file["col_attrs/donor"] = np.array(list(clean.obs["donor"]), "S")
        file["col_attrs/depth"] = np.arange(48) / 4
        file.create_group("layers")
    return folder


@pytest.fixture(scope="module")
def annotated(inputs, tiny_model, ray, tmp_path_factory):
    out = tmp_path_factory.mktemp("copies") / "out"
    paths = tuple(str(inputs / name) for name in ("tenx.h5", "multi.h5mu", "zipped.zarr.zip", "cells.loom"))
    settings = {"inputs": paths, "out": str(out), "model": str(tiny_model), "shard_cells": 16, "refine": "none"}
    result = annotate(AnnotateSettings.checked(**settings))
    assert result.failed == {}
    return out


def test_what_is_no_gene_is_not_in_a_copy_that_is_built(annotated, clean):
    copy = anndata.read_h5ad(annotated / "tenx.h5ad")
    assert list(copy.var_names) == list(copy.var["gene_ids"]) == list(clean.var_names)
    assert (copy.X != clean.X).nnz == 0
    assert list(copy.obs_names) == list(clean.obs_names)
    plan = copy.uns["cellray"]["plan"]
    assert (plan["n_columns"], list(plan["notes"])) == (300, ["left out: 2 antibodies"])
    assert (copy.obs["cellray_status"] == "annotated").sum() == 45


@pytest.mark.parametrize("name", ["multi", "zipped"])
def test_anndata_is_copied_whole_whatever_holds_it(annotated, clean, name):
    copy = anndata.read_h5ad(annotated / f"{name}.h5ad")
    pd.testing.assert_frame_equal(copy.obs[list(clean.obs)], clean.obs)
    pd.testing.assert_frame_equal(copy.var, clean.var)
    assert (copy.X != clean.X).nnz == (copy.layers["other"] != clean.layers["other"]).nnz == 0
    assert set(copy.obsm) == {"X_pca", "X_langcell"}
    assert copy.uns["title"] == "mine"
    assert (copy.obs["cellray_status"] == "annotated").sum() == 45


def test_columns_of_cells_come_along(annotated, clean):
    copy = anndata.read_h5ad(annotated / "cells.h5ad")
    assert (copy.X != clean.X).nnz == 0
    assert list(copy.obs_names) == list(clean.obs_names)
    assert list(copy.obs["donor"]) == list(clean.obs["donor"])
    np.testing.assert_array_equal(copy.obs["depth"], np.arange(48) / 4)


def test_names_and_counts_are_read_once(annotated, inputs, tiny_model, tmp_path, monkeypatch):
    checkpoint = checkpoints.load(str(tiny_model))
    (source,) = find_sources([str(inputs / "tenx.h5")])
    plan = inspect_dataset(source, GeneIndex(checkpoint.genes, checkpoint.symbols))
    folder = annotated / "datasets" / "tenx"
    shards = manifests.read(str(folder)).shards
    results = write.Results(
        str(folder / "annotations.parquet"), [str(folder / "scores" / shard.name) for shard in shards], {}
    )
    read: dict[str, list[int]] = {"cell_names": [], "rows": []}

    def counted(name: str) -> None:
        whole = getattr(TenxReader, name)

        def method(self: Reader, *arguments: object) -> object:
            read[name] += range(*arguments[-2:])
            return whole(self, *arguments)

        monkeypatch.setattr(TenxReader, name, method)

    counted("cell_names")
    counted("rows")
    write_copy(plan, shards, str(tmp_path / "copy.h5ad"), results)
    assert read == {"cell_names": list(range(48)), "rows": list(range(48))}
    assert list(anndata.read_h5ad(tmp_path / "copy.h5ad").obs_names) == list(
        anndata.read_h5ad(annotated / "tenx.h5ad").obs_names
    )
