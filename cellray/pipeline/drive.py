"""The driver of a run on Ray: stages what must be staged, streams all shards, finishes each dataset after its last.

Contract: yields one outcome a dataset, a manifest or the error that stopped it. It keeps counters, never cells. Where a
language model reasons, it is asked once, for all datasets, when the encoders have given their places free; what it does
not answer fails nothing. At SIGTERM shards and datasets in hand are ended and no more are begun; then ``Terminated`` is
raised.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, cast

import ray

from cellray import schema, storage
from cellray.cluster import Resources, draining
from cellray.errors import CellRayError, DatasetError, EncodeError, ReadError, RefineError, WriteError, one_line
from cellray.ingest import DatasetPlan, needs_staging, stage
from cellray.manifest import Manifest, ShardRecord
from cellray.pipeline.finish import Finishing, Labelled, finish, finish_embedding, label, publish
from cellray.pipeline.meters import Meters
from cellray.pipeline.order import WorkOrder
from cellray.pipeline.progress import Progress
from cellray.pipeline.solving import SolveOrder, solve_puzzles
from cellray.pipeline.stream import STOPPED, Pool, Receipt, Unit, stream
from cellray.puzzles.engine import EngineSettings
from cellray.puzzles.puzzle import Puzzle
from cellray.puzzles.reasoner import is_url
from cellray.puzzles.solve import SolveSettings
from cellray.write import part_name

Outcome = tuple[str, Manifest | CellRayError]

_PUBLISH_BYTES = 1 << 30  # libraries and one part
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
        self._finishing: dict[ray.ObjectRef, str] = {}
        self._labelled: dict[ray.ObjectRef, ray.ObjectRef] = {}
        self._inquiries: list[tuple[str, list[Puzzle], ray.ObjectRef]] = []
        self._failed: set[int] = set()

    def run(self, plans: list[DatasetPlan]) -> Iterator[Outcome]:
        """Yield the outcome of every dataset, in the order in which they end."""
        storage.remove(self._stop)
        try:
            with draining(lambda: storage.put(self._stop, b"")) as asked:
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
        started = time.monotonic()
        for receipt in stream(units, ready, self.order.scoring, self.pool, self._stop):
            if receipt.error_code == STOPPED:
                continue
            number, plan = receipt.dataset, ready[receipt.dataset]
            if receipt.error_code and number not in self._failed:
                self._failed.add(number)
                yield plan.source.dataset_id, _error(receipt)
            self.progress.advance(receipt.stop - receipt.start)
            self._meters.scored(receipt.stop - receipt.start)
            self.cells_per_s = n_todo / (time.monotonic() - started)
            name = receipt.uri.rsplit("/", 1)[-1]
            for stage_name, spent in receipt.seconds.items():
                seconds[number][stage_name] += spent
            shards[number][name].sha256 = receipt.sha256
            waiting[number].discard(name)
            if not waiting[number] and number not in self._failed and not asked.is_set():
                yield from self._finish(plan, shards[number], seconds[number])
            yield from self._collect(timeout_s=0)
        while self._finishing:
            yield from self._collect(timeout_s=1)
        if self._inquiries and not asked.is_set():
            self._publish(self._answers())
        while self._finishing:
            yield from self._collect(timeout_s=1)

    def _stage(self, plans: list[DatasetPlan]) -> tuple[list[DatasetPlan], list[Outcome]]:
        """Rewrite what cannot be read by row, all such datasets at once; the result keeps the order of ``plans``."""
        tasks = {}
        for plan in plans:
            if needs_staging(plan):
                self.progress.say(f"{plan.source.dataset_id}: {plan.layout} is not stored by cell; rewriting it once")
                folder = storage.join(self._folder(plan), schema.STAGED_DIR)
                tasks[plan.source.dataset_id] = _staging.remote(plan, folder, self.order.shard_cells)
        ready: list[DatasetPlan] = []
        failed: list[Outcome] = []
        for plan in plans:
            dataset_id = plan.source.dataset_id
            outcome = ray.get(tasks[dataset_id]) if dataset_id in tasks else plan
            if isinstance(outcome, DatasetPlan):
                ready.append(outcome)
            else:
                failed.append((dataset_id, outcome))
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
        job = Finishing(self.order, plan, tuple(shards.values()), dict(seconds))
        memory = job.memory_bytes()
        largest = max((int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]), default=0)
        if memory > largest:
            msg = (
                f"dataset {plan.source.dataset_id!r}: refining {plan.n_cells:,} cells takes {memory / 1e9:.1f} GB, "
                f"the largest node offers {largest / 1e9:.1f} GB; add a larger node or pass --refine none"
            )
            yield plan.source.dataset_id, RefineError(msg)
            return
        told: dict[str, Any] = {"memory": memory, "name": f"finish {plan.source.dataset_id}"}
        if self.order.refining.reason is None:
            task = _finishing.options(**told).remote(job)
        else:
            task, self._labelled[task] = cast(
                "list[ray.ObjectRef]", _labelling.options(num_returns=2, **told).remote(job)
            )
        self._finishing[task] = plan.source.dataset_id

    def _collect(self, timeout_s: float) -> Iterator[Outcome]:
        if self._finishing:
            done, _ = ray.wait(list(self._finishing), num_returns=1, timeout=timeout_s)
            for task in done:
                dataset_id, outcome = self._finishing.pop(task), ray.get(task)
                labelled = self._labelled.pop(task, None)
                if labelled is not None and isinstance(outcome, list):
                    self._inquiries.append((dataset_id, outcome, labelled))
                else:
                    yield dataset_id, outcome

    def _answers(self) -> dict[str, dict[str, Any]]:
        """Ask the language model about all datasets; returns its rows by puzzle key, none if it cannot be had."""
        puzzles = [puzzle for _, asked, _ in self._inquiries for puzzle in asked]
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
        for dataset_id, asked, labelled in self._inquiries:
            mine = {puzzle.key: answers[puzzle.key] for puzzle in asked if puzzle.key in answers}
            told: dict[str, Any] = {"memory": _PUBLISH_BYTES, "name": f"publish {dataset_id}"}
            self._finishing[_publishing.options(**told).remote(labelled, mine)] = dataset_id
        self._inquiries.clear()

    def _folder(self, plan: DatasetPlan) -> str:
        return self.order.folder(plan.source.dataset_id)

    def _part_uri(self, plan: DatasetPlan, name: str) -> str:
        return storage.join(self._folder(plan), schema.SCORES_DIR, name)


@ray.remote(num_cpus=1)
def _staging(plan: DatasetPlan, folder: str, shard_cells: int) -> DatasetPlan | CellRayError:
    try:
        return stage(plan, folder, shard_cells)
    except CellRayError as error:
        return error


@ray.remote(num_cpus=1)
def _finishing(job: Finishing) -> Manifest | CellRayError:
    try:
        return finish(job) if job.order.scoring.labels else finish_embedding(job)
    except CellRayError as error:
        return error


@ray.remote(num_cpus=1)
def _labelling(job: Finishing) -> tuple[list[Puzzle] | CellRayError, Labelled | None]:
    """Return what the dataset asks, and for the other half, which never passes the driver, the dataset itself."""
    try:
        labelled = label(job)
    except CellRayError as error:
        return error, None
    return [question.puzzle for question in labelled.inquiry.questions], labelled


@ray.remote(num_cpus=1)
def _publishing(labelled: Labelled, answers: dict[str, dict[str, Any]]) -> Manifest | CellRayError:
    try:
        return publish(labelled, answers)
    except CellRayError as error:
        return error


def _error(receipt: Receipt) -> CellRayError:
    return _STAGE_ERRORS.get(receipt.error_code, DatasetError)(receipt.error)


def _unscored(plan: DatasetPlan) -> CellRayError:
    msg = (
        f"dataset {plan.source.dataset_id!r}: no scores of this content, model, label set and alpha are stored; "
        "run cellray annotate"
    )
    return RefineError(msg)
