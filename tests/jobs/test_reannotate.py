"""Atlases brought up to date on a local Ray: only what changed, guarded promotion, rollback, bad inputs."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from cellray import schema, storage
from cellray.catalog.versions import Versions
from cellray.lock import RunLock
from jobs.bench.synthetic import TYPES, write_cells
from jobs.reannotate import main

N = 20


class Atlas:
    """A catalogue of ``N`` datasets in a folder of its own; at first all are of the same cells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "catalog.yaml"

    def write(self, **changes):
        facts = yaml.safe_load(self.file.read_text()) if self.file.exists() else {}
        self.file.write_text(yaml.safe_dump(facts | changes))

    def run(self, capsys, *options):
        capsys.readouterr()
        code = main(["--catalog", str(self.file), "--json", *options])
        out, err = capsys.readouterr()
        facts = json.loads(out) if out else {}
        self.errors = err
        rows = {row["id"]: row for row in facts.get("datasets", [])}
        return code, rows

    def versions(self, name):
        return Versions(str(self.folder / "atlas"), name)

    def files(self):
        """Everything in the atlas but the lock, and when it was written."""
        return {path: path.stat().st_mtime_ns for path in (self.folder / "atlas").rglob("*") if path.is_file()}

    def move(self, number, name, **changes):
        """Let a dataset of the catalogue have another id or file."""
        entries = yaml.safe_load(self.file.read_text())["datasets"]
        entries[number] = {"id": f"d{number:02}", "uri": f"{name}.h5ad", **changes}
        self.write(datasets=entries)
        return self.folder / f"{name}.h5ad"

    def edit_labels(self, keep):
        """Offer other types."""
        labels = self.folder / "labels.txt"
        labels.write_text("\n".join(keep) + "\n")
        return str(labels)


@pytest.fixture(scope="module")
def made(ray, tiny_model, tmp_path_factory):
    """The atlas that every test starts from a copy of."""
    folder = tmp_path_factory.mktemp("atlas")
    write_cells(folder / "d00.h5ad", 24, 300, 60)
    atlas = Atlas(folder)
    atlas.write(
        atlas="atlas",
        model=str(tiny_model),
        settings={"refine": "none"},
        guard={"max_changed": 0.5, "min_vanished_cells": 1},
        datasets=[{"id": f"d{number:02}", "uri": "d00.h5ad", "tissue": f"tissue {number}"} for number in range(N)],
    )
    assert main(["--catalog", str(atlas.file)]) == 0
    return atlas


@pytest.fixture
def atlas(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "copy")
    return Atlas(tmp_path / "copy")


def test_an_unchanged_catalogue_loads_no_model(atlas, capsys):
    before = atlas.files()
    code = (
        "import sys; from jobs.reannotate import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'ray', 'cellray.pipeline'} & sys.modules.keys(); sys.exit(code)"
    )
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code, "--catalog", str(atlas.file), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    assert ended.returncode == 0, ended.stderr
    assert [row["state"] for row in json.loads(ended.stdout)["datasets"]] == ["unchanged"] * N
    assert seconds < 10
    assert atlas.files() == before
    assert atlas.run(capsys, "--dry-run")[1]["d07"] == {
        "id": "d07",
        "action": "unchanged",
        "reasons": [],
        "in_use": atlas.versions("d07").latest.now(),
    }


def test_one_changed_of_twenty(atlas, capsys):
    before = atlas.files()
    first = atlas.versions("d03").latest.now()
    path = write_cells(atlas.move(3, "third"), 30, 300, 60, seed=3)
    _, plan = atlas.run(capsys, "--dry-run")
    assert [name for name, step in plan.items() if step["action"] == "annotate"] == ["d03"]
    assert plan["d03"]["reasons"] == ["content"]
    assert atlas.files() == before
    code, rows = atlas.run(capsys, "--promote", "d03")
    assert code == 0
    assert {name for name, row in rows.items() if row["state"] != "unchanged"} == {"d03"}
    diff = rows["d03"]["diff"]
    assert (diff["n_before"], diff["n_after"], diff["n_common"]) == (24, 30, 24)
    after = atlas.files()
    stored = atlas.folder / "atlas" / "datasets"
    assert all(after[path] == when for path, when in before.items() if path.is_relative_to(stored))
    assert not [path for path in after.keys() - before.keys() if not {"d03", "runs", "work"} & set(path.parts)]
    (run,) = [path for path in after.keys() - before.keys() if path.name == "report.json"]
    changed = pq.read_table(run.parent / "changed" / "d03.parquet")
    assert changed.schema == schema.changes()
    assert changed.num_rows == diff["n_changed"]
    assert "d03" in (run.parent / "report.html").read_text()

    versions = atlas.versions("d03")
    second = versions.latest.now()
    assert sorted(versions.known()) == sorted({first, second})
    assert versions.get(first, "content").n_cells == 24
    assert atlas.run(capsys, "--rollback", "d03", "--reason", "looks odd")[0] == 0
    assert versions.latest.now() == first
    # What a person went back from stays away, whatever the schedule says, until it is asked for.
    code, rows = atlas.run(capsys)
    assert (code, rows["d03"]["state"]) == (0, "held")
    assert versions.latest.now() == first
    assert atlas.run(capsys, "--promote", "d03")[1]["d03"]["state"] == "promoted"
    assert versions.latest.now() == second
    assert [change.action for change in versions.latest.history()] == ["promote", "promote", "rollback", "promote"]
    main(["--catalog", str(atlas.file), "--history", "d03"])
    assert "looks odd" in capsys.readouterr().out
    # Inputs that are again what they were are not annotated again.
    shutil.copy(atlas.folder / "d00.h5ad", path)
    code, rows = atlas.run(capsys, "--promote")
    assert (rows["d03"]["state"], rows["d03"]["version"]) == ("promoted", first)


