"""A worker that is killed, a bug and a shard that fails end their dataset alone, and say why."""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import ray as ray_library
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError

from cellray.errors import InternalError, LostError
from cellray.pipeline import annotate
from cellray.pipeline import drive as drive_module
from cellray.pipeline.finish import Finishing, Labelled
from cellray.pipeline.progress import Lines, Silent
from cellray.pipeline.tally import Notes, Tally, counted
from cellray.pipeline.tasks import Call, Calls, Labelling
from cellray.settings import AnnotateSettings

pytestmark = pytest.mark.usefixtures("ray")

# Workers do not have this module: what it gives them travels whole.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Troubled(Finishing):
    """A dataset whose last task goes wrong as its name says."""

    @property
    def part_uris(self):
        """The first thing that the task asks for."""
        name, marker = self.plan.source.dataset_id, Path(self.order.out) / f"{self.plan.source.dataset_id}.marker"
        if name == "always" or (name == "once" and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "bug":
            return {}["no such column"]
        return super().part_uris


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.lines, self.stages, self.scored, self.left_out, self.hands = [], [], 0, 0, []

    def stage(self, name):
        self.stages.append(name)

    def say(self, text):
        self.lines.append(text)

    def advance(self, n_cells):
        self.scored += n_cells

    def leave_out(self, n_cells):
        self.left_out += n_cells

    def in_hand(self, n_cells):
        self.hands.append(n_cells)


def run(inputs, out, model, progress):
    told = {"inputs": tuple(map(str, inputs)), "out": str(out), "model": str(model), "refine": "none"}
    return annotate(AnnotateSettings.checked(**told), progress)


def copies(cells, folder, *names):
    for name in names:
        shutil.copy(cells, folder / f"{name}.h5ad")
    return [folder / f"{name}.h5ad" for name in names]


def test_lost_tasks_and_bugs_fail_their_datasets_alone(cells, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(drive_module, "Finishing", Troubled)
    out, told = tmp_path / "out", Recorder()
    result = run(copies(cells, tmp_path, "good", "once", "always", "bug"), out, tiny_model, told)
    assert result.exit_code == 3
    assert sorted(result.finished) == ["good", "once"]
    assert told.stages[:3] == ["reading", "starting Ray", "encoding"]
    assert told.scored == 4 * 48

    def error_of(name):
        return json.loads((out / "datasets" / name / "error.json").read_text())

    assert error_of("always")["code"] == "LostError"
    assert "its worker died" in result.failed["always"]
    assert "the same command again" in result.failed["always"]
    assert [line for line in told.lines if line.startswith("once: finishing is begun again, its worker died")]
    assert error_of("bug")["code"] == "InternalError"
    assert "part_uris" in error_of("bug")["trace"]
    (line,) = [line for line in told.lines if line.startswith("bug failed: ")]
    assert "KeyError: 'no such column'; this is a bug of CellRay; its trace is in " in line
    assert str(out / "datasets" / "bug" / "error.json") in line
    assert "--verbose" in line
    assert "good: 45 annotated, 3 rejected (too_few_genes 2, empty_cell 1)" in told.lines
    assert "its trace is in" in (out / "report.html").read_text()
    # What was scored is kept, and the same command goes on.
    monkeypatch.undo()
    again = run([tmp_path / f"{name}.h5ad" for name in ("good", "once", "always", "bug")], out, tiny_model, Silent())
    assert again.exit_code == 0
    assert again.cells_per_s is None
    assert not (out / "datasets" / "bug" / "error.json").exists()


class Broken:
    """A tokenizer with a bug."""

    tokens = (1, 2, 3)

    def __call__(self, *arguments):
        raise TypeError("no tokens")


def test_failed_shards_are_not_scored(cells, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("cellray.encode.tokenizer_of", lambda *_, **__: Broken())
    told = Recorder()
    result = run(copies(cells, tmp_path, "a"), tmp_path / "out", tiny_model, told)
    assert result.exit_code == 1
    assert (told.scored, told.left_out, result.cells_per_s) == (0, 48, None)
    error = json.loads((tmp_path / "out" / "datasets" / "a" / "error.json").read_text())
    assert error["code"] == "InternalError"
    assert error["message"].startswith("dataset 'a': rows 0-48: ")
    assert "token_shard" in error["trace"]


def test_a_bug_while_reading_ends_its_dataset(cells, tiny_model, tmp_path, monkeypatch):
    from cellray.pipeline import run as run_module

    inspect = run_module.inspect_dataset

    def troubled(source, *arguments, **more):
        if source.dataset_id == "bug":
            raise AttributeError("no attribute")
        return inspect(source, *arguments, **more)

    monkeypatch.setattr(run_module, "inspect_dataset", troubled)
    result = run(copies(cells, tmp_path, "bug"), tmp_path / "out", tiny_model, Lines(file := io.StringIO()))
    assert result.exit_code == 1
    assert file.getvalue().count("this is a bug of CellRay") == 1
    error = json.loads((tmp_path / "out" / "datasets" / "bug" / "error.json").read_text())
    assert "in troubled" in error["trace"]


class Fatal(Labelled):
    """The first half of a dataset, whose second half dies of it."""

    def __getattribute__(self, name):
        if name == "job":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)


def test_a_lost_second_half_is_done_from_the_first_again(cells, tiny_model, tmp_path, monkeypatch):
    jobs, finishing = [], drive_module.Finishing

    def kept(*arguments):
        jobs.append(finishing(*arguments))
        return jobs[-1]

    monkeypatch.setattr(drive_module, "Finishing", kept)
    inputs = copies(cells, tmp_path, "a")
    run(inputs, tmp_path / "out", tiny_model, Silent())
    before = (tmp_path / "out" / "datasets" / "a" / "annotations.parquet").read_bytes()
    labelling, calls = Labelling(jobs[0], "", 1 << 30), Calls(lambda _: None)
    calls.begin(labelling.call())
    assert ended(calls) == []
    labelled = ray_library.get(labelling.labelled)
    labelling.labelled = ray_library.put(Fatal(*(getattr(labelled, name) for name in Labelled.__dataclass_fields__)))
    calls.begin(labelling.publishing({}))
    assert ended(calls).n_annotated == 45
    assert (tmp_path / "out" / "datasets" / "a" / "annotations.parquet").read_bytes() == before


def ended(calls):
    """Return the result of the one task under way."""
    while calls:
        for _, outcome in calls.ended(timeout_s=5):
            return outcome
    return None


def test_calls_name_what_killed_a_task():
    @ray_library.remote(max_retries=0)
    def dies(how):
        if how == "memory":
            raise OutOfMemoryError("the node ran out")
        if how == "bug":
            raise KeyError("x")
        return how

    said, found = [], {}
    calls = Calls(said.append)
    for how in ("memory", "bug", "fine"):
        calls.begin(Call(how, "rewriting", lambda how=how: dies.remote(how)))
    while calls:
        found |= {call.dataset_id: outcome for call, outcome in calls.ended(timeout_s=5)}
    assert found["fine"] == "fine"
    assert isinstance(found["memory"], LostError)
    assert "dataset 'memory': rewriting failed: its worker was killed: out of memory; give Ray more memory" in str(
        found["memory"]
    )
    assert said == ["memory: rewriting is begun again, its worker was killed: out of memory"]
    assert isinstance(found["bug"], InternalError)
    assert "dies" in found["bug"].trace


def test_the_display_moves_within_a_shard(monkeypatch):
    monkeypatch.setattr("cellray.pipeline.tally._LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("cellray.pipeline.tally._NOTE_EVERY_S", 0.0)
    told = Recorder()
    tally = Tally(told)
    shard = [0, 0]
    encode = counted(lambda columns, offsets, rows: len(rows), Notes(tally.run, "encoder-1"), lambda: tuple(shard))

    def wait_for(condition):
        import time

        until = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.02)

    with tally.watching():
        tally.encoding("encoding")
        assert encode({}, None, range(30)) == 30
        wait_for(lambda: 30 in told.hands)
        encode({}, None, range(20))
        wait_for(lambda: 50 in told.hands)
        tally.ended(0, 0, 60, scored=True)
        wait_for(lambda: told.hands[-1] == 0)
        shard[1] = 60
        encode({}, None, range(7))
        wait_for(lambda: told.hands[-1] == 7)
        tally.encoding(None)
        tally.finish("liver")
        Notes(tally.run, "dataset-liver").write(["stage", "liver", "refining"])
        wait_for(lambda: told.stages[-1] == "refining")
        Notes(tally.run, "dataset-liver").write(["stage", "liver", "writing"])
        wait_for(lambda: told.stages[-1] == "writing")
        tally.finished("liver")
    assert told.stages == ["encoding", "refining", "writing"]
    assert told.scored == 60
