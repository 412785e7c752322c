"""The driver of a run on Ray: stages what must be staged, streams all shards, finishes each dataset after its last.

Contract: yields one outcome a dataset, a manifest or the error that stopped it; a lost worker, a bug and a bad file
stop their dataset alone. It keeps counters, never cells, and counts what was scored, not what failed. Where a language
model reasons, it is asked once, for all datasets, when the encoders have given their places free; what it does not
answer fails nothing. At SIGTERM shards and datasets in hand are ended and no more are begun; then ``Terminated`` is
raised.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import ray

from cellray import schema, storage
from cellray.cluster import Resources, draining
from cellray.errors import (
    CellRayError,
    DatasetError,
    EncodeError,
    InternalError,
    ReadError,
    RefineError,
    WriteError,
    internal,
    one_line,
)
from cellray.ingest import DatasetPlan, needs_staging
from cellray.manifest import Manifest, ShardRecord
from cellray.pipeline import stages
from cellray.pipeline.finish import Finishing
from cellray.pipeline.meters import Meters
from cellray.pipeline.order import WorkOrder
from cellray.pipeline.progress import Progress
from cellray.pipeline.solving import SolveOrder, solve_puzzles
from cellray.pipeline.stream import STOPPED, Pool, Receipt, Unit, stream
from cellray.pipeline.tally import Tally
from cellray.pipeline.tasks import Calls, Labelling, finishing_of, staging
from cellray.puzzles.engine import EngineSettings
from cellray.puzzles.puzzle import Puzzle
from cellray.puzzles.reasoner import is_url
from cellray.puzzles.solve import SolveSettings
from cellray.write import part_name

Outcome = tuple[str, Manifest | CellRayError]

_ROLLOUTS = 3  # so that support weighs one window against another

_STAGE_ERRORS: dict[str, type[DatasetError]] = {
    error_class.__name__: error_class for error_class in (ReadError, EncodeError, WriteError)
}


class Drive:
    """One pass over the datasets that are not finished.

    Parameters
    ----------
    order
        What to do to each.
    resources
        What the cluster offers.
    progress
        Where cells are counted.
    """

    def __init__(self, order: WorkOrder, resources: Resources, progress: Progress) -> None:
        self.order, self.progress = order, progress
        self.pool = Pool.of(resources, order.encoders)
        self.cells_per_s: float | None = None
        self._stop = storage.join(order.out, schema.STOP_FILE)
        self._meters = Meters()
        self._tally = Tally(progress)
        self._finishing = Calls(progress.say)
        self._labelling: dict[str, Labelling] = {}
        self._inquiries: list[tuple[list[Puzzle], Labelling]] = []
        self._failed: set[int] = set()

    def run(self, plans: list[DatasetPlan]) -> Iterator[Outcome]:
        """Yield the outcome of every dataset, in the order in which they end."""
        storage.remove(self._stop)
        try:
            with draining(lambda: storage.put(self._stop, b"")) as asked, self._tally.watching():
                for outcome in self._outcomes(plans, asked):
                    self._meters.ended(outcome[1])
                    yield outcome
        finally:
            storage.remove(self._stop)

    def _outcomes(self, plans: list[DatasetPlan], asked: threading.Event) -> Iterator[Outcome]:
        ready, failed = self._stage(plans)
        yield from failed
        shards = [{shard.name: shard for shard in self._shards(plan)} for plan in ready]
        waiting = [self._missing(plan, records) for plan, records in zip(ready, shards, strict=True)]
        if not self.order.encode:
            for number, plan in enumerate(ready):
                if waiting[number]:
                    self._failed.add(number)
                    yield plan.source.dataset_id, _unscored(plan)
        units = [
            Unit(number, record.start, record.stop, self._part_uri(plan, record.name))
            for number, plan in enumerate(ready)
            for record in shards[number].values()
            if record.name in waiting[number] and number not in self._failed
        ]
        n_cells = sum(plan.n_cells for number, plan in enumerate(ready) if number not in self._failed)
        n_todo = sum(unit.stop - unit.start for unit in units)
        self.progress.start(n_cells, n_cells - n_todo)
        seconds: list[defaultdict[str, float]] = [defaultdict(float) for _ in ready]
        for number, plan in enumerate(ready):
            if not waiting[number]:
                yield from self._finish(plan, shards[number], seconds[number])
        if units:
            self._tally.encoding(stages.ENCODING)
        n_scored, started = 0, time.monotonic()
        for receipt in stream(units, ready, self.order.scoring, self.pool, self._stop, self._tally.run):
            if receipt.error_code == STOPPED:
                continue
            number, plan = receipt.dataset, ready[receipt.dataset]
            n_shard = receipt.stop - receipt.start
            self._tally.ended(number, receipt.start, n_shard, scored=not receipt.error_code)
            if receipt.error_code:
                if number not in self._failed:
                    self._failed.add(number)
                    yield plan.source.dataset_id, _error(plan, receipt)
                continue
            self._meters.scored(n_shard)
            n_scored += n_shard
            self.cells_per_s = n_scored / (time.monotonic() - started)
            name = receipt.uri.rsplit("/", 1)[-1]
            for stage_name, spent in receipt.seconds.items():
                seconds[number][stage_name] += spent
            shards[number][name].sha256 = receipt.sha256
            waiting[number].discard(name)
            if not waiting[number] and number not in self._failed and not asked.is_set():
                yield from self._finish(plan, shards[number], seconds[number])
            yield from self._collect(timeout_s=0)
        self._tally.encoding(None)
        while self._finishing:
            yield from self._collect(timeout_s=1)
        if self._inquiries and not asked.is_set():
            self._publish(self._answers())
        while self._finishing:
            yield from self._collect(timeout_s=1)

    def _stage(self, plans: list[DatasetPlan]) -> tuple[list[DatasetPlan], list[Outcome]]:
        """Rewrite what cannot be read by row, all such datasets at once; the result keeps the order of ``plans``."""
        calls = Calls(self.progress.say)
        outcomes: dict[str, DatasetPlan | CellRayError] = {plan.source.dataset_id: plan for plan in plans}
        for plan in plans:
            if needs_staging(plan):
                self.progress.say(f"{plan.source.dataset_id}: {plan.layout} is not stored by cell; rewriting it once")
                folder = storage.join(self._folder(plan), schema.STAGED_DIR)
                calls.begin(staging(plan, folder, self.order.shard_cells))
        if calls:
            self.progress.stage(stages.READING)
        while calls:
            for call, outcome in calls.ended(timeout_s=1):
                outcomes[call.dataset_id] = outcome
        ready = [outcome for outcome in outcomes.values() if isinstance(outcome, DatasetPlan)]
        failed: list[Outcome] = [
            (name, outcome) for name, outcome in outcomes.items() if isinstance(outcome, CellRayError)
        ]
        return ready, failed

    def _shards(self, plan: DatasetPlan) -> Iterator[ShardRecord]:
        for start in range(0, plan.n_cells, self.order.shard_cells):
            stop = min(start + self.order.shard_cells, plan.n_cells)
            name = part_name(plan.content_hash, start, stop, self.order.scoring_key)
            yield ShardRecord(name=name, start=start, stop=stop, sha256="")

    def _missing(self, plan: DatasetPlan, shards: dict[str, ShardRecord]) -> set[str]:
        return shards.keys() - set(storage.list_files(storage.join(self._folder(plan), schema.SCORES_DIR)))

    def _finish(
        self, plan: DatasetPlan, shards: dict[str, ShardRecord], seconds: dict[str, float]
    ) -> Iterator[Outcome]:
        """Start the dataset's last task; yields only when it can not even be started."""
        try:
            self._begin_finish(plan, shards, seconds)
        except CellRayError as error:
            yield plan.source.dataset_id, error
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this dataset alone, and with its trace
            yield plan.source.dataset_id, internal(error, f"dataset {plan.source.dataset_id!r}: finishing")

    def _begin_finish(self, plan: DatasetPlan, shards: dict[str, ShardRecord], seconds: dict[str, float]) -> None:
        job = Finishing(self.order, plan, tuple(shards.values()), dict(seconds))
        memory = job.memory_bytes()
        largest = max((int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]), default=0)
        if memory > largest:
            msg = (
                f"dataset {plan.source.dataset_id!r}: refining {plan.n_cells:,} cells takes {memory / 1e9:.1f} GB, "
                f"the largest node offers {largest / 1e9:.1f} GB; add a larger node or pass --refine none"
            )
            raise RefineError(msg)
        self._tally.finish(plan.source.dataset_id)
        if self.order.refining.reason is None:
            self._finishing.begin(finishing_of(job, self._tally.run, memory))
        else:
            labelling = self._labelling[plan.source.dataset_id] = Labelling(job, self._tally.run, memory)
            self._finishing.begin(labelling.call())

    def _collect(self, timeout_s: float) -> Iterator[Outcome]:
        for call, outcome in self._finishing.ended(timeout_s):
            labelling = self._labelling.pop(call.dataset_id, None)
            if labelling is not None and isinstance(outcome, list):
                self._inquiries.append((outcome, labelling))
            else:
                self._tally.finished(call.dataset_id)
                yield call.dataset_id, outcome

    def _answers(self) -> dict[str, dict[str, Any]]:
        """Ask the language model about all datasets; returns its rows by puzzle key, none if it cannot be had."""
        puzzles = [puzzle for asked, _ in self._inquiries for puzzle in asked]
        model = self.order.refining.reason
        if not puzzles or model is None:
            return {}
        order = SolveOrder(
            out=storage.join(self.order.out, schema.REASON_DIR),
            engine=None if is_url(model) else EngineSettings(model=model),
            url=model if is_url(model) else None,
            solving=SolveSettings(rollouts=_ROLLOUTS, seed=self.order.refining.reason_seed),
        )
        self.progress.say(f"asking {model} about {len(puzzles):,} puzzles")
        try:
            answers = solve_puzzles(order, puzzles, self.progress)
        except (CellRayError, ray.exceptions.RayError) as error:
            self.progress.say(f"warning: no answer of {model}, cells keep their labels: {one_line(error)[:500]}")
            return {}
        return {row["key"]: row for row in answers.to_pylist()}

    def _publish(self, answers: dict[str, dict[str, Any]]) -> None:
        """Start the second half of every dataset that waits for answers."""
        for asked, labelling in self._inquiries:
            mine = {puzzle.key: answers[puzzle.key] for puzzle in asked if puzzle.key in answers}
            self._finishing.begin(labelling.publishing(mine))
        self._inquiries.clear()

    def _folder(self, plan: DatasetPlan) -> str:
        return self.order.folder(plan.source.dataset_id)

    def _part_uri(self, plan: DatasetPlan, name: str) -> str:
        return storage.join(self._folder(plan), schema.SCORES_DIR, name)


def _error(plan: DatasetPlan, receipt: Receipt) -> CellRayError:
    if receipt.error_code == InternalError.__name__:
        return InternalError(f"dataset {plan.source.dataset_id!r}: {receipt.error}", receipt.trace)
    return _STAGE_ERRORS.get(receipt.error_code, DatasetError)(receipt.error)


def _unscored(plan: DatasetPlan) -> CellRayError:
    msg = (
        f"dataset {plan.source.dataset_id!r}: no scores of this content, model, label set and alpha are stored; "
        "run cellray annotate"
    )
    return RefineError(msg)
