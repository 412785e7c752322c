"""No file that is not ours is replaced: refused before any work, with exit code 2 and the file's name."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cellray.errors import SettingError
from cellray.ingest import find_sources
from cellray.targets import check_model_folder, check_run, reserve


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cellray(*arguments, cwd):
    command = [sys.executable, "-m", "cellray.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(cells, tmp_path):
    shutil.copy(cells, tmp_path / "pbmc.h5ad")
    return tmp_path


def test_own_folder_as_output(folder, tiny_model):
    before = digest(folder / "pbmc.h5ad")
    done = cellray("annotate", "pbmc.h5ad", "--out", ".", "--model", tiny_model, cwd=folder)
    assert done.returncode == 2
    assert f"{folder}/pbmc.h5ad is an input and would be replaced; give another folder" in done.stderr
    assert digest(folder / "pbmc.h5ad") == before
    assert sorted(path.name for path in folder.iterdir()) == ["pbmc.h5ad"]


def sources(*paths):
    return find_sources([str(path) for path in paths])


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_links_are_followed(folder, link):
    (folder / "out").mkdir()
    getattr(folder / "out" / "pbmc.h5ad", link)(folder / "pbmc.h5ad")
    with pytest.raises(SettingError, match=r"out/pbmc\.h5ad is an input and would be replaced"):
        check_run(str(folder / "out"), sources(folder / "pbmc.h5ad"))
    (folder / "here").symlink_to(folder)
    with pytest.raises(SettingError, match="is an input"):
        check_run(str(folder / "here"), sources(folder / "pbmc.h5ad"))


@pytest.mark.parametrize("name", ["pbmc.h5ad", "report.html", "run.json", "datasets/pbmc/notes.txt"])
def test_a_file_of_somebody_else(folder, name):
    other = folder / "out" / name
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    with pytest.raises(SettingError) as caught:
        check_run(str(folder / "out"), sources(folder / "pbmc.h5ad"))
    assert str(other if "/" not in name else other.parent) in str(caught.value)
    assert caught.value.exit_code == 2
    assert other.read_text() == "{}"


def test_an_unrelated_file_in_the_folder_of_a_run(folder):
    out = folder / "out"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"run_id": "r", "schema_version": 1, "datasets": ["other"]}))
    check_run(str(out), sources(folder / "pbmc.h5ad"))
    (out / "pbmc.h5ad").write_text("mine")
    with pytest.raises(SettingError, match=r"out/pbmc\.h5ad is there and was not written by an earlier run"):
        check_run(str(out), sources(folder / "pbmc.h5ad"))
    # An earlier run of other inputs wrote it: run.json has only those of the last one.
    (out / "datasets" / "pbmc").mkdir(parents=True)
    (out / "datasets" / "pbmc" / "manifest.json").touch()
    check_run(str(out), sources(folder / "pbmc.h5ad"))


def test_earlier_outputs_may_be_written_again(folder):
    out = folder / "out"
    out.mkdir()
    for name in ("pbmc.h5ad", "report.html"):
        (out / name).touch()
    (out / "run.json").write_text(json.dumps({"run_id": "r", "schema_version": 1, "datasets": ["pbmc"]}))
    check_run(str(out), sources(folder / "pbmc.h5ad"))


def test_output_inside_an_input_folder(folder):
    (folder / "a.zarr").mkdir()
    with pytest.raises(SettingError, match=r"lies in the input .*a\.zarr"):
        check_run(str(folder / "a.zarr" / "out"), sources(folder / "a.zarr"))
    check_run(str(folder / "out"), sources(folder / "a.zarr"))


def test_on_s3(s3, cells):
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.put(str(cells), f"{s3}/in/pbmc.h5ad")
    with pytest.raises(SettingError, match=r"in/pbmc\.h5ad is an input and would be replaced"):
        check_run(f"{s3}/in", sources(f"{s3}/in/pbmc.h5ad"))
    fs.pipe(f"{s3}/out/pbmc.h5ad", b"mine")
    with pytest.raises(SettingError, match="was not written by an earlier run"):
        check_run(f"{s3}/out", sources(f"{s3}/in/pbmc.h5ad"))
    check_run(f"{s3}/new", sources(f"{s3}/in/pbmc.h5ad"))


def test_reserved_files(root, tmp_path):
    reserve(f"{root}/out", ["model", "training.json"], [tmp_path])
    from cellray import storage

    storage.put(f"{root}/out/training.json", b"{}")
    storage.put(f"{root}/out/mine.txt", b"mine")
    reserve(f"{root}/out", ["model", "training.json"])  # its own
    with pytest.raises(SettingError, match=r"out/mine\.txt is there and was not written by an earlier run"):
        reserve(f"{root}/out", ["mine.txt"])
    with pytest.raises(SettingError, match=r"mine\.txt is there"):
        reserve(f"{root}/out", None)
    reserve(f"{root}/whole", None)
    storage.put(f"{root}/whole/a", b"")
    reserve(f"{root}/whole", None)


def test_an_input_is_no_output(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "puzzles.parquet").write_text("p")
    with pytest.raises(SettingError, match="base' is an input and would be changed"):
        reserve(tmp_path / "base", None, [tmp_path / "base"])
    with pytest.raises(SettingError, match=r"puzzles\.parquet is an input and would be replaced"):
        reserve(tmp_path, ["puzzles.parquet"], [tmp_path / "puzzles.parquet"])


def test_model_folders(tmp_path, tiny_model):
    check_model_folder(tmp_path / "new")
    check_model_folder(tiny_model)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SettingError, match=r"no model folder of CellRay \(it has notes\.txt\)"):
        check_model_folder(tmp_path)


@pytest.mark.parametrize(
    ("job", "arguments", "name"),
    [
        ("jobs.merge", ["--model", "mini-cell-o1", "--adapter", "nowhere"], "mine.txt"),
        ("jobs.distill", ["nowhere.parquet", "--model", "mini-cell-o1"], "distilled.parquet"),
        ("jobs.pretrain", ["--config", "jobs/configs/mini.yaml", "--data", "nowhere"], "mine.txt"),
    ],
)
def test_jobs_refuse_too(tmp_path, job, arguments, name, capsys):
    import importlib

    (tmp_path / name).write_text("mine")
    root = Path(__file__).parents[1]
    given = [str(root / one) if one.endswith(".yaml") else one for one in arguments]
    if job == "jobs.distill":
        from cellray.puzzles import records

        records.write(str(tmp_path / "p.parquet"), [])
        given[0] = str(tmp_path / "p.parquet")
    assert importlib.import_module(job).main([*given, "--out", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
