"""Shards to part files as one Ray Data plan: read and tokenise (tasks) -> encode (actors) -> write (tasks).

Contract: one row of the plan is one shard, hence one block and one output file, from descriptor to receipt. A shard's
cells travel as one binary value, so that Ray Data can neither split nor merge them. A dataset that cannot be read or
encoded comes out as a receipt with an error, and one that a bug stops has its trace there; it never stops the plan.
Once the file ``stop`` is there nothing new is read or encoded, and what was not begun comes out as ``STOPPED``. Nothing
is collected in the driver but receipts.

Verified against Ray 2.60: ``from_items`` with as many blocks as items keeps one row a block through
``map_batches(batch_size=1)``; an actor pool needs ``size`` and not a range (autoscaling pools stay at one actor);
killed actors are restarted and their shard redone.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from cellray import storage
from cellray.cluster import Resources, ray_log_level
from cellray.errors import CellRayError, EncodeError, ReadError, SettingError, WriteError, boundary, internal, one_line
from cellray.ingest import DatasetPlan
from cellray.pipeline.order import Scoring
from cellray.pipeline.scoring import open_scorer, token_shard
from cellray.pipeline.tally import counted, encoder_notes
from cellray.tokenize.tokenizers import Tokenizer

STOPPED = "Stopped"
"""Error code of a shard that was not done because the run was asked to stop."""

_READ_CPUS = 0.5
_WRITE_CPUS = 0.25


@dataclass(frozen=True)
class Unit:
    """One shard to do: cells ``start`` to ``stop`` of plan number ``dataset``, to be written at ``uri``."""

    dataset: int
    start: int
    stop: int
    uri: str


@dataclass(frozen=True)
class Receipt:
    """What became of a shard: its file's hash and seconds by stage, or class, message and trace of an error."""

    dataset: int
    start: int
    stop: int
    uri: str
    sha256: str
    error_code: str
    error: str
    trace: str
    read_s: float
    encode_s: float
    write_s: float

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        return {"read": self.read_s, "encode": self.encode_s, "write": self.write_s}


