"""Per-cell reasoning on Ray Data: row ranges of all datasets to engine actors, a part file a range, a table a dataset.

Contract: a range is read, asked about, checked and published by one call of an actor; its part's name is a function of
content, range and everything that changes a row, so that a run that was stopped goes on where it was, and doing a range
again changes nothing. A dataset that cannot be read fails alone. A dataset's table is ``<id>.parquet`` in the output
folder, ``schema.cell_reasons()`` with one row a cell in the input's order. Memory is bounded by the ranges under way.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from cellray import schema, storage
from cellray.cluster import ray_session
from cellray.errors import CellRayError, DatasetError, one_line
from cellray.ingest import DatasetSource, check_beside, find_sources, needs_staging, read_obs_text, stage
from cellray.pipeline.engines import NUMBER, RunningEngine, through_engines
from cellray.pipeline.progress import Progress, Silent
from cellray.puzzles.engine import EngineDeadError, EngineSettings, check_model, check_vllm, locate
from cellray.reasoner.cells import NamedCells
from cellray.reasoner.form import SentenceForm
from cellray.reasoner.reason import ReasonSettings, reasoned
from cellray.reasoner.score import Pairs, scored
from cellray.targets import reserve
from cellray.write import part_name

_STAGED_CELLS = 8192


@dataclass(frozen=True)
class ReasonOrder:
    """What is asked of whom, and where it goes. ``limit``: only the first so many cells of each dataset."""

    out: str
    engine: EngineSettings
    asking: ReasonSettings
    form: SentenceForm
    adapter: str | None = None
    engines: int = 1
    shard_cells: int = 64
    limit: int | None = None

    def key(self) -> str:
        """Hash of everything that changes a row, besides the dataset's content."""
        models = [storage.content_hash(locate(one)) for one in (self.engine.model, self.adapter) if one]
        engine = self.engine.model_dump(include={"dtype", "max_length", "seed"})
        told = json.dumps([models, engine, self.asking.model_dump(), self.form.model_dump()], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass
class ReasonResult:
    """What became of each dataset: facts of those that are complete, messages of those that failed."""

    out: str
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some failed, 1 all failed."""
        return 0 if not self.failed else 3 if self.datasets else 1


@dataclass(frozen=True)
class _Piece:
    dataset: int
    start: int
    stop: int
    uri: str


def reason_cells(
    order: ReasonOrder,
    inputs: Sequence[str],
    progress: Progress | None = None,
    address: str | None = None,
    *,
    truth_key: str | None = None,
    pairs: Pairs | None = None,
) -> ReasonResult:
    """Ask about every cell of ``inputs`` and write a table a dataset.

    With ``truth_key`` each dataset's facts hold its score against that ``obs`` column.

    Raises
    ------
    SettingError
        Before any work, if the model or an input cannot be used.
    """
    progress = progress or Silent()
    check_model(order.engine.model)
    check_vllm()
    result = ReasonResult(order.out)
    sources = find_sources(inputs)
    tables = [f"{source.dataset_id}.parquet" for source in sources]
    reserve(order.out, (*tables, schema.PARTS_DIR), [source.uri for source in sources])
    opened = _open(sources, order, result, progress, truth_key)
    pieces = [_pieces(order, number, cells) for number, cells in enumerate(opened)]
    todo = [piece for cells, own in zip(opened, pieces, strict=True) for piece in _missing(order, cells, own)]
    n_cells, n_todo = (sum(one.stop - one.start for one in some) for some in (chain(*pieces), todo))
    progress.start(n_cells, n_cells - n_todo)
    broken: dict[int, str] = {}
    if todo:
        with ray_session(address) as resources:
            given = (order, [ray.put(cells) for cells in opened], todo)
            for row in through_engines(Reasoner, given, len(todo), order.engine, order.engines, resources):
                progress.advance(row["n"])
                if row["error"]:
                    broken.setdefault(row["dataset"], row["error"])
    for number, cells in enumerate(opened):
        source = cells.plan.source
        if number in broken:
            result.failed[source.dataset_id] = broken[number]
            continue
        facts = _collect(order, source.dataset_id, pieces[number])
        if truth_key is not None:
            facts["score"] = _scored(order, source, truth_key, pairs)
        storage.remove(storage.join(order.out, schema.STAGED_DIR, source.dataset_id))
        result.datasets[source.dataset_id] = facts
    return result


class Reasoner:
    """The actor: does one piece a call and publishes its part."""

    def __init__(self, order: ReasonOrder, opened: list[Any], pieces: list[_Piece]) -> None:
        self._order, self._pieces = order, pieces
        self._cells: dict[int, NamedCells] = {}
        self._opened = opened
        self._engine = RunningEngine(order.engine)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Read, ask, publish."""
        piece, error = self._pieces[batch[NUMBER][0].as_py()], ""
        try:
            self._do(piece)
        except (DatasetError, EngineDeadError) as failure:
            error = f"rows {piece.start} to {piece.stop}: {one_line(failure)}; run the same command again to go on"
        return pa.table({"dataset": [piece.dataset], "n": [piece.stop - piece.start], "error": [error]})

    def _do(self, piece: _Piece) -> None:
        if piece.dataset not in self._cells:
            self._cells[piece.dataset] = ray.get(self._opened[piece.dataset])
        cells, order = self._cells[piece.dataset], self._order
        shard, sentences = cells.read(piece.start, piece.stop, order.asking.min_genes)
        rows = self._engine(lambda engine: reasoned(engine, cells, shard, sentences, order.asking, order.adapter))
        with storage.writing(piece.uri) as path:
            pq.write_table(rows, path, compression="zstd")


def _open(
    sources: Sequence[DatasetSource],
    order: ReasonOrder,
    result: ReasonResult,
    progress: Progress,
    truth_key: str | None,
) -> list[NamedCells]:
    """Open the datasets; those that cannot be read are failures of the ``result``."""
    opened = []
    failures: list[CellRayError] = []
    for source in sources:
        try:
            check_beside(source, {} if truth_key is None else {truth_key: "obs"})
            cells = NamedCells.of(source, order.form, layer=order.asking.layer, gene_key=order.asking.gene_key)
            if needs_staging(cells.plan):
                progress.say(f"{source.dataset_id}: {cells.plan.layout} is not stored by cell; rewriting it once")
                folder = storage.join(order.out, schema.STAGED_DIR, source.dataset_id)
                cells = cells.staged(stage(cells.plan, folder, _STAGED_CELLS))
        except DatasetError as error:
            result.failed[source.dataset_id] = one_line(error)
            failures.append(error)
            continue
        opened.append(cells)
        plan = cells.plan
        progress.say(
            f"{source.dataset_id}: {plan.n_cells:,} cells; {plan.layer_reason}; genes of var[{plan.gene_key!r}]"
        )
    if len(failures) == 1 and len(sources) == 1:
        raise failures[0]
    return opened


def _pieces(order: ReasonOrder, number: int, cells: NamedCells) -> list[_Piece]:
    plan, key, found = cells.plan, order.key(), []
    n_cells = min(plan.n_cells, order.limit or plan.n_cells)
    for start in range(0, n_cells, order.shard_cells):
        stop = min(start + order.shard_cells, n_cells)
        # The layer is told by its found name, for the order may leave the choice to the file.
        name = part_name(plan.content_hash, start, stop, f"{key}{plan.layer}{plan.gene_key}")
        found.append(_Piece(number, start, stop, storage.join(_parts(order, cells), name)))
    return found


def _missing(order: ReasonOrder, cells: NamedCells, pieces: list[_Piece]) -> list[_Piece]:
    there = set(storage.list_files(_parts(order, cells)))
    return [piece for piece in pieces if piece.uri.rsplit("/", 1)[-1] not in there]


def _parts(order: ReasonOrder, cells: NamedCells) -> str:
    return storage.join(order.out, schema.PARTS_DIR, cells.plan.source.dataset_id)


def _table(order: ReasonOrder, dataset_id: str) -> str:
    return storage.join(order.out, f"{dataset_id}.parquet")


def _collect(order: ReasonOrder, dataset_id: str, pieces: list[_Piece]) -> dict[str, Any]:
    """Put a dataset's parts into one file, a part at a time; returns its facts."""
    counts: Counter[str] = Counter()
    sums: defaultdict[str, int] = defaultdict(int)
    uri = _table(order, dataset_id)
    with storage.writing(uri) as path, pq.ParquetWriter(path, schema.cell_reasons(), compression="zstd") as writer:
        for piece in pieces:
            with storage.open_read(piece.uri) as file:
                rows = pq.read_table(file)
            if rows.num_rows != piece.stop - piece.start:
                msg = f"{piece.uri}: {rows.num_rows} rows for {piece.stop - piece.start} cells; remove it and run again"
                raise CellRayError(msg)
            writer.write_table(rows)
            counts.update(rows[schema.STATUS].to_pylist())
            holds = pc.struct_field(pc.list_flatten(rows[schema.MARKERS].combine_chunks()), schema.HOLDS)
            sums["markers"] += len(holds)
            sums["markers_held"] += pc.sum(holds).as_py() or 0
            for name in (schema.PROMPT_TOKENS, schema.CACHED_TOKENS, schema.ANSWER_TOKENS):
                sums[name] += pc.sum(rows[name]).as_py() or 0
    statuses = {f"n_{status}": counts[status] for status in schema.Status}
    return {"file": uri, "n_cells": sum(counts.values()), **statuses, **sums}


def _scored(order: ReasonOrder, source: DatasetSource, truth_key: str, pairs: Pairs | None) -> dict[str, Any]:
    with storage.open_read(_table(order, source.dataset_id)) as file:
        rows = pq.read_table(file, columns=[schema.STATUS, schema.ANSWER])
    return scored(read_obs_text(source, truth_key)[: rows.num_rows].tolist(), rows, pairs)
