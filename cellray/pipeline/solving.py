"""Bulk solving on Ray Data: puzzles in chunks to engine actors, a part file a chunk, one table at the end.

Contract: a part's name is a function of the settings and of the puzzles in it, and it is published in one step; puzzles
whose answers are in a part of the same settings are not asked again, ``failed`` ones are. A killed actor is started
anew and its chunks redone, so nothing is lost or doubled. The order of the input does not matter to a result.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cellray import schema, storage
from cellray.cluster import ray_session
from cellray.errors import SettingError
from cellray.pipeline import stages
from cellray.pipeline.engines import NUMBER, RunningEngine, through_engines
from cellray.pipeline.progress import Progress, Silent
from cellray.puzzles.centroid import Profiles
from cellray.puzzles.engine import EngineDeadError, EngineSettings, check_model, check_vllm, locate
from cellray.puzzles.puzzle import Puzzle
from cellray.puzzles.remote import solve_served
from cellray.puzzles.solve import ANSWERS, SolveSettings, solve_all

ANSWERS_FILE = "answers.parquet"


@dataclass(frozen=True)
class SolveOrder:
    """What is asked of whom: an engine, a served app (``url``), or the solver without either, from ``profiles``."""

    out: str
    engine: EngineSettings | None
    solving: SolveSettings
    url: str | None = None
    adapter: str | None = None
    profiles: Profiles | None = None
    engines: int = 1
    chunk: int = 64

    def key(self) -> str:
        """Hash of everything that changes an answer, 16 hex digits."""
        models = [storage.content_hash(locate(one)) for one in (self.engine and self.engine.model, self.adapter) if one]
        engine = self.engine.model_dump(include={"dtype", "max_length", "seed"}) if self.engine else None
        served = [] if self.url is None else [self.url]
        told = json.dumps([models, engine, self.solving.model_dump(), *served], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def solve_puzzles(
    order: SolveOrder, puzzles: Sequence[Puzzle], progress: Progress | None = None, address: str | None = None
) -> pa.Table:
    """Answer all puzzles and write ``answers.parquet``; returns it, a row a puzzle in their order.

    Raises
    ------
    SettingError
        Before any work, if the model cannot be used.
    """
    progress = progress or Silent()
    if order.engine is None and order.url is None and order.profiles is None:
        msg = "nothing to solve with: give --model, or --baseline with solved puzzles"
        raise SettingError(msg)
    if order.engine is not None:
        check_model(order.engine.model)
        check_vllm()
    prefix = f"part-{order.key()}"
    parts = storage.join(order.out, schema.PARTS_DIR)
    distinct = {puzzle.key: puzzle for puzzle in puzzles}
    known = _known(parts, prefix)
    todo = [puzzle for key, puzzle in distinct.items() if key not in known]
    progress.start(len(distinct), len(distinct) - len(todo), "puzzles")
    chunks = [todo[at : at + order.chunk] for at in range(0, len(todo), order.chunk)]
    if chunks and order.engine is None:
        if order.url is not None:
            progress.stage(stages.ASKING)
        for chunk in chunks:
            _put(parts, prefix, chunk, _without_engine(chunk, order))
            progress.advance(len(chunk))
    elif chunks and order.engine is not None:
        if not ray.is_initialized():
            progress.stage(stages.STARTING)
        with ray_session(address) as resources:
            progress.stage(stages.ASKING)
            given = (order, [ray.put(chunk) for chunk in chunks], parts, prefix)
            for row in through_engines(Solver, given, len(chunks), order.engine, order.engines, resources):
                progress.advance(row["n"])
    return _collected(order.out, parts, prefix, puzzles)


class Solver:
    """The actor: solves a chunk and publishes its part."""

    def __init__(self, order: SolveOrder, chunks: list[Any], parts: str, prefix: str) -> None:
        self._order, self._chunks, self._parts, self._prefix = order, chunks, parts, prefix
        assert order.engine is not None  # noqa: S101 - for the type checker
        self._engine = RunningEngine(order.engine)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer one chunk and publish its part."""
        chunk: list[Puzzle] = ray.get(self._chunks[batch[NUMBER][0].as_py()])
        try:
            answers = self._engine(
                lambda engine: solve_all(engine, chunk, self._order.solving, adapter=self._order.adapter)
            )
        except EngineDeadError:
            answers = _without_engine(chunk, self._order)
        _put(self._parts, self._prefix, chunk, answers)
        return pa.table({"n": [len(chunk)]})


def _without_engine(chunk: list[Puzzle], order: SolveOrder) -> pa.Table:
    if order.url is not None:
        return asyncio.run(solve_served(order.url, chunk, order.solving))
    return asyncio.run(solve_all(None, chunk, order.solving, profiles=order.profiles))


def _put(parts: str, prefix: str, chunk: list[Puzzle], answers: pa.Table) -> None:
    named = hashlib.sha256("".join(puzzle.key for puzzle in chunk).encode()).hexdigest()[:16]
    with storage.writing(storage.join(parts, f"{prefix}-{named}.parquet")) as path:
        pq.write_table(answers, path, compression="zstd")


def _known(parts: str, prefix: str) -> set[str]:
    """Keys of the puzzles that need not be asked again."""
    found: set[str] = set()
    for name in storage.list_files(parts):
        if name.startswith(prefix):
            with storage.open_read(storage.join(parts, name)) as file:
                table = pq.read_table(file, columns=["key", "status"])
            rows = zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
            found |= {key for key, status in rows if status not in ("failed", "baseline")}
    return found


def _collected(out: str, parts: str, prefix: str, puzzles: Sequence[Puzzle]) -> pa.Table:
    """Put all parts into one table in the order of the puzzles; an answer stands before a failure of an earlier run."""
    rows: dict[str, dict[str, Any]] = {}
    for name in storage.list_files(parts):
        if name.startswith(prefix):
            with storage.open_read(storage.join(parts, name)) as file:
                for row in pq.read_table(file).to_pylist():
                    if rows.get(row["key"], {}).get("status") in (None, "failed", "baseline"):
                        rows[row["key"]] = row
    table = pa.Table.from_pylist([rows[puzzle.key] for puzzle in puzzles], schema=ANSWERS)
    with storage.writing(storage.join(out, ANSWERS_FILE)) as path:
        pq.write_table(table, path, compression="zstd")
    return table