@dataclass(frozen=True)
class Pool:
    """The encoder actors: how many, and what each takes.

    On a CPU an actor reserves three tenths of its threads: a reader and a writer fit beside the actors even when all of
    these are started again on half of the nodes, the others being lost.
    """

    size: int
    threads: int
    gpus: float

    @classmethod
    def of(cls, resources: Resources, wanted: int | None) -> "Pool":
        """Size the pool: one actor a GPU, else one for four CPUs; ``wanted`` overrides the number."""
        limit = resources.gpus or resources.cpus
        size = wanted or resources.gpus or max(1, resources.cpus // 4)
        if size > limit:
            msg = f"--encoders {size} is more than the {limit} {'GPUs' if resources.gpus else 'CPUs'} there are"
            raise SettingError(msg)
        return cls(size, max(1, resources.cpus // size), 1.0 if resources.gpus else 0.0)

    @property
    def cpus(self) -> float:
        """Logical CPUs that an actor reserves."""
        return 1.0 if self.gpus else 0.3 * self.threads


def stream(
    units: Sequence[Unit], plans: Sequence[DatasetPlan], scoring: Scoring, pool: Pool, stop: str, run: str = ""
) -> Iterator[Receipt]:
    """Yield a receipt for each unit, in the order in which they finish.

    ``run`` is the ``Tally`` that hears how far the encoders are.
    """
    if not units:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(ray_log_level())
    shards = (
        ray.data.from_items([asdict(unit) for unit in units], override_num_blocks=len(units))
        .map_batches(
            _read,  # type: ignore[arg-type]
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=_READ_CPUS,
            fn_kwargs={
                "plans": [ray.put(plan) for plan in plans],
                "tokenizer": ray.put(scoring.tokenizer),
                "min_genes": scoring.min_genes,
                "stop": stop,
            },
        )
        .map_batches(
            Encoder,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            compute=ActorPoolStrategy(size=pool.size),
            fn_constructor_args=(scoring, pool.threads, stop, run),
        )
        .map_batches(
            _write,  # type: ignore[arg-type]
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=_WRITE_CPUS,
            fn_kwargs={"labels": scoring.labels},
        )
    )
    for row in shards.iter_rows():
        yield Receipt(**row)


def _read(batch: pa.Table, *, plans: list[Any], tokenizer: Any, min_genes: int, stop: str) -> pa.Table:
    def work(unit: dict[str, Any]) -> pa.Table:
        plan: DatasetPlan = ray.get(plans[unit["dataset"]])
        known: Tokenizer = ray.get(tokenizer)
        return token_shard(plan, unit["start"], unit["stop"], tokenizer=known, min_genes=min_genes)

    return _stage(batch, "read_s", ReadError, work, stop)


class Encoder:
    """The actor: an encoder that lives as long as the pool."""

    def __init__(self, scoring: Scoring, threads: int, stop: str, run: str = "") -> None:
        import torch

        torch.set_num_threads(threads)
        self._stop = stop
        self._shard = (0, 0)
        self.encoder = open_scorer(scoring)
        if run:
            counting = counted(self.encoder.encode, encoder_notes(run), lambda: self._shard)
            self.encoder.encode = counting  # type: ignore[method-assign]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the batch's one shard."""

        def work(unit: dict[str, Any]) -> pa.Table:
            self._shard = (unit["dataset"], unit["start"])
            return self.encoder.score(_unpack(unit["cells"]))

        return _stage(batch, "encode_s", EncodeError, work, self._stop)


def _write(batch: pa.Table, *, labels: Sequence[str]) -> pa.Table:
    from cellray.write import write_part

    def work(unit: dict[str, Any]) -> str:
        return write_part(unit["uri"], _unpack(unit["cells"]), labels)

    done = _stage(batch, "write_s", WriteError, work)
    return done.drop_columns(["cells"])


def _stage(
    batch: pa.Table,
    clock: str,
    error_class: type[CellRayError],
    work: Callable[[dict[str, Any]], Any],
    stop: str | None = None,
) -> pa.Table:
    """Apply ``work`` to the one unit of ``batch``: its table becomes the unit's cells, its text the file's hash."""
    defaults = {
        "sha256": "",
        "error_code": "",
        "error": "",
        "trace": "",
        "read_s": 0.0,
        "encode_s": 0.0,
        "write_s": 0.0,
        "cells": None,
    }
    (unit,) = [{**defaults, **row} for row in batch.to_pylist()]
    started = time.perf_counter()
    if not unit["error_code"]:
        rows = f"rows {unit['start']}-{unit['stop']}"
        try:
            with boundary(error_class, rows):
                if stop is not None and storage.exists(stop):
                    unit |= {"error_code": STOPPED, "cells": None}
                    return pa.Table.from_pylist([unit], schema=_UNIT)
                result = work(unit)
            if isinstance(result, str):
                unit["sha256"] = result
            else:
                unit["cells"] = _pack(result)
        except CellRayError as error:
            unit |= {"error_code": type(error).__name__, "error": one_line(error), "cells": None}
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this dataset alone, and with its trace
            bug = internal(error, rows)
            unit |= {"error_code": type(bug).__name__, "error": str(bug), "trace": bug.trace, "cells": None}
    unit[clock] = time.perf_counter() - started
    return pa.Table.from_pylist([unit], schema=_UNIT)


_UNIT = pa.schema(
    [
        ("dataset", pa.int32()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("trace", pa.string()),
        ("read_s", pa.float64()),
        ("encode_s", pa.float64()),
        ("write_s", pa.float64()),
        ("cells", pa.large_binary()),
    ]
)


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpack(cells: bytes) -> pa.Table:
    return pa.ipc.open_stream(cells).read_all()
