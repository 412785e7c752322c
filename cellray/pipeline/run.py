"""One run of ``annotate`` or ``embed``: check, inspect, stream, finish, report.

Contract: settings, model, labels and inputs are checked before Ray starts or anything is written. What an earlier run
left in the output folder is used as far as its names say that it is the same work, and redone otherwise. Datasets
fail alone, those that a bug stops as ``InternalError`` with their trace in ``error.json``. It is not concerned with how
a stage does its work.
"""

import platform
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from cellray import __version__, schema, storage
from cellray import manifest as manifests
from cellray.cluster import ray_session
from cellray.errors import CellRayError, DatasetError, InternalError, SettingError, internal, one_line
from cellray.ingest import DatasetPlan, DatasetSource, GeneIndex, find_sources, inspect_dataset
from cellray.ingest.rejects import reasons, way_out
from cellray.labels.candidates import Label, read_labels
from cellray.lock import RunLock
from cellray.log import logger
from cellray.manifest import Manifest
from cellray.models import checkpoints
from cellray.models.checkpoints import Checkpoint
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.pipeline import stages
from cellray.pipeline.given import check_given
from cellray.pipeline.order import Scoring, WorkOrder
from cellray.pipeline.progress import Logged, Progress, Silent
from cellray.plugins.router import Chosen, scgpt_base, union_labels
from cellray.puzzles.engine import BUNDLED
from cellray.puzzles.reasoner import identify, is_url
from cellray.settings import AnnotateSettings
from cellray.targets import check_run

_VERSIONED = ("anndata", "numpy", "pyarrow", "ray", "scanpy", "scipy", "torch")
_INSPECTORS = 8


@dataclass
class RunResult:
    """What a run did. ``failed`` maps dataset ids to messages; ``cells_per_s`` counts cells scored by this run."""

    out: str
    run_id: str
    report: str = ""
    finished: dict[str, Manifest] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    cells_per_s: float | None = None
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 when every dataset is finished, 3 when some failed, 1 when all did."""
        if not self.failed:
            return 0
        return 3 if self.finished else 1

    def summary(self) -> dict[str, Any]:
        """Return plain JSON values."""
        done = self.finished.values()
        return {
            "out": self.out,
            "run_id": self.run_id,
            "report": self.report,
            "datasets": sorted(self.finished),
            "failed": self.failed,
            "n_cells": sum(one.n_cells for one in done),
            "n_annotated": sum(one.n_annotated for one in done),
            "n_abstained": sum(one.n_abstained for one in done),
            "n_embedded": sum(one.n_embedded for one in done),
            "n_reasoned": sum(reasoned(one) for one in done),
            "n_rejected": sum(one.n_rejected for one in done),
            "cells_per_s": self.cells_per_s,
            "seconds": round(self.seconds, 3),
        }


def reasoned(manifest: Manifest) -> int:
    """Return the number of cells whose label is the language model's, none included."""
    counts = manifest.reasoning or {}
    return sum(counts.get(f"cells_{outcome}", 0) for outcome in ("relabelled", "confirmed", "none_of_these"))


def annotate(settings: AnnotateSettings, progress: Progress | None = None, *, encode: bool = True) -> RunResult:
    """Annotate, or embed, every dataset that ``settings`` name and write the output folder.

    Without ``encode`` the scores must be in the output folder already; a dataset without them fails.

    Raises
    ------
    SettingError
        Before any work, when a setting, the model, the label set, an input or the output folder is wrong, or another
        run holds the output folder.
    CellRayError
        When no dataset can be read at all.
    """
    started = time.monotonic()
    progress = Logged(progress or Silent())
    settings = settings.model_copy(update={"out": storage.absolute(settings.out)})
    checkpoint = checkpoints.load(settings.model)
    check_length(settings, checkpoint)
    settings, reasoner = _reasoner(settings)
    chosen = None if settings.plugins is None else Chosen.of(settings.plugins, settings.tissue)
    labels = label_set(settings, checkpoint) if chosen is None else plugin_labels(settings, checkpoint, chosen)
    genes = GeneIndex(checkpoint.genes, checkpoint.symbols)
    sources = find_sources(settings.inputs, genome=settings.genome)
    check_run(settings.out, sources)
    settings = _from_anywhere(settings)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    plans, errors = inspect_all(sources, genes, settings, labels, progress, integers=counts_only(settings, checkpoint))
    if not plans and not any(isinstance(error, InternalError) for error in errors.values()):
        raise _all_failed(errors)
    with RunLock(settings.out, run_id) as lock:
        run = DatasetRun(settings, run_id, checkpoint, labels, chosen, reasoner, progress, encode=encode)
        run.record([source.dataset_id for source in sources])
        for dataset_id, error in errors.items():
            run.fail(dataset_id, error)
        run.work(plans, lock)
        result = run.result
        result.seconds = time.monotonic() - started
        run.record([source.dataset_id for source in sources])
        if settings.task == "annotate":
            from cellray.report import write_report

            result.report = write_report(settings.out)
    return result