def test_a_label_set_that_dropped_a_type(atlas, capsys):
    kinds = atlas.versions("d05").get(atlas.versions("d05").latest.now()).types
    dropped = max(kinds, key=lambda name: kinds[name])
    labels = atlas.edit_labels([name for name in TYPES if name != dropped])
    atlas.move(5, "d00", labels=labels)
    before = atlas.versions("d05").latest.now()
    code, rows = atlas.run(capsys)
    assert code == 3
    assert {name for name, row in rows.items() if row["state"] != "unchanged"} == {"d05"}
    assert rows["d05"]["state"] == "refused"
    assert rows["d05"]["reasons"] == ["labels"]
    assert any(f"type {dropped!r} vanished" in one and "label set" in one for one in rows["d05"]["messages"])
    assert rows["d05"]["diff"]["vanished_types"] == [dropped]
    assert sum(row["cells"] for row in rows["d05"]["diff"]["moves"] if row["from"] == dropped) == kinds[dropped]
    assert atlas.versions("d05").latest.now() == before
    # The next night says so again, without annotating again; then a person decides.
    scores = [path for path in atlas.files() if "scores" in path.parts]
    code, rows = atlas.run(capsys)
    assert (code, rows["d05"]["state"]) == (3, "refused")
    code, rows = atlas.run(capsys, "--promote")
    assert (code, rows["d05"]["state"]) == (0, "promoted")
    assert atlas.versions("d05").latest.now() == rows["d05"]["version"] != before
    assert [path for path in atlas.files() if "scores" in path.parts] == scores


def test_bad_datasets_among_good_ones(atlas, capsys):
    atlas.move(1, "nowhere")
    atlas.move(2, "torn", id="torn").write_bytes((atlas.folder / "d00.h5ad").read_bytes()[:5000])
    other = write_cells(atlas.move(6, "new", id="new"), 20, 300, 60, seed=9)
    shutil.copy(other, atlas.move(9, "ninth"))
    damaged = atlas.versions("d08")
    path = Path(damaged.folder(damaged.latest.now())) / schema.ANNOTATIONS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    (Path(atlas.versions("d09").folder(atlas.versions("d09").latest.now())) / "version.json").write_text("{}")
    code, rows = atlas.run(capsys)
    assert code == 3
    assert rows["d01"]["state"] == rows["torn"]["state"] == "failed"
    assert "nowhere.h5ad" in rows["d01"]["messages"][0]
    assert "torn.h5ad" in rows["torn"]["messages"][0]
    assert rows["new"]["state"] == "promoted"
    # A version that was damaged is made again; one that is to be compared with a damaged one waits for a person.
    assert rows["d08"]["state"] == "restored"
    assert "damaged" in rows["d08"]["reasons"][0]
    assert path.read_bytes() == whole
    assert rows["d09"]["state"] == "refused"
    assert "cannot be read" in rows["d09"]["messages"][0]
    assert {row["state"] for name, row in rows.items() if name not in ("d01", "torn", "new", "d08", "d09")} == {
        "unchanged"
    }
    (report,) = [
        json.loads(path.read_text())
        for path in atlas.files()
        if path.name == "report.json" and "torn" in path.read_text()
    ]
    assert report["gone"] == ["d02", "d06"]
    code, rows = atlas.run(capsys, "--rollback", "d09")
    assert code == 1
    assert "nothing to go back to" in atlas.errors


def test_two_schedulers_at_once(atlas, capsys):
    with RunLock(str(atlas.folder / "atlas"), "the-first-run"):
        code, rows = atlas.run(capsys)
    assert (code, rows) == (2, {})
    assert "the-first-run" in atlas.errors


def test_catalogues_that_cannot_be_meant_stop_before_work(atlas, capsys):
    before = atlas.files()
    for changes, said in [
        ({"model": str(atlas.folder / "nowhere")}, "no config.json"),
        ({"labels": "nowhere.txt"}, "nowhere.txt"),
        ({"settings": {"refine": "more"}}, "refine"),
        ({"datasets": [{"id": "a", "uri": "d00.h5ad"}, {"id": "a", "uri": "d01.h5ad"}]}, "id 'a' comes 2 times"),
    ]:
        kept = atlas.file.read_text()
        atlas.write(**changes)
        assert atlas.run(capsys)[0] == 2
        assert said in atlas.errors
        assert atlas.errors.count("\n") == 1
        atlas.file.write_text(kept)
    assert atlas.run(capsys, "--rollback", "nobody")[0] == 2
    assert atlas.run(capsys, "--promote", "nobody")[0] == 2
    assert atlas.files() == before


def test_an_atlas_on_s3(made, capsys, s3, tiny_model):
    storage.put(f"{s3}/in/a.h5ad", (made.folder / "d00.h5ad").read_bytes())
    facts = {"atlas": "atlas", "model": str(tiny_model), "settings": {"refine": "none"}}
    facts["datasets"] = [{"id": "a", "uri": "in/a.h5ad"}]
    storage.put(f"{s3}/catalog.yaml", yaml.safe_dump(facts).encode())
    assert main(["--catalog", f"{s3}/catalog.yaml"]) == 0
    versions = Versions(f"{s3}/atlas", "a")
    (digest,) = versions.known()
    assert versions.latest.now() == digest
    ours = made.versions("d00")
    assert versions.annotations(versions.get(digest, "content")).equals(ours.annotations(ours.get(ours.latest.now())))
    capsys.readouterr()
    assert main(["--catalog", f"{s3}/catalog.yaml"]) == 0
    assert "unchanged" in capsys.readouterr().out
