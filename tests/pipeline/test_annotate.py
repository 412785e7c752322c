"""The whole run on a local Ray: outputs, resume, settings that change, bad datasets, every kind of input, S3."""

import gzip
import json
import shutil

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
import scanpy
from scipy import sparse
from scipy.io import mmwrite

from cellray import manifest as manifests
from cellray import schema
from cellray.errors import CountsError, LabelError, ModelError, RunLockedError, SettingError
from cellray.lock import RunLock
from cellray.pipeline import annotate
from cellray.settings import AnnotateSettings

pytestmark = pytest.mark.usefixtures("ray")


def run(inputs, out, model, **more):
    known = {"k": 5, **more}  # few enough neighbours for 45 cells to be smoothed
    return annotate(AnnotateSettings.checked(inputs=tuple(map(str, inputs)), out=str(out), model=str(model), **known))


def annotations(out, dataset_id):
    return pq.read_table(f"{out}/datasets/{dataset_id}/annotations.parquet")


@pytest.fixture(scope="module")
def annotated(cells, tiny_model, ray, tmp_path_factory):
    """Outputs of one run over the cells; read only."""
    out = tmp_path_factory.mktemp("annotated") / "out"
    run([cells], out, tiny_model, shard_cells=20)
    return out


def test_outputs(cells, tiny_model, tmp_path):
    result = run([cells], tmp_path / "out", tiny_model, shard_cells=16, k=5)
    assert result.exit_code == 0
    folder = tmp_path / "out" / "datasets" / "cells"
    manifest = manifests.read(str(folder))
    assert (manifest.n_cells, manifest.n_rejected) == (48, 3)
    assert manifest.rejects == {"empty_cell": 1, "too_few_genes": 2}
    assert [(shard.start, shard.stop) for shard in manifest.shards] == [(0, 16), (16, 32), (32, 48)]
    assert sorted(path.name for path in (folder / "scores").iterdir()) == sorted(
        shard.name for shard in manifest.shards
    )
    assert manifest.refinement["k"] == 5
    assert (folder / "_SUCCESS").exists()

    part = pq.read_table(folder / "scores" / manifest.shards[0].name)
    assert json.loads(part.schema.metadata[b"labels"]) == manifest.labels
    probabilities = np.array([row for row in part[schema.PROBABILITIES].to_pylist() if row is not None])
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)

    table = annotations(tmp_path / "out", "cells")
    assert table[schema.CELL_ID].to_pylist() == list(anndata.read_h5ad(cells).obs_names)
    copy = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad")
    before = anndata.read_h5ad(cells)
    assert (copy.X != before.X).nnz == 0
    assert copy.obs["cellray_status"].value_counts().to_dict() == {"annotated": 45, "rejected": 3}
    assert [
        value or None
        for value in copy.obs["cellray_cell_type"].astype(object).where(copy.obs["cellray_cell_type"].notna(), None)
    ] == table[schema.CELL_TYPE].to_pylist()
    assert copy.obsm["X_langcell"].shape == (48, 256)
    assert copy.uns["cellray"]["model_digest"]
    assert copy.uns["cellray"]["refinement"]["knn_recall"] == 1
    run_record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run_record["settings"]["shard_cells"] == 16
    assert run_record["versions"]["ray"]
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / schema.LOCK_FILE).exists() or RunLock(str(tmp_path / "out"), "next").__enter__()


def test_again_does_nothing_and_other_settings_redo_what_they_must(cells, tiny_model, tmp_path):
    out = tmp_path / "out"
    run([cells], out, tiny_model, shard_cells=16)
    folder = out / "datasets" / "cells"
    parts = {path.name: path.stat().st_mtime_ns for path in (folder / "scores").iterdir()}
    first = (folder / "annotations.parquet").stat().st_mtime_ns
    run([cells], out, tiny_model, shard_cells=16)
    assert (folder / "annotations.parquet").stat().st_mtime_ns == first
    run([cells], out, tiny_model, shard_cells=16, lam=5.0)
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "scores").iterdir()} == parts
    assert manifests.read(str(folder)).refinement["lam"] == 5.0
    run([cells], out, tiny_model, shard_cells=16, alpha=0.5, refine="none")
    assert not parts.keys() & {path.name for path in (folder / "scores").iterdir()}
    assert manifests.read(str(folder)).refinement is None
    assert set(annotations(out, "cells")[schema.SOURCE].to_pylist()) == {"encoder", None}


