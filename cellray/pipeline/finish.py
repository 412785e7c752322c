"""One dataset from its written scores to its published output: refine, label, reason, copy, manifest.

Contract: the result is a pure function of the part files, the dataset, the refinement settings and what a language
model said, so doing it again after a crash gives the same annotations. Files appear in the order annotations, view,
annotated copy, manifest, ``_SUCCESS``. Memory is that of refinement, and without refinement that of one part. It comes
in two halves, ``label`` and ``publish``, because the language model answers for all datasets at once in between.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from cellray import manifest as manifests
from cellray import schema, storage
from cellray.errors import WriteError, boundary
from cellray.ingest import DatasetPlan, read_rows
from cellray.ingest.reader import open_dataset
from cellray.manifest import Manifest, ShardRecord
from cellray.pipeline.order import WorkOrder
from cellray.pipeline.reasoning import Inquiry, Verdicts, inquire, settle
from cellray.schema import Source, Status

if TYPE_CHECKING:
    from cellray.write import Counts

_VIEW_CELLS = 5000
_PLAIN_BYTES = 1 << 30  # libraries and one part
_EDGE_BYTES = 200  # of the graph that Leiden works on


@dataclass(frozen=True)
class Finishing:
    """What finishing one dataset needs: the run's order, the dataset, its parts and the seconds so far by stage."""

    order: WorkOrder
    plan: DatasetPlan
    shards: tuple[ShardRecord, ...]
    seconds: dict[str, float]

    @property
    def folder(self) -> str:
        """The dataset's folder."""
        return self.order.folder(self.plan.source.dataset_id)

    @property
    def part_uris(self) -> list[str]:
        """The part files in row order."""
        return [storage.join(self.folder, schema.SCORES_DIR, shard.name) for shard in self.shards]

    def memory_bytes(self) -> int:
        """Upper estimate of what ``finish`` needs, for the scheduler."""
        if self.order.refining.refine == "none":
            return _PLAIN_BYTES
        from cellray.refine.grit import memory_bytes

        grouping = self.plan.n_cells * self.order.refining.k * _EDGE_BYTES if self.order.refining.reason else 0
        return memory_bytes(self.plan.n_cells, len(self.order.scoring.labels), self.order.refining.k) + grouping


@dataclass(frozen=True)
class Labelled:
    """A dataset with annotations that are not published yet, and what it asks a language model."""

    job: Finishing
    counts: "Counts"
    refinement: dict[str, Any] | None
    seconds: dict[str, float]
    inquiry: Inquiry


def finish(job: Finishing) -> Manifest:
    """Publish one dataset that asks nobody; returns its manifest."""
    return publish(label(job))


def label(job: Finishing) -> Labelled:
    """Refine, and write annotations and view."""
    from cellray.write import label_table, read_part, write_annotations

    seconds = dict(job.seconds)
    started = time.perf_counter()
    scored = _scored_rows(job)
    refinement = None
    if job.order.refining.refine != "none" and len(scored):
        from cellray.pipeline.refining import refine_dataset

        refinement = refine_dataset(job.order, job.plan, job.shards, job.part_uris, scored)
    refined = None if refinement is None else refinement.p
    source = Source.ENCODER if refinement is None else Source(refinement.diagnostics["method"])
    seconds["refine"] = time.perf_counter() - started

    started = time.perf_counter()
    annotations = storage.join(job.folder, schema.ANNOTATIONS_FILE)
    columns = [name for name in schema.scores().names if name != schema.EMBEDDING]

    def tables() -> Iterator[Any]:
        at = 0
        for uri in job.part_uris:
            part = read_part(uri, columns)
            n = part[schema.REJECT_CODE].null_count
            decisive = None if refined is None else refined[at : at + n]
            yield label_table(part, job.order.scoring.labels, job.order.label_ids, decisive, source)
            at += n

    counts = write_annotations(annotations, tables())
    seconds["annotate"] = time.perf_counter() - started

    started = time.perf_counter()
    _write_view(job, scored, None if refinement is None else refinement.points)
    seconds["view"] = time.perf_counter() - started

    inquiry = Inquiry()
    if refinement is not None and job.order.refining.reason is not None:
        started = time.perf_counter()
        inquiry = inquire(job.order, job.plan, job.shards, scored, _have_labels(annotations, scored), refinement)
        seconds["group"] = time.perf_counter() - started
    told = None if refinement is None else {**refinement.diagnostics, "steps": refinement.steps}
    return Labelled(job, counts, told, seconds, inquiry)