def _from_anywhere(settings: AnnotateSettings) -> AnnotateSettings:
    """Make paths absolute, so that the settings mean the same in workers and when the output folder is used again."""
    known: dict[str, Any] = {"inputs": tuple(map(storage.absolute, settings.inputs))}
    if settings.labels is not None:
        known["labels"] = storage.absolute(settings.labels)
    if settings.plugins is not None:
        known["plugins"] = storage.absolute(settings.plugins)
    if settings.model not in checkpoints.BUNDLED:
        known["model"] = storage.absolute(settings.model)
    return settings.model_copy(update=known)


def _reasoner(settings: AnnotateSettings) -> tuple[AnnotateSettings, str]:
    """Check who reasons; returns settings that mean the same anywhere, and the digest of the model or its address."""
    if settings.reason is None:
        return settings, ""
    digest = identify(settings.reason)
    if not is_url(settings.reason) and settings.reason not in BUNDLED:
        settings = settings.model_copy(update={"reason": storage.absolute(settings.reason)})
    return settings, digest


def check_length(settings: AnnotateSettings, checkpoint: Checkpoint) -> None:
    """Refuse cells longer than LangCell's position table; scGPT's genes are a set and have no positions."""
    if isinstance(checkpoint, LangCellCheckpoint) and (settings.max_length or 0) > checkpoint.config.max_tokens:
        msg = (
            f"--max-length {settings.max_length} is more than the {checkpoint.config.max_tokens} positions of model "
            f"{settings.model!r}"
        )
        raise SettingError(msg)


def counts_only(settings: AnnotateSettings, checkpoint: Checkpoint) -> bool:
    """Whether values must be raw counts: of a layer that the user names scGPT's embedding needs the order alone."""
    return settings.task == "annotate" or settings.layer is None or isinstance(checkpoint, LangCellCheckpoint)


def label_set(settings: AnnotateSettings, checkpoint: Checkpoint) -> list[Label]:
    """Return the candidate labels: the user's file, else the model's own; none of a run that embeds only."""
    if settings.task == "embed":
        return []
    known = [Label(**entry) for entry in checkpoint.labels]
    if isinstance(checkpoint, ScGPTCheckpoint):
        if not known:
            msg = f"model {settings.model!r} has no classification head and can only embed; use `cellray embed`"
            raise SettingError(msg)
        if settings.labels is not None:
            msg = f"model {settings.model!r} is a classifier of {len(known)} labels of its own; leave --labels away"
            raise SettingError(msg)
    if settings.labels is None:
        if not known:
            msg = f"model {settings.model!r} has no label set of its own; pass --labels with one label a line"
            raise SettingError(msg)
        return known
    try:
        text = storage.read_bytes(settings.labels).decode()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        msg = f"label file {settings.labels!r}: {one_line(error)}"
        raise SettingError(msg) from error
    return read_labels(text, settings.labels, known)


def plugin_labels(settings: AnnotateSettings, checkpoint: Checkpoint, chosen: Chosen) -> list[Label]:
    """Return the labels of all plugins that take part, each once."""
    plugins, _ = chosen.load(scgpt_base(checkpoint, settings.model))
    return [Label(**label) for label in union_labels(plugins)]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"cellray": __version__, "python": platform.python_version(), **{name: version(name) for name in _VERSIONED}}


