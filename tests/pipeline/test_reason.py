"""``annotate --reason``: a real language model labels uncertain groups within its budget, and may be down."""

import socket

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest

from cellray import manifest as manifests
from cellray.errors import ModelError, SettingError
from cellray.pipeline import annotate, refine_again
from cellray.puzzles.puzzle import NONE
from cellray.settings import AnnotateSettings

pytestmark = [pytest.mark.usefixtures("ray"), pytest.mark.timeout(400)]

HOW = {"k": 5, "reason_share": 0.5, "reason_margin": 1.0}


@pytest.fixture(scope="module")
def donors(cells, tmp_path_factory):
    """The 48 cells, of two donors."""
    data = anndata.read_h5ad(cells)
    data.obs["donor_id"] = np.where(np.arange(48) % 2, "a", "b")
    path = tmp_path_factory.mktemp("donors") / "cells.h5ad"
    data.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def plain(donors, tiny_model, ray, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    settings = {"inputs": (str(donors),), "out": str(out), "model": str(tiny_model), "shard_cells": 16, "k": 5}
    assert annotate(AnnotateSettings.checked(**settings)).exit_code == 0
    return out


def table(out, name="annotations"):
    return pq.read_table(f"{out}/datasets/cells/{name}.parquet").to_pylist()


def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_uncertain_groups_get_the_label_of_the_language_model(plain, tmp_path):
    out = tmp_path / "out"
    result = refine_again(str(plain), str(out), {"reason": "mini-cell-o1", **HOW})
    assert result.exit_code == 0
    before, after, groups = table(plain), table(out), table(out, "reasoning")
    asked = [row for group in groups for row in group["cells"]]
    assert 3 <= len(asked) == len(set(asked)) <= 0.5 * 45
    assert {group["donor"] for group in groups} == {"a", "b"}
    outcomes = {row: group for group in groups for row in group["cells"]}
    for old, new in zip(before, after, strict=True):
        group = outcomes.get(new["row"])
        if group is None or group["outcome"] in ("undecided", "unanswered"):
            assert new == old
            continue
        assert new["source"] == "llm"
        assert new["encoder_cell_type"] == old["encoder_cell_type"]
        if group["answer"] == NONE:
            assert (new["status"], new["cell_type"], new["score"]) == ("abstained", None, None)
        else:
            assert new["cell_type"] == group["answer"]
            assert group["answer"] in [old["cell_type"], *(one for each in groups for one in each["plausible"])]
            assert (new["cell_type"] == old["cell_type"]) == (new["margin"] >= 0)
    assert {group["outcome"] for group in groups} & {"relabelled", "confirmed", "none_of_these"}
    manifest = manifests.read(str(out / "datasets" / "cells"))
    assert manifest.reasoning["groups"] == len(groups)
    assert sum(manifest.reasoning.get(f"cells_{kind}", 0) for kind in {g["outcome"] for g in groups}) == len(asked)
    assert result.summary()["n_reasoned"] == sum(row["source"] == "llm" for row in after)
    copy = anndata.read_h5ad(out / "cells.h5ad")
    assert (copy.obs["cellray_source"] == "llm").sum() == result.summary()["n_reasoned"]
    page = (out / "report.html").read_text()
    assert "language model" in page
    assert groups[0]["reasoning"][:20] in page
    # A second run finds all done; one into another folder asks the same.
    again = refine_again(str(plain), str(out), {"reason": "mini-cell-o1", **HOW})
    assert again.exit_code == 0
    assert table(out) == after


def test_a_language_model_that_is_down_changes_no_label(plain, tmp_path):
    out = tmp_path / "out"
    address = f"http://127.0.0.1:{closed_port()}"
    result = refine_again(str(plain), str(out), {"reason": address, **HOW})
    assert result.exit_code == 0
    assert table(out) == table(plain)
    manifest = manifests.read(str(out / "datasets" / "cells"))
    assert manifest.reasoning["groups"] == manifest.reasoning["groups_unanswered"] > 0
    assert any("no answer of the language model" in warning for warning in manifest.warnings)


def test_a_language_model_that_cannot_start_changes_no_label(plain, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["Nothing"], "model_type": "nothing"}')
    (broken / "chat_template.jinja").write_text("{{ messages }}")
    result = refine_again(str(plain), str(tmp_path / "out"), {"reason": str(broken), **HOW})
    assert result.exit_code == 0
    assert table(tmp_path / "out") == table(plain)


@pytest.mark.parametrize(
    ("reason", "error", "says"),
    [
        ("nowhere", ModelError, r"no config\.json"),
        ("http://", SettingError, "served app"),
        ("http://user:word@host", SettingError, "CELLRAY_API_KEY"),
    ],
)
def test_a_wrong_language_model_stops_the_run_before_it_starts(donors, tiny_model, tmp_path, reason, error, says):
    settings = {"inputs": (str(donors),), "out": str(tmp_path / "out"), "model": str(tiny_model), "reason": reason}
    with pytest.raises(error, match=says):
        annotate(AnnotateSettings.checked(**settings))
    assert not (tmp_path / "out").exists()
