"""The Ray tasks of one dataset, staging, finishing, labelling and publishing, and what becomes of lost ones.

Contract: a task returns its result or the error that stopped its dataset; a bug comes back as an ``InternalError`` with
its trace. A task that is lost (its worker killed, its node gone, its data with it) is begun once more, by ``Calls`` and
not by Ray, which would begin one that was killed for its memory fifteen times; lost again, it is a ``LostError`` of
that dataset. Nothing that becomes of one dataset stops another.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from ray import exceptions

from cellray.errors import CellRayError, InternalError, LostError, internal, one_line
from cellray.ingest import DatasetPlan, stage
from cellray.log import logger
from cellray.manifest import Manifest
from cellray.pipeline.finish import Finishing, Labelled, finish_embedding, label, publish
from cellray.pipeline.stages import REFINING, WRITING, entering
from cellray.pipeline.tally import finishing
from cellray.puzzles.puzzle import Puzzle

PUBLISH_BYTES = 1 << 30
"""Memory of the second half of a dataset: libraries and one part."""

_OUT_OF_MEMORY = "give Ray more memory, annotate fewer datasets at a time, or pass --refine none"
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.OutOfMemoryError, f"its worker was killed: out of memory; {_OUT_OF_MEMORY}"),
    (exceptions.NodeDiedError, "its node was lost; run the same command again to go on"),
    (exceptions.LocalRayletDiedError, "its node was lost; run the same command again to go on"),
    (
        exceptions.WorkerCrashedError,
        f"its worker died, as one does that is killed from outside or for its memory; if so {_OUT_OF_MEMORY}, else run "
        "the same command again to go on",
    ),
    (exceptions.ObjectLostError, "what it needs was lost with a node; run the same command again to go on"),
    (exceptions.OutOfDiskError, "the disk of its node is full; make room, then run the same command again to go on"),
    (exceptions.TaskUnschedulableError, "no node can take it; add a larger one"),
    (exceptions.RuntimeEnvSetupError, "its worker could not be set up"),
)


@dataclass(frozen=True)
class Call:
    """One task of one dataset: what it does, in a word, how to begin it, and how often it may be begun again."""

    dataset_id: str
    doing: str
    begin: Callable[[], ray.ObjectRef]
    again: int = 1


class Calls:
    """The tasks that are under way.

    Parameters
    ----------
    say
        Called with a line when a task is begun again.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._pending: dict[ray.ObjectRef, Call] = {}

    def __bool__(self) -> bool:
        return bool(self._pending)

    def begin(self, call: Call) -> None:
        """Begin a task."""
        self._pending[call.begin()] = call

    def ended(self, timeout_s: float) -> Iterator[tuple[Call, Any]]:
        """Yield a task that ended within the time, if one did: its call, and its result or error."""
        if not self._pending:
            return
        done, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        for reference in done:
            call = self._pending.pop(reference)
            outcome = _outcome(call, reference)
            if isinstance(outcome, LostError) and call.again:
                self._say(f"{call.dataset_id}: {call.doing} is begun again, {_brief(outcome)}")
                self.begin(replace(call, again=call.again - 1))
            else:
                yield call, outcome


def _outcome(call: Call, reference: ray.ObjectRef) -> Any:
    """Return the result of a task that has ended, or the error that it means for the dataset."""
    what = f"dataset {call.dataset_id!r}: {call.doing}"
    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, exceptions.RayError) and not isinstance(cause, exceptions.RayTaskError):
            # What the task was given is lost: Ray says so in the task's name.
            return LostError(f"{what} failed: {_reason(cause)}")
        if isinstance(cause, CellRayError):
            return cause
        return InternalError(str(internal(cause or error, what)), str(error))
    except exceptions.RayError as error:
        logger("pipeline").warning("%s was lost: %s", what, error)
        return LostError(f"{what} failed: {_reason(error)}")


def _reason(error: BaseException) -> str:
    return next((words for kind, words in _REASONS if isinstance(error, kind)), one_line(error)[:500])


def _brief(error: LostError) -> str:
    return str(error).split(" failed: ", 1)[-1].split(";")[0].split(",")[0]


def staging(plan: DatasetPlan, folder: str, shard_cells: int) -> Call:
    """Return the task that rewrites a dataset by cell; its result is the plan that reads it."""
    return Call(
        plan.source.dataset_id,
        "rewriting",
        lambda: _staging.options(name=f"stage {plan.source.dataset_id}").remote(plan, folder, shard_cells),
    )


