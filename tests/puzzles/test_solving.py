"""Bulk solving with a real engine: all answered, resumed, and nothing lost when its actor is killed."""

import os
import signal
import threading
import time

import psutil
import pyarrow.parquet as pq
import pytest

from cellray.errors import ModelError, SettingError
from cellray.ingest import find_sources
from cellray.pipeline.solving import SolveOrder, solve_puzzles
from cellray.puzzles import Puzzle
from cellray.puzzles.build import BuildSettings, build
from cellray.puzzles.cells import Ranking, read_ranked
from cellray.puzzles.centroid import Profiles
from cellray.puzzles.engine import EngineSettings, check_model
from cellray.puzzles.puzzle import one_each
from cellray.puzzles.solve import SolveSettings

ENGINE = EngineSettings(model="mini-cell-o1", max_length=1024, max_sequences=32, cache_bytes=64 << 20)


@pytest.fixture(scope="module")
def puzzles(labelled):
    (source,) = find_sources([str(labelled)])
    settings = BuildSettings(min_cells=2, max_cells=4, per_size=68)
    return build([read_ranked(source, Ranking(top_genes=4))], settings)["train"]


@pytest.mark.timeout(500)
@pytest.mark.usefixtures("ray")
def test_a_killed_engine_actor_loses_and_doubles_nothing(puzzles, tmp_path):
    assert len(puzzles) >= 200
    asked = [*puzzles, Puzzle("x ", (("A",), ()), ("a", "b")), Puzzle("x ", (("A",) * 900,), ("a",)), puzzles[0]]
    order = SolveOrder(str(tmp_path), ENGINE, SolveSettings(max_tokens=200, thoughts=8), chunk=16)
    parts = tmp_path / "parts"
    killed = []

    def kill():
        while not killed:
            if list(parts.glob("*.parquet")):
                for one in psutil.Process().children(recursive=True):
                    if "MapWorker" in one.name() or "MapBatches" in one.name():
                        os.kill(one.pid, signal.SIGKILL)
                        killed.append(one.pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    answers = solve_puzzles(order, asked).to_pylist()
    killer.join(1)
    assert killed
    engines = [one for one in psutil.process_iter(["name"]) if "EngineCore" in (one.info["name"] or "")]
    assert not [one for one in engines if one.ppid() == 1 and one.status() != psutil.STATUS_ZOMBIE]
    assert [row["key"] for row in answers] == [puzzle.key for puzzle in asked]
    assert answers[-1] == answers[0]
    assert [row["code"] for row in answers[-3:-1]] == ["no_genes", "too_long"]
    for row, puzzle in zip(answers[:-3], puzzles, strict=True):
        assert row["status"] == "solved"
        assert one_each(row["answer"], puzzle)
        assert row["support"] == [1.0] * len(puzzle)
    keys = [key for part in parts.glob("*.parquet") for key in pq.read_table(part)["key"].to_pylist()]
    assert sorted(keys) == sorted({puzzle.key for puzzle in asked})
    before = {part.name: part.stat().st_mtime_ns for part in parts.iterdir()}
    assert solve_puzzles(order, asked[::-1]).to_pylist() == answers[::-1]
    assert {part.name: part.stat().st_mtime_ns for part in parts.iterdir()} == before


def test_without_a_language_model(puzzles, tmp_path):
    order = SolveOrder(str(tmp_path), None, SolveSettings(), profiles=Profiles.of(puzzles))
    answers = solve_puzzles(order, puzzles)
    assert set(answers["status"].to_pylist()) == {"baseline"}
    assert all(one_each(row, puzzle) for row, puzzle in zip(answers["answer"].to_pylist(), puzzles, strict=True))


def test_nothing_to_solve_with(puzzles, tmp_path):
    with pytest.raises(SettingError, match="--baseline"):
        solve_puzzles(SolveOrder(str(tmp_path), None, SolveSettings()), puzzles)


def test_model_folders(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no chat template"):
        check_model(str(tmp_path))
