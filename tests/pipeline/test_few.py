"""Datasets of few good cells: none at all is a failure that names its reason, a handful keeps the encoder's labels."""

import json

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest

from cellray import manifest as manifests
from cellray.pipeline import annotate, refine_again
from cellray.settings import AnnotateSettings

pytestmark = pytest.mark.usefixtures("ray")


def run(inputs, out, model, **more):
    return annotate(AnnotateSettings.checked(inputs=tuple(map(str, inputs)), out=str(out), model=str(model), **more))


def rows(out, dataset_id="cells"):
    return pq.read_table(f"{out}/datasets/{dataset_id}/annotations.parquet").to_pylist()


@pytest.fixture(scope="module")
def holes(cells, tmp_path_factory):
    """The cells with a missing value in every one, as an outer join leaves them, but for the empty one."""
    data = anndata.read_h5ad(cells)
    counts = data.X.toarray()
    counts[:, 7] = np.nan
    counts[5] = 0
    data.X = counts
    path = tmp_path_factory.mktemp("holes") / "holes.h5ad"
    data.write_h5ad(path)
    return path


def test_without_one_good_cell_a_dataset_has_failed(holes, cells, tiny_model, tmp_path):
    result = run([holes, cells], tmp_path / "out", tiny_model)
    assert (result.exit_code, list(result.finished)) == (3, ["cells"])
    message = result.failed["holes"]
    assert message.startswith("dataset 'holes': all 48 cells were rejected (not_finite 47, empty_cell 1); most are not")
    assert "fill_value=0" in message
    assert "\n" not in message
    folder = tmp_path / "out" / "datasets" / "holes"
    assert json.loads((folder / "error.json").read_text()) == {"code": "NoLabelError", "message": message}
    assert not {"_SUCCESS", "manifest.json", "annotations.parquet"} & {path.name for path in folder.iterdir()}
    assert not (tmp_path / "out" / "holes.h5ad").exists()
    assert message.split(";")[0] in (tmp_path / "out" / "report.html").read_text().replace("&#39;", "'")
    # Again: the same, without scoring anything; mended, it is done.
    again = run([holes, cells], tmp_path / "out", tiny_model)
    assert (again.exit_code, again.failed["holes"], again.cells_per_s) == (3, message, None)
    data = anndata.read_h5ad(holes)
    data.X = np.nan_to_num(data.X)
    data.write_h5ad(tmp_path / "holes.h5ad")
    mended = run([tmp_path / "holes.h5ad", cells], tmp_path / "out", tiny_model)
    assert (mended.exit_code, sorted(mended.finished)) == (0, ["cells", "holes"])
    assert not (folder / "error.json").exists()


def test_what_was_finished_and_then_loses_all_cells_is_finished_no_more(cells, tiny_model, tmp_path):
    assert run([cells], tmp_path / "out", tiny_model).exit_code == 0
    result = run([cells], tmp_path / "out", tiny_model, min_genes=100_000)
    assert result.exit_code == 1
    assert "--min-genes" in result.failed["cells"]
    assert not (tmp_path / "out" / "datasets" / "cells" / "_SUCCESS").exists()


def test_an_embedding_of_no_cell_is_a_failure(holes, tiny_model, tmp_path):
    result = run([holes], tmp_path / "out", tiny_model, task="embed", refine="none")
    assert result.exit_code == 1
    assert "all 48 cells were rejected (not_finite 47" in result.failed["holes"]
    assert not (tmp_path / "out" / "holes.h5ad").exists()


@pytest.fixture(scope="module")
def five(cells, tmp_path_factory):
    """Five good cells, two of them known."""
    data = anndata.read_h5ad(cells)[:5].copy()
    data.obs["known"] = ["", data.obs["cell_type"].iloc[4], "", data.obs["cell_type"].iloc[0], ""]
    data.obs["group"] = [0.0, 0.0, 1.0, np.nan, 1.0]
    path = tmp_path_factory.mktemp("five") / "cells.h5ad"
    data.write_h5ad(path)
    return path


