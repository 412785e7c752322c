"""Labels as text: every row, quoted as it must be, nothing of others replaced, failures named."""

import csv
import gzip
import io

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cellray import cli
from cellray.errors import SettingError
from cellray.pipeline import annotate
from cellray.report.export import COLUMNS, export
from cellray.settings import AnnotateSettings

ODD = ["=1+2", "+plus", "-minus", "@at", 'a "quoted", one', "two\nlines", "é", " blank "]


@pytest.fixture(scope="module")
def out(cells, tiny_model, ray, tmp_path_factory):
    """A run over two files, one with names that spreadsheets and separators stumble over, and a bad one."""
    folder = tmp_path_factory.mktemp("export")
    data = anndata.read_h5ad(cells)
    data.obs_names = [*ODD, *data.obs_names[len(ODD) :]]
    data.obs["leiden"] = pd.Categorical(np.where(np.arange(48) % 3, "0", "1"))
    data.write_h5ad(folder / "odd.h5ad")
    data.obs_names = [f"c{n}" for n in range(48)]
    data.write_h5ad(folder / "even.h5ad")
    (folder / "bad.h5ad").write_text("no")
    inputs = tuple(str(folder / f"{name}.h5ad") for name in ("odd", "even", "bad"))
    settings = {"inputs": inputs, "out": str(folder / "out"), "model": str(tiny_model), "shard_cells": 20, "k": 5}
    assert annotate(AnnotateSettings.checked(**settings, cluster_key="leiden")).exit_code == 3
    return folder / "out"


def cellray(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["cellray", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return leaving.value.code


def rows_of(text, delimiter=","):
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


def test_one_row_a_cell(out, tmp_path):
    result = export(str(out), str(tmp_path))
    assert (result.exit_code, sorted(result.files), list(result.failed)) == (3, ["even", "odd"], ["bad"])
    text = (tmp_path / "odd.csv").read_text()
    rows = rows_of(text)
    table = pq.read_table(out / "datasets" / "odd" / "annotations.parquet").to_pylist()
    assert list(rows[0]) == [*COLUMNS, "cluster_cell_type", "cluster_cell_type_share"]
    assert [row["cell_id"] for row in rows] == [*ODD, *(row["cell_id"] for row in table[len(ODD) :])]
    for row, wanted in zip(rows, table, strict=True):
        for name in COLUMNS:
            if name in ("score", "margin") and wanted[name] is not None:
                assert np.float32(row[name]) == np.float32(wanted[name])
            else:
                assert row[name] == (wanted[name] or "")
    assert {row["status"] for row in rows} == {"annotated", "rejected"}
    copy = anndata.read_h5ad(out / "odd.h5ad").obs
    assert [row["cluster_cell_type"] for row in rows] == copy["cellray_cluster_cell_type"].tolist()
    shares = [np.float32(row["cluster_cell_type_share"]) for row in rows]
    np.testing.assert_array_equal(shares, copy["cellray_cluster_cell_type_share"])
    read = pd.read_csv(tmp_path / "even.csv")
    assert read["score"].notna().sum() == 45


def test_tabs_and_gzip(out, tmp_path):
    export(str(out), str(tmp_path), form="tsv", compress=True)
    packed = (tmp_path / "odd.tsv.gz").read_bytes()
    rows = rows_of(gzip.decompress(packed).decode(), "\t")
    assert [row["cell_id"] for row in rows][: len(ODD)] == ODD
    export(str(out), str(tmp_path), form="tsv", compress=True)
    assert (tmp_path / "odd.tsv.gz").read_bytes() == packed


def test_files_of_others_stay(out, tmp_path, monkeypatch, capsys):
    (tmp_path / "even.csv").write_text("mine")
    assert cellray(monkeypatch, "export", out, "--csv", "--to", tmp_path) == 2
    assert "even.csv" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["even.csv"]
    assert (tmp_path / "even.csv").read_text() == "mine"


def test_the_verb(out, tmp_path, monkeypatch, capsys):
    assert cellray(monkeypatch, "export", out, "--csv") == 3
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [f"odd: {out}/odd.csv", f"even: {out}/even.csv"]
    assert printed[2].startswith("bad failed: ReadError: ")
    assert cellray(monkeypatch, "export", out, "--csv") == 3, "our own files are written again"
    assert cellray(monkeypatch, "export", out, "--csv", "--tsv") == 2
    assert cellray(monkeypatch, "export", tmp_path) == 2


def test_an_embedding_has_no_labels(cells, tiny_model, tmp_path, ray):
    settings = {"inputs": (str(cells),), "out": str(tmp_path / "out"), "model": str(tiny_model), "refine": "none"}
    annotate(AnnotateSettings.checked(task="embed", min_genes=1, **settings))
    with pytest.raises(SettingError, match="embeddings and no labels"):
        export(str(tmp_path / "out"))