def test_a_lost_part_and_a_lost_manifest_come_back_as_they_were(cells, tiny_model, tmp_path):
    out = tmp_path / "out"
    run([cells], out, tiny_model, shard_cells=16)
    folder = out / "datasets" / "cells"
    before = (folder / "annotations.parquet").read_bytes()
    parts = sorted((folder / "scores").iterdir())
    part = parts[1].read_bytes()
    parts[1].unlink()
    (folder / "_SUCCESS").unlink()
    run([cells], out, tiny_model, shard_cells=16)
    assert parts[1].read_bytes() == part
    assert (folder / "annotations.parquet").read_bytes() == before


def test_shard_size_and_encoders_do_not_change_labels(cells, annotated, tiny_model, tmp_path):
    run([cells], tmp_path / "out", tiny_model, shard_cells=7, encoders=2)
    a, b = annotations(tmp_path / "out", "cells"), annotations(annotated, "cells")
    assert a[schema.CELL_TYPE].equals(b[schema.CELL_TYPE])
    np.testing.assert_allclose(a[schema.SCORE].to_numpy(), b[schema.SCORE].to_numpy(), atol=1e-5)


def test_one_bad_dataset_among_three_good_ones(cells, tiny_model, tmp_path):
    inputs = []
    for name in ("a", "b", "c"):
        inputs.append(tmp_path / f"{name}.h5ad")
        shutil.copy(cells, inputs[-1])
    bad = tmp_path / "bad.h5ad"
    bad.write_bytes(cells.read_bytes()[:5000])
    result = run([*inputs, bad], tmp_path / "out", tiny_model)
    assert result.exit_code == 3
    assert sorted(result.finished) == ["a", "b", "c"]
    assert "bad.h5ad" in result.failed["bad"]
    error = json.loads((tmp_path / "out" / "datasets" / "bad" / "error.json").read_text())
    assert error["code"] == "ReadError"
    assert not (tmp_path / "out" / "bad.h5ad").exists()
    shutil.copy(cells, bad)
    again = run([*inputs, bad], tmp_path / "out", tiny_model)
    assert again.exit_code == 0
    assert not (tmp_path / "out" / "datasets" / "bad" / "error.json").exists()


def test_damage_found_while_reading_fails_that_dataset_alone(cells, tiny_model, tmp_path):
    import h5py

    bad = tmp_path / "bad.h5ad"
    shutil.copy(cells, bad)
    with h5py.File(bad, "r+") as file:
        file["X/indices"][-1] = 1 << 30
    result = run([cells, bad], tmp_path / "out", tiny_model, shard_cells=16)
    assert result.exit_code == 3
    assert list(result.failed) == ["bad"]
    assert not (tmp_path / "out" / "datasets" / "bad" / "_SUCCESS").exists()