def inspect_all(
    sources: Sequence[DatasetSource],
    genes: GeneIndex,
    settings: AnnotateSettings,
    labels: Sequence[Label],
    progress: Progress,
    *,
    integers: bool,
) -> tuple[list[DatasetPlan], dict[str, CellRayError]]:
    """Decide how to read each of ``sources``; returns the plans, and by id the errors of those that have none."""

    def one(source: DatasetSource) -> DatasetPlan | CellRayError:
        try:
            plan = inspect_dataset(
                source,
                genes,
                layer=settings.layer,
                gene_key=settings.gene_key,
                integers=integers,
                round_values=settings.round,
                allow_normalised=settings.allow_normalised,
            )
            check_given(source, settings, labels)
            return plan
        except DatasetError as error:
            return error
        except SettingError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this dataset alone, and with its trace
            return internal(error, f"dataset {source.dataset_id!r}: reading")

    plans: list[DatasetPlan] = []
    errors: dict[str, CellRayError] = {}
    progress.stage(stages.READING)
    with ThreadPoolExecutor(_INSPECTORS) as pool:
        for source, found in zip(sources, pool.map(one, sources), strict=True):
            if isinstance(found, CellRayError):
                errors[source.dataset_id] = found
            else:
                plans.append(found)
                key = "" if found.gene_key == "index" else f" in var[{found.gene_key!r}]"
                progress.say(
                    f"{source.dataset_id}: {found.n_cells:,} cells; {found.layer_reason}; {found.gene_kind} ids{key}, "
                    f"{found.n_genes_known:,} genes known"
                )
                for note in found.notes:
                    progress.say(f"{source.dataset_id}: {note}")
                for warning in found.warnings:
                    progress.say(f"warning: {warning}")
    return plans, errors


def _all_failed(errors: dict[str, CellRayError]) -> CellRayError:
    first = next(iter(errors.values()))
    if len(errors) == 1:
        return first
    error = CellRayError(f"none of {len(errors)} datasets can be read; the first says: {one_line(first)}")
    error.exit_code = 2 if all(one.exit_code == 2 for one in errors.values()) else 1
    return error


