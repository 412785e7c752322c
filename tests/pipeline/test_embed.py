"""Runs with scGPT, and runs that embed only, on a local Ray."""

import anndata
import numpy as np
import pytest

from cellray import manifest as manifests
from cellray.errors import InputError, SettingError
from cellray.models import checkpoints
from cellray.models.official_scgpt import read_official_scgpt
from cellray.pipeline import annotate, refine_again
from cellray.report import evaluate
from cellray.settings import AnnotateSettings

pytestmark = pytest.mark.usefixtures("ray")


@pytest.fixture(scope="module")
def scgpt(shared, tmp_path_factory):
    """Folders of a model without classes and of one with six, and the official outputs."""
    official, folder = shared / "golden" / "scgpt-tiny", tmp_path_factory.mktemp("scgpt")
    checkpoints.save(folder / "plain", read_official_scgpt(official / "ckpt"))
    checkpoints.save(folder / "classes", read_official_scgpt(official / "finetuned", max_length=3001))
    return folder, official / "expected"


def run(inputs, out, model, **more):
    settings = {"inputs": (str(inputs),), "out": str(out), "model": str(model), "refine": "none", **more}
    return annotate(AnnotateSettings.checked(**settings))


def test_official_embeddings_from_file_to_file(shared, scgpt, tmp_path):
    folder, expected = scgpt
    cells = shared / "golden" / "input.h5ad"
    more = {"task": "embed", "layer": "tiefree", "max_length": 3000, "min_genes": 1, "shard_cells": 10}
    result = run(cells, tmp_path / "out", folder / "plain", **more)
    assert (result.exit_code, result.report) == (0, "")
    found = anndata.read_h5ad(tmp_path / "out" / "input.h5ad")
    wanted = np.load(expected / "embed_tiefree_full.npz")["X_scGPT"]
    assert found.obsm["X_scgpt"].dtype == np.float32
    certain = np.arange(48) != 23  # a cell of one gene, whose bin upstream draws
    np.testing.assert_allclose(found.obsm["X_scgpt"][certain], wanted[certain], atol=1e-4)
    assert not [name for name in found.obs if name.startswith("cellray_")]
    manifest = manifests.read(str(tmp_path / "out" / "datasets" / "input"))
    assert (manifest.n_embedded, manifest.n_annotated, manifest.n_rejected) == (48, 0, 0)


def test_embedding_rejects_empty_cells(cells, tiny_model, tmp_path):
    result = run(cells, tmp_path / "out", tiny_model, task="embed", min_genes=1)
    embedding = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad").obsm["X_langcell"]
    assert np.isnan(embedding).all(axis=1).nonzero()[0].tolist() == [5]
    assert result.summary()["n_embedded"] == 47
    assert manifests.read(str(tmp_path / "out" / "datasets" / "cells")).rejects == {"empty_cell": 1}
    with pytest.raises(InputError, match="no scores"):
        refine_again(str(tmp_path / "out"), str(tmp_path / "again"), {})
    with pytest.raises(SettingError, match="embeddings and no labels"):
        evaluate(str(tmp_path / "out"), "cell_type")


def test_a_classifier_annotates(shared, scgpt, tmp_path):
    folder, expected = scgpt
    result = run(
        shared / "golden" / "input.h5ad", tmp_path / "out", folder / "classes", min_genes=1, refine="grit", k=5
    )
    assert result.exit_code == 0
    found = anndata.read_h5ad(tmp_path / "out" / "input.h5ad")
    names = {str(name) for name in np.load(expected / "finetuned_counts_nonzero_seed0.npz")["types"]}
    assert set(found.obs["cellray_cell_type"]) <= names
    assert found.obsm["X_scgpt"].shape == (48, 32)
    assert (tmp_path / "out" / "report.html").exists()


def test_what_a_model_cannot_do_stops_the_run(shared, scgpt, tiny_model, tmp_path):
    folder, _ = scgpt
    cells = shared / "golden" / "input.h5ad"
    with pytest.raises(SettingError, match="cellray embed"):
        run(cells, tmp_path / "out", folder / "plain")
    (tmp_path / "labels.txt").write_text("B cell\nT cell\n")
    with pytest.raises(SettingError, match="leave --labels away"):
        run(cells, tmp_path / "out", folder / "classes", labels=str(tmp_path / "labels.txt"))
    with pytest.raises(SettingError, match="positions"):
        run(cells, tmp_path / "out", tiny_model, task="embed", max_length=5000)
    assert not (tmp_path / "out").exists()
