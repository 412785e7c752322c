"""Refinement inside a run and alone: what the dataset brings along, and stored scores refined again."""

import json
import shutil

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from cellray import cli
from cellray import manifest as manifests
from cellray.errors import InputError, RefineError, SettingError
from cellray.pipeline import annotate, refine_again
from cellray.settings import AnnotateSettings
from jobs.bench.synthetic import TYPES

pytestmark = pytest.mark.usefixtures("ray")


def run(inputs, out, model, **more):
    return annotate(AnnotateSettings.checked(inputs=tuple(map(str, inputs)), out=str(out), model=str(model), **more))


def table(out, dataset_id="cells"):
    return pq.read_table(f"{out}/datasets/{dataset_id}/annotations.parquet")


@pytest.fixture(scope="module")
def rich_cells(cells, tmp_path_factory):
    """The cells with batches, a representation, a graph and some known labels; one of them has no name."""
    data = anndata.read_h5ad(cells)
    rng = np.random.default_rng(0)
    data.obs["donor"] = np.where(np.arange(48) % 2, "a", "b")
    data.obs["known"] = np.where(np.arange(48) < 10, data.obs["cell_type"].astype(str), "")
    data.obsm["X_rep"] = rng.normal(size=(48, 4)).astype(np.float32)
    weights = rng.random((48, 48)) * (rng.random((48, 48)) < 0.2)
    data.obsp["joined"] = sparse.csr_matrix(weights + weights.T)
    path = tmp_path_factory.mktemp("rich") / "cells.h5ad"
    data.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def scored(rich_cells, tiny_model, ray, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "out"
    run([rich_cells], out, tiny_model, shard_cells=16, refine="none")
    return out


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    """A folder that the first to annotate fills, and that the others annotate anew with other settings."""
    return tmp_path_factory.mktemp("direct") / "out"


@pytest.mark.parametrize(
    "how",
    [
        {"k": 5, "lam": 3.0},
        {"k": 5, "refine": "majority"},
        {"k": 5, "lam": "gcv"},
        {"k": 5, "use_rep": "X_rep"},
        {"use_graph": "joined"},
        {"graph_batch_key": "donor", "k": 6},
        {"k": 5, "anchor_key": "known", "anchor_weight": 5.0},
    ],
)
def test_refining_stored_scores_gives_what_annotating_gives(rich_cells, scored, direct, tiny_model, tmp_path, how):
    before = {path: path.read_bytes() for path in scored.rglob("*") if path.is_file()}
    again = refine_again(str(scored), str(tmp_path / "again"), how)
    assert again.exit_code == 0
    run([rich_cells], direct, tiny_model, shard_cells=16, **how)
    a, b = (out / "datasets" / "cells" / "annotations.parquet" for out in (tmp_path / "again", direct))
    assert a.read_bytes() == b.read_bytes()
    manifest = manifests.read(str(tmp_path / "again" / "datasets" / "cells"))
    assert "encode" not in manifest.seconds
    assert manifest.refinement["method"] == how.get("refine", "grit")
    assert set(table(tmp_path / "again")["source"].to_pylist()) == {how.get("refine", "grit"), None}
    assert {path: path.read_bytes() for path in before} == before
    # What has been refined can be refined again.
    third = refine_again(str(tmp_path / "again"), str(tmp_path / "third"), {"refine": "none"})
    assert third.exit_code == 0
    assert table(tmp_path / "third").equals(table(scored))


def test_anchored_cells_keep_their_known_label(rich_cells, scored, tmp_path):
    refine_again(str(scored), str(tmp_path / "held"), {"k": 5, "anchor_key": "known"})
    called = table(tmp_path / "held")
    known = anndata.read_h5ad(rich_cells).obs["known"].astype(str).to_numpy()
    rows = [row for row in np.flatnonzero(known != "") if called["status"][row].as_py() == "annotated"]
    assert len(rows) > 5
    assert [called["cell_type"][int(row)].as_py() for row in rows] == known[rows].tolist()
    assert manifests.read(str(tmp_path / "held" / "datasets" / "cells")).refinement["n_anchored"] == len(rows)


def test_an_unknown_known_label_fails_the_dataset_and_names_it(cells, tiny_model, tmp_path):
    data = anndata.read_h5ad(cells)
    data.obs["known"] = ["tree"] + [next(iter(TYPES.values()))] * 47
    data.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(RefineError, match="'tree' \\(1 cells"):  # before any work
        run([tmp_path / "cells.h5ad"], tmp_path / "out", tiny_model, anchor_key="known")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"graph_batch_key": "donor"}, "obs has no 'donor'"),
        ({"use_rep": "X_pca"}, "obsm has no 'X_pca'"),
        ({"use_graph": "joined"}, "obsp has no 'joined'"),
    ],
)
def test_what_is_not_there_stops_the_run_before_it_starts(cells, tiny_model, tmp_path, how, says):
    with pytest.raises(Exception, match=says) as caught:
        run([cells], tmp_path / "out", tiny_model, **how)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_changed_input_is_not_refined_with_old_scores(rich_cells, tiny_model, tmp_path):
    moved = tmp_path / "cells.h5ad"
    shutil.copy(rich_cells, moved)
    run([moved], tmp_path / "out", tiny_model, refine="none")
    data = anndata.read_h5ad(moved)
    data.X = data.X * 2
    data.write_h5ad(moved)
    result = refine_again(str(tmp_path / "out"), str(tmp_path / "again"), {})
    assert result.exit_code == 1
    assert "cellray annotate" in result.failed["cells"]


def test_folders_that_do_not_fit(scored, tmp_path):
    with pytest.raises(InputError, match="no output folder"):
        refine_again(str(tmp_path / "nowhere"), str(tmp_path / "again"), {})
    with pytest.raises(SettingError, match="new folder"):
        refine_again(str(scored), str(scored), {})
    with pytest.raises(SettingError, match="lam"):
        refine_again(str(scored), str(tmp_path / "again"), {"lam": "-1"})
    assert not (tmp_path / "again").exists()


def test_the_verb(scored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["cellray", "refine", str(scored), "--out", str(tmp_path / "x"), "--lam", "2", "--k", "5", "--json"]
    )
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 0
    assert json.loads(capsys.readouterr().out)["n_annotated"] == 45
    assert json.loads((tmp_path / "x" / "run.json").read_text())["settings"]["lam"] == 2.0
    assert "steps" in (tmp_path / "x" / "report.html").read_text()
