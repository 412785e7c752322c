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
from cellray.cli.shared import resumes


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
    scanpy.pp.scale(logged, zero_center=False)  # no counts can be computed back from it
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
    with h5py.File(out / "cells.h5ad", "r+") as file:
        file["obs/strange"] = ["zorn"] * 48
        file["obs/strange"].attrs["encoding-type"] = "string-array"
        file["obs/strange"].attrs["encoding-version"] = "0.2.0"
        file["obs"].attrs["column-order"] = [*file["obs"].attrs["column-order"], "strange"]
    code, printed, err = cellray("evaluate", out, "--truth-key", "strange", "--json")
    assert code == 1
    assert json.loads(printed)["overall"]["n_scored"] == 0
    assert err.startswith("error: no truth in obs['strange'] is a label of this run ('zorn'); ")


@pytest.mark.usefixtures("ray")
def test_some_datasets_failed(cellray, cells, broken, tiny_model, tmp_path):
    code, printed, err = cellray("annotate", cells, broken["text"], "--out", tmp_path / "out", "--model", tiny_model)
    assert code == 3
    assert "text failed" in printed
    assert "cells: 45 annotated, 3 rejected (too_few_genes 2, empty_cell 1)" in err
    assert "most are" not in err, "few cells are rejected"


@pytest.mark.usefixtures("ray")
def test_all_datasets_failed(cellray, cells, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("cellray.pipeline.finish.Finishing.memory_bytes", lambda _: 10**15)
    code, printed, _ = cellray("annotate", cells, "--out", tmp_path / "out", "--model", tiny_model, "--quiet")
    assert code == 1
    first, failed, report = printed.splitlines()
    assert first == "no dataset was annotated"
    assert failed.startswith("cells failed: ")
    assert report.startswith("report: ")


@pytest.mark.usefixtures("ray")
def test_many_rejects_name_the_way_out_and_quiet_names_nothing(cellray, cells, tiny_model, tmp_path):
    told = ["embed", cells, "--model", tiny_model, "--min-genes", 52]
    code, printed, err = cellray(*told, "--out", tmp_path / "out")
    assert code == 0
    (line,) = [line for line in err.splitlines() if line.startswith("cells: ") and "embedded" in line]
    assert "rejected (too_few_genes " in line
    assert "cells: most are too_few_genes: " in err
    assert "--min-genes" in err
    code, again, err = cellray(*told, "--out", tmp_path / "out", "-q")  # it is finished
    assert not err
    assert printed.startswith(again.splitlines()[0])


def test_verbose_shows_the_trace_of_a_bug(cellray, cells, tiny_model, tmp_path, monkeypatch):
    def troubled(*_, **__):
        raise AttributeError("no attribute")

    monkeypatch.setattr("cellray.pipeline.run.inspect_dataset", troubled)
    told = ["annotate", cells, "--out", tmp_path / "out", "--model", tiny_model]
    code, _, err = cellray(*told)
    assert code == 1
    assert err.count("this is a bug of CellRay; its trace is in ") == 1
    assert "Traceback" not in err
    code, _, err = cellray(*told, "--verbose")
    assert code == 1
    assert "Traceback" in err
    assert "in troubled" in err
    monkeypatch.setattr("cellray.ingest.inspect_dataset", troubled)
    code, printed, err = cellray("inspect", cells, "--model", tiny_model, "-v")
    assert (code, "this is a bug of CellRay" in printed, "in troubled" in err) == (1, True, True)


def test_verbose_and_quiet_exclude_each_other(cellray, cells, tiny_model):
    code, _, err = cellray("inspect", cells, "--model", tiny_model, "-v", "-q")
    assert code == 2
    assert err == "error: --verbose and --quiet exclude each other; give one\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["annotate", "a.h5ad", "--out", "out"], "stopped by Ctrl-C; run the same command again, it goes on where"),
        (["evaluate", "out"], "stopped by Ctrl-C\n"),
    ],
)
def test_ctrl_c_says_whether_the_same_command_goes_on(cellray, monkeypatch, words, says):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cellray.settings.AnnotateSettings.checked", interrupted)
    monkeypatch.setattr("cellray.report.evaluate", lambda *_: interrupted())
    code, printed, err = cellray(*words)
    assert code == 130
    assert not printed
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_verbs_that_go_on():
    assert resumes(["puzzles", "solve", "p.parquet"])
    assert resumes(["reason", "a.h5ad"])
    assert not resumes(["puzzles", "score", "p.parquet"])
    assert not resumes(["--version"])


def test_inspect(cellray, cells, broken, tiny_model):
    code, printed, _ = cellray("inspect", cells, broken["logged"], "--model", tiny_model, "--json")
    assert code == 3
    good, bad = json.loads(printed)
    assert good["layer"] == "X"
    assert good["rejects"] == {"empty_cell": 1, "too_few_genes": 2}
    assert "advice" not in good
    assert good["n_genes_known"] == 300
    assert "--layer" in bad["error"]
    code, printed, _ = cellray("inspect", cells, "--model", tiny_model, "--min-genes", 60)
    assert code == 0
    assert "ensembl" in printed
    assert "most are too_few_genes: " in printed


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
