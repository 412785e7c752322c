"""``import cellray``: what it offers, paths as on the command line, and options that are not."""

import json
import sys
from pathlib import Path

import anndata
import pytest

import cellray
from cellray.errors import SettingError
from cellray.settings import AnnotateSettings


def test_the_public_names_alone_are_shown():
    assert dir(cellray) == sorted(cellray.__all__)
    assert {"annotate", "embed", "evaluate", "inspect_dataset", "AnnotateSettings"} <= set(dir(cellray))
    assert not {"Any", "import_module", "TYPE_CHECKING"} & set(dir(cellray))
    assert cellray.annotate.__doc__
    assert (Path(cellray.__file__).parent / "py.typed").exists()


@pytest.mark.usefixtures("ray")
def test_paths_are_annotated_as_on_the_command_line(cells, tiny_model, tmp_path, capsys):
    how = {"model": str(tiny_model), "k": 5}
    one = cellray.annotate(str(cells), out=tmp_path / "one", progress=True, **how)
    assert "encoding" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.h5ad").write_bytes(cells.read_bytes())
    glob = cellray.annotate(str(tmp_path / "in" / "*.h5ad"), out=str(tmp_path / "glob"), **how)
    several = [tmp_path / "in" / "a.h5ad", str(tmp_path / "in" / "b.h5ad")]
    assert (one.exit_code, glob.exit_code) == (0, 0)
    assert [*one.finished, *sorted(glob.finished)] == ["cells", "a", "b"]
    labels = anndata.read_h5ad(tmp_path / "one" / "cells.h5ad").obs["cellray_cell_type"]
    assert anndata.read_h5ad(tmp_path / "glob" / "b.h5ad").obs["cellray_cell_type"].equals(labels)
    # What is done is not done again, whichever way it is asked for.
    assert sorted(cellray.annotate(several, out=tmp_path / "glob", **how).finished) == ["a", "b"]
    assert capsys.readouterr().err == ""
    settings = AnnotateSettings.checked(inputs=(str(cells),), out=str(tmp_path / "one"), **how)
    assert list(cellray.annotate(settings).finished) == ["cells"]
    assert list(cellray.annotate(settings, False).finished) == ["cells"]


@pytest.mark.usefixtures("ray")
def test_paths_are_embedded(cells, tiny_model, tmp_path):
    result = cellray.embed(cells, out=tmp_path / "out", model=str(tiny_model))
    assert (result.exit_code, result.summary()["n_embedded"]) == (0, 47)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["min_genes"] == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lamda": 2.0}, "option 'lamda' is not known; did you mean 'lam'"),
        ({"cluster": "leiden"}, "option 'cluster' is not known; did you mean 'cluster_key'"),
        ({"xyz": 1}, "option 'xyz' is not known; there are: .*'?refine'?"),
        ({"inputs": ("a",)}, "option 'inputs' is not known"),
        ({"lam": -1}, "setting 'lam'"),
        ({"out": "out"}, "out 'out': it is for files"),
    ],
)
def test_options_that_are_none(cells, given, says):
    with pytest.raises(SettingError, match=says) as caught:
        cellray.annotate(anndata.read_h5ad(cells), **given)
    assert "\n" not in str(caught.value)


def test_data_that_is_none(cells, tmp_path):
    for data, more, says in (
        (str(cells), {}, r"out='FOLDER' \(got '.*cells.h5ad' alone\)"),
        (3, {"out": "x"}, "not int"),
        ([3], {"out": "x"}, "not list"),
        ([], {"out": "x"}, "setting 'inputs'"),
        (tmp_path / "none.h5ad", {"out": tmp_path / "out"}, "none.h5ad"),
        (AnnotateSettings(inputs=("a",), out="b"), {"k": 3}, "leave k away"),
    ):
        with pytest.raises(SettingError, match=says):
            cellray.annotate(data, **more)
    assert not (tmp_path / "out").exists()

    class Several:
        obs_names, obsm, mod = [], {}, {"rna": None}

    with pytest.raises(SettingError, match=r"mdata.mod\['rna'\]"):
        cellray.annotate(Several())


def test_a_call_that_is_wrong_imports_nothing_heavy():
    import subprocess

    script = (
        "import sys, cellray\n"
        "try: cellray.annotate('a.h5ad')\n"
        "except cellray.CellRayError as error: print(type(error).__name__)\n"
        "assert not {'torch', 'ray', 'scanpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("SettingError\n", "")
