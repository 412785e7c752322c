"""Puzzles in files: the released form as it is, ours, and files that are neither."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cellray.errors import InputError
from cellray.puzzles import Puzzle
from cellray.puzzles.answer import written
from cellray.puzzles.puzzle import SYSTEM
from cellray.puzzles.records import read, write

PUZZLE = Puzzle("x ", (("A", "B"), ("C",)), ("t cell", "b"), ("b", "t cell"), "", "d", "g", ("c1", "c2"))


def test_round_trip(root):
    write(f"{root}/p.parquet", [PUZZLE])
    assert read(f"{root}/p.parquet") == [PUZZLE]


def test_traces_are_kept(tmp_path):
    solved = Puzzle("x ", PUZZLE.cells, PUZZLE.candidates, PUZZLE.answer, written("why", PUZZLE.answer))
    write(f"{tmp_path}/p.parquet", [solved])
    assert read(f"{tmp_path}/p.parquet") == [solved]


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
def test_the_released_files_are_read_as_they_are(tmp_path, kind):
    rows = [{"system_msg": SYSTEM, "user_msg": PUZZLE.user, "assistant_msg": "b | t cell"}]
    path = tmp_path / f"test.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    (found,) = read(str(path))
    assert found.user == PUZZLE.user
    assert found.answer == PUZZLE.answer


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"user_msg": "x"}]', '[{"system_msg": "x"}]', "null", "3"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"p\.json"):
        read(str(path))


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet"):
        read(f"{tmp_path}/none.parquet")