class DatasetRun:
    """The state of one run in its output folder."""

    def __init__(
        self,
        settings: AnnotateSettings,
        run_id: str,
        checkpoint: Checkpoint,
        labels: list[Label],
        chosen: Chosen | None,
        reasoner: str,
        progress: Progress,
        *,
        encode: bool,
    ) -> None:
        self.settings, self.checkpoint, self.labels, self.progress = settings, checkpoint, labels, progress
        self.chosen = chosen
        self.result = RunResult(settings.out, run_id)
        self.scoring_key = settings.scoring_key(
            checkpoint.digest, [(label.name, label.text) for label in labels], chosen.digests if chosen else ()
        )
        self.refining_key = settings.refining_key(self.scoring_key, reasoner)
        self.versions = versions()
        self.order = self._work_order(encode=encode)

    def record(self, dataset_ids: list[str]) -> None:
        """Write ``run.json``."""
        storage.put_json(
            storage.join(self.settings.out, schema.RUN_FILE),
            {
                "schema_version": schema.SCHEMA_VERSION,
                "run_id": self.result.run_id,
                "settings": self.settings.model_dump(mode="json"),
                "versions": self.versions,
                "model": {"name": self.checkpoint.name, "digest": self.checkpoint.digest},
                "plugins": None if self.chosen is None else asdict(self.chosen),
                "labels": [asdict(label) for label in self.labels],
                "scoring_key": self.scoring_key,
                "refining_key": self.refining_key,
                "datasets": dataset_ids,
                "seconds": {"total": round(self.result.seconds, 3)},
                "cells_per_s": self.result.cells_per_s,
            },
        )

    def fail(self, dataset_id: str, error: CellRayError) -> None:
        """Record that a dataset failed; nothing of it counts as published any more."""
        message, uri = one_line(error), storage.join(self.order.folder(dataset_id), schema.ERROR_FILE)
        failure = {"code": type(error).__name__, "message": message}
        if isinstance(error, InternalError):
            failure["trace"] = error.trace
            message += f"; its trace is in {uri}, and --verbose shows it"
            logger("pipeline").error("%s: %s\n%s", dataset_id, one_line(error), error.trace)
        self.result.failed[dataset_id] = message
        storage.remove(storage.join(self.order.folder(dataset_id), schema.SUCCESS_FILE))
        storage.put_json(uri, failure)
        self.progress.say(f"{dataset_id} failed: {message}")

    def work(self, plans: list[DatasetPlan], lock: RunLock) -> None:
        """Score and finish what is not finished yet."""
        todo = []
        for plan in plans:
            folder = self.order.folder(plan.source.dataset_id)
            if (done := self._finished(folder, plan.content_hash)) is not None:
                self.result.finished[plan.source.dataset_id] = done
                self.progress.say(f"{plan.source.dataset_id}: already finished")
            else:
                # From here on the folder's old manifest and files may no longer belong together.
                storage.remove(storage.join(folder, schema.SUCCESS_FILE))
                todo.append(plan)
        if not todo:
            return
        from cellray.pipeline.drive import Drive

        self.progress.stage(stages.STARTING)
        with ray_session(self.settings.address) as resources:
            drive = Drive(self.order, resources, self.progress)
            for dataset_id, outcome in drive.run(todo):
                lock.check()
                if isinstance(outcome, Manifest):
                    self.result.finished[dataset_id] = outcome
                    for line in self.told(outcome):
                        self.progress.say(line)
                else:
                    self.fail(dataset_id, outcome)
            self.result.cells_per_s = drive.cells_per_s

    def _finished(self, folder: str, content_hash: str) -> Manifest | None:
        """Return the manifest of a dataset that an earlier run finished; one with damaged records is done again."""
        try:
            return manifests.read(folder) if manifests.is_complete(folder, content_hash, self.refining_key) else None
        except (ValueError, FileNotFoundError):
            return None

    def told(self, done: Manifest) -> Iterator[str]:
        """Yield what a finished dataset came to, and the way out when many of its cells were rejected."""
        cells = f"{done.n_annotated:,} annotated" if self.labels else f"{done.n_embedded:,} embedded"
        why = f" ({reasons(done.rejects)})" if done.n_rejected else ""
        abstained = f", {done.n_abstained:,} abstained" if done.n_abstained else ""
        yield f"{done.dataset_id}: {cells}{abstained}, {done.n_rejected:,} rejected{why}"
        if advised := way_out(done.rejects, done.n_cells):
            yield f"{done.dataset_id}: {advised}"
        if skipped := (done.refinement or {}).get("skipped"):
            yield f"{done.dataset_id}: {skipped}"

    def _work_order(self, *, encode: bool) -> WorkOrder:
        from cellray.encode import tokenizer_of

        settings, checkpoint = self.settings, self.checkpoint
        return WorkOrder(
            out=settings.out,
            shard_cells=settings.shard_cells,
            encode=encode,
            encoders=settings.encoders,
            scoring=Scoring(
                # A bundled model lies where the worker's package is, any other at the same place for all.
                model=settings.model,
                tokenizer=tokenizer_of(checkpoint, max_tokens=settings.max_length, seed=settings.seed),
                labels=tuple(label.name for label in self.labels),
                texts=tuple(label.text for label in self.labels),
                alpha=settings.alpha,
                batch_tokens=settings.batch_tokens,
                min_genes=settings.min_genes,
                embedding_key=checkpoint.EMBEDDING_KEY,
                embedding_width=checkpoint.width,
                ctm_top_k=settings.ctm_top_k,
                precision=settings.precision,
                max_tokens=settings.max_length,
                plugins=self.chosen,
            ),
            label_ids=tuple(label.term_id for label in self.labels),
            scoring_key=self.scoring_key,
            refining_key=self.refining_key,
            refining=settings,
            versions=self.versions,
            record={
                "schema_version": schema.SCHEMA_VERSION,
                "run_id": self.result.run_id,
                "model": checkpoint.name,
                "model_digest": checkpoint.digest,
                **({"plugins": dict(self.chosen.versions)} if self.chosen else {}),
                "labels": [label.name for label in self.labels],
                "settings": {"alpha": settings.alpha, "min_genes": settings.min_genes, **settings.refining()},
                "refining_key": self.refining_key,
                "versions": self.versions,
            },
        )
