"""Puzzles in files: Parquet and JSON lines of ``ncbi/CellPuzzles``, and ours with three columns more.

Contract: ``read`` takes the released files as they are and ours alike; the answer of a record is its gold answer or,
where a reasoning trace is stored, the answer at its end. A record that is no puzzle is an error that names its number.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellray import storage
from cellray.errors import InputError, PuzzleError, boundary
from cellray.puzzles.answer import official
from cellray.puzzles.puzzle import SEPARATOR, SYSTEM, Puzzle

_COLUMNS = ("system_msg", "user_msg", "assistant_msg")
SCHEMA = pa.schema([(name, pa.string()) for name in (*_COLUMNS, "dataset", "group", "cell_ids")])


def write(uri: str, puzzles: Sequence[Puzzle]) -> None:
    """Write puzzles as Parquet, atomically."""
    rows = [
        {
            "system_msg": SYSTEM,
            "user_msg": puzzle.user,
            "assistant_msg": puzzle.trace or SEPARATOR.join(puzzle.answer),
            "dataset": puzzle.dataset,
            "group": puzzle.group,
            "cell_ids": json.dumps(puzzle.cell_ids),
        }
        for puzzle in puzzles
    ]
    with storage.writing(uri) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, compression="zstd")


def read(uri: str) -> list[Puzzle]:
    """Read a ``.parquet``, ``.json`` (a list) or ``.jsonl`` file.

    Raises
    ------
    InputError
        If the file is not there or of another kind, a column is missing, or a record is no puzzle.
    """
    with boundary(InputError, f"puzzles {uri}", ValueError):
        if uri.endswith(".parquet"):
            with storage.open_read(uri) as file:
                rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        else:
            text = storage.read_bytes(uri).decode()
            rows = [json.loads(line) for line in text.splitlines()] if uri.endswith(".jsonl") else json.loads(text)
    if not isinstance(rows, list):
        msg = f"puzzles {uri}: a {type(rows).__name__} is no list of records"
        raise InputError(msg)
    return [_puzzle(uri, number, row) for number, row in enumerate(rows)]


def _puzzle(uri: str, number: int, row: dict[str, Any]) -> Puzzle:
    try:
        said = row.get("assistant_msg") or ""
        return Puzzle.of_prompt(
            row["user_msg"],
            answer=official(said).items,
            trace=said if "<answer>" in said else "",
            dataset=row.get("dataset") or "",
            group=row.get("group") or "",
            cell_ids=tuple(json.loads(row.get("cell_ids") or "[]")),
        )
    except (PuzzleError, KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else str(error)
        msg = f"puzzles {uri}: record {number}: {what}"
        raise InputError(msg) from error