def publish(labelled: Labelled, answers: Mapping[str, Mapping[str, Any]] | None = None) -> Manifest:
    """Put the answers of a language model on the cells, write the annotated copy and the manifest, and return it.

    ``answers`` are rows of ``puzzles.solve.ANSWERS`` by puzzle key.
    """
    job, counts, seconds, reasoning = labelled.job, labelled.counts, dict(labelled.seconds), None
    annotations = storage.join(job.folder, schema.ANNOTATIONS_FILE)
    warnings: list[str] = []
    if job.order.refining.reason is not None:
        started = time.perf_counter()
        verdicts = settle(labelled.inquiry, answers or {}, job.order.scoring.labels)
        counts = _reasoned(job, annotations, counts, verdicts)
        reasoning = {"model": job.order.refining.reason, "groups": len(labelled.inquiry.groups), **verdicts.counts}
        unanswered = verdicts.counts.get("groups_unanswered", 0)
        if unanswered:
            left = verdicts.counts["cells_unanswered"]
            warnings.append(
                f"{unanswered} groups had no answer of the language model; their {left:,} cells keep theirs"
            )
        seconds["reason"] = time.perf_counter() - started
    cells = {
        "n_annotated": counts.statuses[Status.ANNOTATED],
        "n_abstained": counts.statuses[Status.ABSTAINED],
        "n_rejected": counts.statuses[Status.REJECTED],
    }
    return _publish(job, annotations, cells, counts.rejects, seconds, labelled.refinement, reasoning, warnings)


def finish_embedding(job: Finishing) -> Manifest:
    """Publish one dataset of a run that embeds only; returns its manifest."""
    from cellray.write import read_part

    rejects: Counter[str] = Counter()
    for uri in job.part_uris:
        rejects.update(read_part(uri, [schema.REJECT_CODE])[schema.REJECT_CODE].drop_null().to_pylist())
    n_rejected = rejects.total()
    cells = {"n_annotated": 0, "n_abstained": 0, "n_rejected": n_rejected, "n_embedded": job.plan.n_cells - n_rejected}
    return _publish(job, None, cells, dict(rejects), dict(job.seconds))


def _have_labels(annotations: str, scored: np.ndarray) -> np.ndarray:
    """Say which of the scored cells are annotated, bool."""
    from cellray.write import read_annotations

    statuses = [part[schema.STATUS].to_numpy() == Status.ANNOTATED.value for part in read_annotations(annotations)]
    return np.concatenate([np.empty(0, bool), *statuses])[scored]


def _reasoned(job: Finishing, annotations: str, counts: "Counts", verdicts: Verdicts) -> "Counts":
    """Write what the language model said, and the annotations again if it changes any."""
    import pyarrow.parquet as pq

    from cellray.write import read_annotations, relabelled, write_annotations

    with storage.writing(storage.join(job.folder, schema.REASONING_FILE)) as path:
        pq.write_table(verdicts.table, path, compression="zstd")
    if not len(verdicts.rows):
        return counts
    how = (verdicts.rows, verdicts.labels, verdicts.score, verdicts.margin)
    known = (job.order.scoring.labels, job.order.label_ids)
    return write_annotations(annotations, (relabelled(part, *how, *known) for part in read_annotations(annotations)))


