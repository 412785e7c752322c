"""The same cells as people really bring them: labels equal those of the clean file, cell by cell."""

import zipfile

import anndata
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import scanpy
from anndata.io import write_elem
from scipy import sparse

from cellray import schema
from cellray.pipeline import annotate
from cellray.settings import AnnotateSettings

pytestmark = pytest.mark.usefixtures("ray")

NOTES = {
    "clean": "",
    "cite": "left out: 3 antibodies",
    "logged": "computed back from the smallest step of each cell",
    "layer": "layers/raw_counts is taken",
    "nearly": "are rounded",
    "multi": "modality 'rna' is read",
    "zipped": "",
    "two_genomes": "genome GRCh38",
}


def logs(data):
    data = data.copy()
    scanpy.pp.normalize_total(data, target_sum=1e4)
    scanpy.pp.log1p(data)
    return data.X.astype(np.float32)


def beside(data, names, value, **var):
    """Return the cells with columns that are no genes of them."""
    extra = np.full((data.n_obs, len(names)), value, np.float32)
    wider = anndata.AnnData(sparse.hstack([data.X, extra]).tocsr(), obs=data.obs.copy())
    wider.var_names = [*data.var_names, *names]
    for key, (own, theirs) in var.items():
        wider.var[key] = [own] * data.n_vars + [theirs] * len(names)
    return wider


@pytest.fixture(scope="module")
def inputs(cells, tmp_path_factory):
    """Paths of the same 48 cells in many shapes."""
    folder = tmp_path_factory.mktemp("inputs")
    clean = anndata.read_h5ad(cells)
    genes = list(clean.var_names)
    made = {"clean": clean.copy()}
    made["cite"] = beside(clean, [genes[3], "CD4", "CD8A"], 900, feature_types=("Gene Expression", "Antibody Capture"))
    made["logged"] = clean.copy()
    made["logged"].X = logs(clean)
    made["layer"] = made["logged"].copy()
    made["layer"].layers["raw_counts"] = clean.X.copy()
    made["nearly"] = clean.copy()
    made["nearly"].X = clean.X * np.float32(1.0000002)
    prefixed = clean.copy()
    prefixed.var_names = [f"GRCh38_{name}" for name in genes]
    made["two_genomes"] = beside(prefixed, [f"mm10___Gene{n}" for n in range(9)], 700)
    paths = []
    for name, data in made.items():
        path = folder / (f"{name}.h5" if name == "nearly" else f"{name}.h5ad")
        data.write_h5ad(folder / "one.h5ad")
        paths.append((folder / "one.h5ad").rename(path))
    with h5py.File(folder / "multi.h5mu", "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
        write_elem(file, "mod/rna", clean)
        write_elem(file, "mod/prot", anndata.AnnData(np.full((48, 2), 30.0)))
    clean.write_zarr(folder / "store")
    with zipfile.ZipFile(folder / "zipped.zarr.zip", "w") as archive:
        for path in sorted((folder / "store").rglob("*")):
            if path.is_file():
                archive.write(path, str(path.relative_to(folder / "store")))
    return [*paths, folder / "multi.h5mu", folder / "zipped.zarr.zip"]


@pytest.fixture(scope="module")
def annotated(inputs, tiny_model, ray, tmp_path_factory):
    out = tmp_path_factory.mktemp("annotated") / "out"
    result = annotate(
        AnnotateSettings.checked(inputs=tuple(map(str, inputs)), out=str(out), model=str(tiny_model), k=5, min_genes=6)
    )
    assert result.failed == {}
    return out, result


def labels(out, name):
    table = pq.read_table(f"{out}/datasets/{name}/annotations.parquet")
    return table.drop_columns([schema.CELL_ID])


@pytest.mark.parametrize("name", NOTES)
def test_labels_are_those_of_the_clean_file(annotated, name):
    out, result = annotated
    clean, table = labels(out, "clean"), labels(out, name)
    assert clean[schema.STATUS].to_pylist().count("annotated") == 45
    if name in ("logged",):  # a cell of two genes with two counts each is found with one each
        clean, table = (one.filter(one[schema.REJECT_CODE].is_null()) for one in (clean, table))
    assert table.equals(clean)
    manifest = result.finished[name]
    assert NOTES[name] in "; ".join(manifest.plan["notes"])
    copy = anndata.read_h5ad(f"{out}/{name}.h5ad")
    assert copy.n_obs == 48
    assert list(copy.uns["cellray"]["plan"]["notes"]) == manifest.plan["notes"]
    assert (copy.obs["cellray_status"] == "annotated").sum() == 45