def finishing_of(job: Finishing, run: str, memory: int) -> Call:
    """Return the task that finishes a dataset; its result is the manifest."""
    told: dict[str, Any] = {"memory": memory, "name": f"finish {job.plan.source.dataset_id}"}
    return Call(
        job.plan.source.dataset_id,
        "finishing",
        lambda: cast("ray.ObjectRef", _finishing.options(**told).remote(job, run)),
    )


class Labelling:
    """The first half of a dataset that asks a language model; its result is what is asked.

    ``labelled`` is the dataset itself, for the other half; it never passes the driver.
    """

    def __init__(self, job: Finishing, run: str, memory: int) -> None:
        self.job, self._run, self._memory = job, run, memory
        self.labelled: Any = None

    def call(self) -> Call:
        """Return the task."""
        return Call(self.job.plan.source.dataset_id, "labelling", self._begin)

    def _begin(self) -> ray.ObjectRef:
        told: dict[str, Any] = {"memory": self._memory, "name": f"finish {self.job.plan.source.dataset_id}"}
        asked, self.labelled = cast(
            "list[ray.ObjectRef]", _labelling.options(num_returns=2, **told).remote(self.job, self._run)
        )
        return asked

    def publishing(self, answers: Mapping[str, Mapping[str, Any]]) -> Call:
        """Return the task of the second half; its result is the manifest."""
        begun = 0

        def begin() -> ray.ObjectRef:
            nonlocal begun
            begun += 1
            name = f"publish {self.job.plan.source.dataset_id}"
            if begun == 1:
                told: dict[str, Any] = {"memory": PUBLISH_BYTES, "name": name}
                return cast("ray.ObjectRef", _publishing.options(**told).remote(self.labelled, answers, self._run))
            # What the first half left may be what was lost; both halves give the same again.
            told = {"memory": max(PUBLISH_BYTES, self._memory), "name": name}
            return cast("ray.ObjectRef", _relabelling.options(**told).remote(self.job, answers, self._run))

        return Call(self.job.plan.source.dataset_id, "publishing", begin)


def _tried(dataset_id: str, doing: str, work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns, or the error that stopped it."""
    try:
        return work()
    except CellRayError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends this dataset alone, and with its trace
        return internal(error, f"dataset {dataset_id!r}: {doing}")


def _label(job: Finishing) -> Labelled:
    entering(REFINING)
    return label(job)


def _publish(labelled: Labelled, answers: Mapping[str, Mapping[str, Any]] | None = None) -> Manifest:
    entering(WRITING)
    return publish(labelled, answers)


@ray.remote(num_cpus=1, max_retries=0)
def _staging(plan: DatasetPlan, folder: str, shard_cells: int) -> DatasetPlan | CellRayError:
    return _tried(plan.source.dataset_id, "rewriting", lambda: stage(plan, folder, shard_cells))


@ray.remote(num_cpus=1, max_retries=0)
def _finishing(job: Finishing, run: str) -> Manifest | CellRayError:
    def work() -> Manifest:
        if job.order.scoring.labels:
            return _publish(_label(job))
        entering(WRITING)
        return finish_embedding(job)

    with finishing(run, job.plan.source.dataset_id):
        return _tried(job.plan.source.dataset_id, "finishing", work)


@ray.remote(num_cpus=1, max_retries=0)
def _labelling(job: Finishing, run: str) -> tuple[list[Puzzle] | CellRayError, Labelled | None]:
    """Return what the dataset asks, and for the other half the dataset itself."""
    with finishing(run, job.plan.source.dataset_id):
        labelled = _tried(job.plan.source.dataset_id, "labelling", lambda: _label(job))
    if isinstance(labelled, CellRayError):
        return labelled, None
    return [question.puzzle for question in labelled.inquiry.questions], labelled


@ray.remote(num_cpus=1, max_retries=0)
def _publishing(labelled: Labelled, answers: Mapping[str, Mapping[str, Any]], run: str) -> Manifest | CellRayError:
    dataset_id = labelled.job.plan.source.dataset_id
    with finishing(run, dataset_id):
        return _tried(dataset_id, "publishing", lambda: _publish(labelled, answers))


@ray.remote(num_cpus=1, max_retries=0)
def _relabelling(job: Finishing, answers: Mapping[str, Mapping[str, Any]], run: str) -> Manifest | CellRayError:
    with finishing(run, job.plan.source.dataset_id):
        return _tried(job.plan.source.dataset_id, "publishing", lambda: _publish(_label(job), answers))