def _publish(
    job: Finishing,
    annotations: str | None,
    cells: dict[str, int],
    rejects: dict[str, int],
    seconds: dict[str, float],
    refinement: dict[str, Any] | None = None,
    reasoning: dict[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> Manifest:
    """Write the annotated copy and the manifest."""
    started = time.perf_counter()
    _write_copy(
        job, annotations, {key: value for key, value in (refinement or {}).items() if key != "steps"}, reasoning
    )
    seconds["copy"] = time.perf_counter() - started
    _sweep(job)
    done = Manifest(
        dataset_id=job.plan.source.dataset_id,
        source=job.plan.source.uri,
        content_hash=job.plan.content_hash,
        scoring_key=job.order.scoring_key,
        refining_key=job.order.refining_key,
        labels=list(job.order.scoring.labels),
        label_ids=list(job.order.label_ids),
        n_cells=job.plan.n_cells,
        **cells,
        rejects=rejects,
        shards=[_hashed(job, shard) for shard in job.shards],
        plan=job.plan.describe(),
        refinement=refinement,
        reasoning=reasoning,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        warnings=[*job.plan.warnings, *warnings],
        versions=job.order.versions,
    )
    manifests.publish(job.folder, done)
    return done


def _hashed(job: Finishing, shard: ShardRecord) -> ShardRecord:
    """Add the hash of a part that an earlier run wrote."""
    if shard.sha256:
        return shard
    with storage.open_read(storage.join(job.folder, schema.SCORES_DIR, shard.name)) as file:
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
    return shard.model_copy(update={"sha256": digest.hexdigest()})


def _scored_rows(job: Finishing) -> np.ndarray:
    """Rows of the dataset that have scores, ascending int64."""
    from cellray.write import read_part

    found = [np.empty(0, np.int64)]
    for uri in job.part_uris:
        part = read_part(uri, [schema.ROW, schema.REJECT_CODE])
        found.append(part.filter(pc.is_null(part[schema.REJECT_CODE]))[schema.ROW].to_numpy())
    return np.concatenate(found)


def _write_view(job: Finishing, scored: np.ndarray, points: np.ndarray | None) -> None:
    """Lay out a sample of the cells in two dimensions, by principal components or, without refinement, embedding."""
    import pyarrow.parquet as pq

    from cellray.report import two_dimensional

    chosen = np.sort(np.random.default_rng(0).choice(len(scored), min(len(scored), _VIEW_CELLS), replace=False))
    sample = _embeddings(job, scored[chosen]) if points is None or points.shape[1] < 2 else points[chosen]
    table = two_dimensional(sample, scored[chosen], max_cells=_VIEW_CELLS)
    with storage.writing(storage.join(job.folder, schema.VIEW_FILE)) as path:
        pq.write_table(table, path, compression="zstd")


def _embeddings(job: Finishing, rows: np.ndarray) -> np.ndarray:
    """Embeddings of ascending ``rows``, (m, width) float32, read part by part."""
    from cellray.write import read_part

    found = np.empty((len(rows), job.order.scoring.embedding_width), np.float32)
    for uri, shard in zip(job.part_uris, job.shards, strict=True):
        first, last = np.searchsorted(rows, [shard.start, shard.stop])
        if first < last:
            part = read_part(uri, [schema.EMBEDDING]).take(rows[first:last] - shard.start)
            found[first:last] = pc.list_flatten(part[schema.EMBEDDING]).to_numpy().reshape(last - first, -1)
    return found


def _write_copy(
    job: Finishing, annotations: str | None, diagnostics: dict[str, Any], reasoning: dict[str, Any] | None
) -> None:
    from cellray.write import Results, annotate_h5ad, annotate_zarr, build_h5ad

    source = job.plan.source
    target = storage.join(job.order.out, f"{source.dataset_id}.h5ad")
    record = {**job.order.record, "plan": job.plan.describe(), "refinement": diagnostics}
    if reasoning is not None:
        record["reasoning"] = reasoning
    results = Results(annotations, job.part_uris, record, job.order.scoring.embedding_key)
    if source.kind == "h5ad":
        annotate_h5ad(source.uri, target, results)
    elif source.kind == "zarr":
        annotate_zarr(source.uri, target, results)
    else:
        import pandas as pd

        with boundary(WriteError, f"annotated copy {target}"), open_dataset(source) as reader:
            names = {key: reader.gene_names(job.plan.layer, key) for key in reader.gene_keys(job.plan.layer)}
            var = pd.DataFrame(names).set_index(next(iter(names)))
            cells = [name for shard in job.shards for name in read_rows(job.plan, shard.start, shard.stop).cell_ids]
        blocks = (read_rows(job.plan, shard.start, shard.stop).counts for shard in job.shards)
        build_h5ad(pd.DataFrame(index=pd.Index(cells)), var, blocks, target, results)


def _sweep(job: Finishing) -> None:
    """Remove part files of other settings and the row-readable copy of the input."""
    kept = {shard.name for shard in job.shards}
    scores = storage.join(job.folder, schema.SCORES_DIR)
    for name in storage.list_files(scores):
        if name not in kept:
            storage.remove(storage.join(scores, name))
    storage.remove(storage.join(job.folder, schema.STAGED_DIR))
