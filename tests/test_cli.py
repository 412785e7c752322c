"""The command line: exit codes, one line an error, machine-readable results, nothing half-written."""

import json
import shutil
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pytest
import scanpy

from cellray import cli


@pytest.fixture
def cellray(monkeypatch, capsys):
    """Run ``cellray ...`` in this process; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cellray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def broken(cells, tmp_path):
    """Every kind of dataset that cannot be read."""
    data = anndata.read_h5ad(cells)
    paths = {name: tmp_path / f"{name}.h5ad" for name in ("text", "truncated", "indptr", "logged", "genes")}
    paths["text"].write_text("not HDF5")
    paths["truncated"].write_bytes(cells.read_bytes()[:4000])
    shutil.copy(cells, paths["indptr"])
    with h5py.File(paths["indptr"], "r+") as file:
        file["X/indptr"][3] = 10**6
    logged = data.copy()
    scanpy.pp.normalize_total(logged)
    scanpy.pp.log1p(logged)
    logged.write_h5ad(paths["logged"])
    strange = data.copy()
    strange.var_names = [f"thing{number}" for number in range(strange.n_vars)]
    strange.var = strange.var[[]]
    strange.write_h5ad(paths["genes"])
    return paths


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text", "text.h5ad"),
        ("truncated", "truncated.h5ad"),
        ("indptr", "indptr"),
        ("logged", "--layer"),
        ("genes", "--gene-key"),
    ],
)
def test_a_dataset_that_cannot_be_read(cellray, broken, tiny_model, tmp_path, name, says):
    code, out, err = cellray("annotate", broken[name], "--out", tmp_path / "out", "--model", tiny_model)
    assert code == 1
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert broken[name].name in err
    assert says in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layer", "nonsense"], "nonsense"),
        (["--gene-key", "nonsense"], "nonsense"),
        (["--model", "nowhere"], "nowhere"),
        (["--labels", "nowhere.txt"], "nowhere.txt"),
        (["--alpha", "1.5"], "alpha"),
        (["--lam", "-1"], "lam"),
        (["--lam", "nan"], "lam"),
        (["--refine", "magic"], "refine"),
        (["--k", "0"], "'k'"),
        (["--shard-cells", "0"], "shard_cells"),
    ],
)
def test_a_wrong_setting(cellray, cells, tiny_model, tmp_path, options, says):
    code, _, err = cellray("annotate", cells, "--out", tmp_path / "out", "--model", tiny_model, *options)
    assert code == 2
    assert err.count("error: ") == 1
    assert says in err
    assert not (tmp_path / "out").exists()


def test_missing_input(cellray, tiny_model, tmp_path):
    code, _, err = cellray("annotate", tmp_path / "no.h5ad", "--out", tmp_path / "out", "--model", tiny_model)
    assert code == 2
    assert "no.h5ad" in err
    assert err.count("\n") == 1


def test_an_output_folder_that_cannot_be(cellray, cells, tiny_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = cellray("annotate", cells, "--out", tmp_path / "file" / "out", "--model", tiny_model)
    assert code == 2
    assert "--out" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_unknown_option_and_no_verb():
    ended = subprocess.run(
        [sys.executable, "-m", "cellray.cli", "annotate", "--nonsense"], capture_output=True, check=False
    )
    assert ended.returncode == 2


@pytest.mark.usefixtures("ray")
def test_annotate_then_evaluate(cellray, cells, tiny_model, tmp_path):
    out = tmp_path / "out"
    code, printed, err = cellray("annotate", cells, "--out", out, "--model", tiny_model, "--json")
    assert code == 0
    summary = json.loads(printed)
    assert (summary["n_cells"], summary["n_annotated"], summary["n_rejected"]) == (48, 45, 3)
    assert "integers" in err
    assert "cells/s" in err
    code, printed, _ = cellray("evaluate", out, "--truth-key", "cell_type", "--json")
    assert code == 0
    overall = json.loads(printed)["overall"]
    assert overall["n_scored"] == 45
    assert 0 <= overall["before"]["accuracy"] <= 1
    assert "macro_f1" in overall["after"]
    code, _, err = cellray("evaluate", out, "--truth-key", "nonsense")
    assert code == 2
    assert "nonsense" in err
    code, printed, _ = cellray("evaluate", out, "--truth-key", "cell_type")
    assert code == 0
    assert "report" in printed


@pytest.mark.usefixtures("ray")
def test_some_datasets_failed(cellray, cells, broken, tiny_model, tmp_path):
    code, printed, _ = cellray("annotate", cells, broken["text"], "--out", tmp_path / "out", "--model", tiny_model)
    assert code == 3
    assert "text failed" in printed


def test_inspect(cellray, cells, broken, tiny_model):
    code, printed, _ = cellray("inspect", cells, broken["logged"], "--model", tiny_model, "--json")
    assert code == 3
    good, bad = json.loads(printed)
    assert good["layer"] == "X"
    assert good["rejects"] == {"empty_cell": 1, "too_few_genes": 2}
    assert good["n_genes_known"] == 300
    assert "--layer" in bad["error"]
    code, printed, _ = cellray("inspect", cells, "--model", tiny_model)
    assert code == 0
    assert "ensembl" in printed


def test_convert_model(cellray, golden, tmp_path):
    given = ["--tokenizer", golden.folder / "tokenizer", "--gene-dictionaries", golden.folder / "geneformer"]
    code, printed, _ = cellray("convert-model", golden.folder / "ckpt", tmp_path / "model", *given)
    assert code == 0
    assert "genes" in printed
    (tmp_path / "empty").mkdir()
    code, _, err = cellray("convert-model", tmp_path / "empty", tmp_path / "model2", *given)
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "model2").exists()


def test_version(cellray):
    from cellray import __version__

    assert cellray("--version")[1].strip() == f"cellray {__version__}"


@pytest.mark.usefixtures("ray")
def test_bad_cells_are_rows(cellray, cells, tiny_model, tmp_path):
    import pyarrow.parquet as pq

    data = anndata.read_h5ad(cells)
    counts = data.X.toarray()
    for row, value in ((1, np.nan), (2, -3), (3, 0.5)):
        counts[row, 0] = value
    data.X = counts
    data.write_h5ad(tmp_path / "bad.h5ad")
    code, _, _ = cellray(
        "annotate", tmp_path / "bad.h5ad", "--out", tmp_path / "out", "--model", tiny_model, "--refine", "none"
    )
    assert code == 0
    codes = pq.read_table(tmp_path / "out" / "datasets" / "bad" / "annotations.parquet")["reject_code"].to_pylist()
    assert codes[1:4] == ["not_finite", "negative_count", "non_integer_count"]