def write_tenx(data, folder):
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        mmwrite(file, sparse.coo_matrix(data.X.T).astype(int))
    features = "".join(f"{gene}\t{gene}-symbol\tGene Expression\n" for gene in data.var["ensembl_id"])
    (folder / "features.tsv.gz").write_bytes(gzip.compress(features.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("\n".join(data.obs_names).encode() + b"\n"))


@pytest.fixture(scope="module")
def others(cells, tiny_model, ray, tmp_path_factory):
    """Outputs of one run over the cells in four other forms."""
    folder = tmp_path_factory.mktemp("others")
    data = anndata.read_h5ad(cells)
    write_tenx(data, folder / "tenx")
    data.write_zarr(folder / "zarr.zarr")
    for name, form in (("csc", sparse.csc_matrix(data.X)), ("dense", data.X.toarray())):
        data.X = form
        data.write_h5ad(folder / f"{name}.h5ad")
    assert run(sorted(folder.iterdir()), folder / "out", tiny_model, shard_cells=20).exit_code == 0
    return folder / "out"


@pytest.mark.parametrize("kind", ["csc", "dense", "tenx", "zarr"])
def test_other_forms_give_the_same_labels(cells, annotated, others, kind):
    found, expected = annotations(others, kind), annotations(annotated, "cells")
    assert found.equals(expected)
    copy, data = (anndata.read_h5ad(path) for path in (others / f"{kind}.h5ad", cells))
    assert copy.obs["cellray_status"].value_counts()["annotated"] == 45
    assert copy.shape == data.shape
    assert (sparse.csr_matrix(copy.X) != data.X).nnz == 0
    assert not (others / "datasets" / kind / "staged").exists()


def test_s3_in_and_out(cells, annotated, tiny_model, tmp_path, s3):
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.put(str(cells), f"{s3}/in/cells.h5ad")
    result = run([f"{s3}/in/*.h5ad"], f"{s3}/out", tiny_model, shard_cells=20)
    assert result.exit_code == 0
    with fs.open(f"{s3}/out/datasets/cells/annotations.parquet") as file:
        assert pq.read_table(file).equals(annotations(annotated, "cells"))
    fs.get(f"{s3}/out/cells.h5ad", str(tmp_path / "copy.h5ad"))
    assert "cellray_cell_type" in anndata.read_h5ad(tmp_path / "copy.h5ad").obs
    fs.invalidate_cache()
    assert fs.exists(f"{s3}/out/report.html")
    assert not fs.exists(f"{s3}/out/{schema.LOCK_FILE}")


def test_labels_of_the_user(cells, tiny_model, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("B cell\nCL:0000084\nmine\tcell type: a kind of my own.\n")
    run([cells], tmp_path / "out", tiny_model, labels=str(labels), refine="none")
    manifest = manifests.read(str(tmp_path / "out" / "datasets" / "cells"))
    assert manifest.labels == ["B cell", "T cell", "mine"]
    assert manifest.label_ids == ["CL:0000236", "CL:0000084", ""]


def test_a_dataset_without_a_single_good_cell(cells, tiny_model, tmp_path):
    result = run([cells], tmp_path / "out", tiny_model, min_genes=100_000)
    assert result.exit_code == 1
    assert "all 48 cells were rejected (too_few_genes 47, empty_cell 1); " in result.failed["cells"]
    assert "--min-genes" in result.failed["cells"]
    assert json.loads((tmp_path / "out" / "datasets" / "cells" / "error.json").read_text())["code"] == "NoLabelError"
    assert not (tmp_path / "out" / "cells.h5ad").exists()


def test_a_single_good_cell(cells, tiny_model, tmp_path):
    data = anndata.read_h5ad(cells)[:1].copy()
    data.write_h5ad(tmp_path / "one.h5ad")
    result = run([tmp_path / "one.h5ad"], tmp_path / "out", tiny_model)
    assert result.summary()["n_annotated"] == 1


def test_bad_settings_leave_nothing_behind(cells, tiny_model, tmp_path):
    out = tmp_path / "out"
    one = tmp_path / "one.txt"
    one.write_text("B cell\n")
    twice = tmp_path / "twice.txt"
    twice.write_text("B cell\nT cell\nB cell\n")
    for error, more in [
        (SettingError, {"inputs": [tmp_path / "missing.h5ad"]}),
        (ModelError, {"model": tmp_path / "nowhere"}),
        (SettingError, {"labels": str(tmp_path / "missing.txt")}),
        (LabelError, {"labels": str(one)}),
        (LabelError, {"labels": str(twice)}),
    ]:
        given = {"inputs": [cells], "model": tiny_model, **more}
        with pytest.raises(error):
            run(given.pop("inputs"), out, given.pop("model"), **given)
        assert not out.exists()


def test_counts_that_can_be_computed_back_give_the_same_labels(cells, annotated, tiny_model, tmp_path):
    data = anndata.read_h5ad(cells)
    scanpy.pp.normalize_total(data)
    scanpy.pp.log1p(data)
    data.write_h5ad(tmp_path / "logged.h5ad")
    run([tmp_path / "logged.h5ad"], tmp_path / "out", tiny_model, shard_cells=20)
    found, expected = annotations(tmp_path / "out", "logged"), annotations(annotated, "cells")
    assert found[schema.CELL_TYPE].equals(expected[schema.CELL_TYPE])


def test_scaled_values_are_refused(cells, tiny_model, tmp_path):
    data = anndata.read_h5ad(cells)
    scanpy.pp.normalize_total(data)
    scanpy.pp.log1p(data)
    scanpy.pp.scale(data)
    data.write_h5ad(tmp_path / "scaled.h5ad")
    with pytest.raises(CountsError, match=r"scaled\.h5ad.*--layer"):
        run([tmp_path / "scaled.h5ad"], tmp_path / "out", tiny_model)
    assert not (tmp_path / "out").exists()


def test_two_runs_into_one_folder(cells, tiny_model, tmp_path):
    with RunLock(str(tmp_path / "out"), "run-one"), pytest.raises(RunLockedError, match="run-one"):
        run([cells], tmp_path / "out", tiny_model)


def test_more_encoders_than_cpus(cells, tiny_model, tmp_path):
    with pytest.raises(SettingError, match="--encoders 99"):
        run([cells], tmp_path / "out", tiny_model, encoders=99)


def test_a_dataset_too_large_to_refine_fails_instead_of_waiting(cells, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("cellray.pipeline.finish.Finishing.memory_bytes", lambda _: 10**15)
    result = run([cells], tmp_path / "out", tiny_model)
    assert result.exit_code == 1
    assert "--refine none" in result.failed["cells"]