@pytest.mark.parametrize("method", ["grit", "average"])
def test_a_handful_of_cells_keeps_the_encoders_labels(five, tiny_model, tmp_path, method):
    run([five], tmp_path / "out", tiny_model, refine=method)
    found = rows(tmp_path / "out")
    assert [row["source"] for row in found] == ["encoder"] * 5
    assert [row["cell_type"] for row in found] == [row["encoder_cell_type"] for row in found]
    manifest = manifests.read(str(tmp_path / "out" / "datasets" / "cells"))
    skipped = manifest.refinement["skipped"]
    assert manifest.refinement["method"] == method
    assert "5 cells are too few for 15 neighbours each" in skipped
    assert skipped in manifest.warnings
    assert anndata.read_h5ad(tmp_path / "out" / "cells.h5ad").uns["cellray"]["refinement"]["skipped"] == skipped
    assert "too few for 15 neighbours" in (tmp_path / "out" / "report.html").read_text()
    refine_again(str(tmp_path / "out"), str(tmp_path / "none"), {"refine": "none"})
    assert rows(tmp_path / "none") == found


def test_more_cells_than_three_neighbourhoods_are_smoothed(five, cells, tiny_model, tmp_path):
    run([five], tmp_path / "out", tiny_model, k=1)
    assert {row["source"] for row in rows(tmp_path / "out")} == {"grit"}
    run([five], tmp_path / "out", tiny_model, k=2)
    assert {row["source"] for row in rows(tmp_path / "out")} == {"encoder"}
    run([cells], tmp_path / "cells", tiny_model, k=15)  # 45 scored cells
    assert {row["source"] for row in rows(tmp_path / "cells")} == {"encoder", None}
    run([cells], tmp_path / "cells", tiny_model, k=14)
    assert {row["source"] for row in rows(tmp_path / "cells")} == {"grit", None}


def test_known_labels_of_a_handful_are_held_and_graphs_obeyed(five, tiny_model, tmp_path):
    run([five], tmp_path / "out", tiny_model, anchor_key="known", anchor_weight=2.0)
    found, data = rows(tmp_path / "out"), anndata.read_h5ad(five)
    known = data.obs["known"].astype(str).tolist()
    assert [row["source"] for row in found] == ["grit" if label else "encoder" for label in known]
    assert [row["cell_type"] for row in found if row["source"] == "grit"] == [label for label in known if label]
    assert manifests.read(str(tmp_path / "out" / "datasets" / "cells")).refinement["n_anchored"] == 2
    data.obsp["joined"] = np.ones((5, 5), np.float32)
    data.write_h5ad(tmp_path / "cells.h5ad")
    run([tmp_path / "cells.h5ad"], tmp_path / "graph", tiny_model, use_graph="joined")
    assert {row["source"] for row in rows(tmp_path / "graph")} == {"grit"}


def test_nothing_is_asked_about_a_handful(five, tiny_model, tmp_path):
    assert run([five], tmp_path / "out", tiny_model, reason="mini-cell-o1").exit_code == 0
    assert manifests.read(str(tmp_path / "out" / "datasets" / "cells")).reasoning["groups"] == 0


def test_clusters_of_the_user_get_one_label_each(five, tiny_model, tmp_path):
    data = anndata.read_h5ad(five)
    data.obs["cellray_cluster_cell_type"] = "of old"
    data.write_h5ad(tmp_path / "cells.h5ad")
    run([tmp_path / "cells.h5ad"], tmp_path / "out", tiny_model, cluster_key="group")
    copy = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad")
    labels, shares = copy.obs["cellray_cluster_cell_type"], copy.obs["cellray_cluster_cell_type_share"]
    assert labels.isna().tolist() == shares.isna().tolist() == [False, False, False, True, False]
    for rows_of in ([0, 1], [2, 4]):
        assert labels.iloc[rows_of].nunique() == 1
        own = copy.obs["cellray_cell_type"].iloc[rows_of].astype(str)
        assert shares.iloc[rows_of[0]] == (own == labels.iloc[rows_of[0]]).mean() > 0
    assert copy.uns["cellray"]["cluster_key"] == "group"
    manifest = manifests.read(str(tmp_path / "out" / "datasets" / "cells"))
    assert [one["cluster"] for one in manifest.clusters["clusters"]] == ["0.0", "1.0"]
    # Without, they are gone; with another column they are others.
    run([tmp_path / "cells.h5ad"], tmp_path / "out", tiny_model)
    assert "cellray_cluster_cell_type" not in anndata.read_h5ad(tmp_path / "out" / "cells.h5ad").obs
    assert manifests.read(str(tmp_path / "out" / "datasets" / "cells")).clusters is None
