"""One dataset from its written scores to its published output: refine, label, reason, copy, manifest.

Contract: the result is a pure function of the part files, the dataset, the refinement settings and what a language
model said, so doing it again after a crash gives the same annotations. Files appear in the order annotations, view,
annotated copy, manifest, ``_SUCCESS``; of a dataset whose cells were all rejected none does, it has failed. Memory is
that of refinement, and without refinement that of one part. It comes in two halves, ``label`` and ``publish``, because
the language model answers for all datasets at once in between; ``conclude`` is the second one without its files.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from cellray import manifest as manifests
from cellray import schema, storage
from cellray.errors import NoLabelError
from cellray.ingest import DatasetPlan, read_obs_text
from cellray.ingest.rejects import reasons, way_out
from cellray.manifest import Manifest, ShardRecord
from cellray.pipeline.annotated_copy import write_copy
from cellray.pipeline.order import WorkOrder
from cellray.pipeline.reasoning import Inquiry, Verdicts, inquire, settle
from cellray.pipeline.stages import DRAWING, entering
from cellray.schema import Source, Status

if TYPE_CHECKING:
    from cellray.refine.grit import Refinement
    from cellray.write import ClusterLabels, Counts, Results

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

    @property
    def annotations(self) -> str:
        """The annotation table."""
        return storage.join(self.folder, schema.ANNOTATIONS_FILE)

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


@dataclass(frozen=True)
class Concluded:
    """A dataset with all that is known of it: the manifest to be, and what its AnnData gains."""

    manifest: Manifest
    results: "Results"


def finish(job: Finishing) -> Manifest:
    """Publish one dataset that asks nobody; returns its manifest."""
    return publish(label(job))


def label(job: Finishing, *, view: bool = True) -> Labelled:
    """Refine, and write annotations and, unless told otherwise, the view.

    Raises
    ------
    NoLabelError
        If all cells were rejected; nothing is written then.
    """
    from cellray.write import label_table, read_part, write_annotations

    seconds = dict(job.seconds)
    started = time.perf_counter()
    scored = _scored_rows(job)
    if not len(scored):
        raise _no_label(job, _rejects(job))
    refinement, source = _refined(job, scored)
    refined = None if refinement is None else refinement.p
    seconds["refine"] = time.perf_counter() - started

    started = time.perf_counter()
    annotations = job.annotations
    columns = [name for name in schema.scores().names if name != schema.EMBEDDING]

    def tables() -> Iterator[Any]:
        at = 0
        for uri in job.part_uris:
            part = read_part(uri, columns)
            n = part[schema.REJECT_CODE].null_count
            decisive = None if refined is None else refined[at : at + n]
            by = source[at : at + n] if isinstance(source, np.ndarray) else source
            yield label_table(part, job.order.scoring.labels, job.order.label_ids, decisive, by)
            at += n

    counts = write_annotations(annotations, tables())
    seconds["annotate"] = time.perf_counter() - started

    if view:
        started = time.perf_counter()
        entering(DRAWING)
        _write_view(job, scored, None if refinement is None else refinement.points)
        seconds["view"] = time.perf_counter() - started

    inquiry = Inquiry()
    if refinement is not None and refinement.graph is not None and job.order.refining.reason is not None:
        started = time.perf_counter()
        inquiry = inquire(job.order, job.plan, job.shards, scored, _have_labels(annotations, scored), refinement)
        seconds["group"] = time.perf_counter() - started
    told = None if refinement is None else {**refinement.diagnostics, "steps": refinement.steps}
    return Labelled(job, counts, told, seconds, inquiry)


def publish(labelled: Labelled, answers: Mapping[str, Mapping[str, Any]] | None = None) -> Manifest:
    """Put the answers of a language model on the cells, write the annotated copy and the manifest, and return it.

    ``answers`` are rows of ``puzzles.solve.ANSWERS`` by puzzle key.
    """
    return _publish(labelled.job, conclude(labelled, answers))


def conclude(labelled: Labelled, answers: Mapping[str, Mapping[str, Any]] | None = None) -> Concluded:
    """Put the answers of a language model on the cells, and say what the dataset came to; publishes nothing."""
    job, counts, seconds, reasoning = labelled.job, labelled.counts, dict(labelled.seconds), None
    refinement = labelled.refinement
    warnings: list[str] = [] if refinement is None else [*filter(None, [refinement.get("skipped")])]
    if job.order.refining.reason is not None:
        started = time.perf_counter()
        verdicts = settle(labelled.inquiry, answers or {}, job.order.scoring.labels)
        counts = _reasoned(job, counts, verdicts)
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
    return _concluded(job, cells, counts.rejects, seconds, refinement, reasoning, warnings, _clusters(job))


def finish_embedding(job: Finishing) -> Manifest:
    """Publish one dataset of a run that embeds only; returns its manifest."""
    return _publish(job, conclude_embedding(job))


def conclude_embedding(job: Finishing) -> Concluded:
    """Say what a dataset of a run that embeds only came to; publishes nothing.

    Raises
    ------
    NoLabelError
        If all cells were rejected.
    """
    rejects = _rejects(job)
    n_rejected = sum(rejects.values())
    if n_rejected == job.plan.n_cells:
        raise _no_label(job, rejects)
    cells = {"n_annotated": 0, "n_abstained": 0, "n_rejected": n_rejected, "n_embedded": job.plan.n_cells - n_rejected}
    return _concluded(job, cells, rejects, dict(job.seconds))


def _rejects(job: Finishing) -> dict[str, int]:
    """Return the rejected cells by code."""
    from cellray.write import read_part

    rejects: Counter[str] = Counter()
    for uri in job.part_uris:
        rejects.update(read_part(uri, [schema.REJECT_CODE])[schema.REJECT_CODE].drop_null().to_pylist())
    return dict(rejects)


def _no_label(job: Finishing, rejects: Mapping[str, int]) -> NoLabelError:
    """Return the error of a dataset without one good cell: the most frequent reason and the way out."""
    total = sum(rejects.values())
    cells = "its only cell was" if total == 1 else f"all {total:,} cells were"
    what = f"dataset {job.plan.source.dataset_id!r}: {cells} rejected ({reasons(rejects)})"
    return NoLabelError(f"{what}; {way_out(rejects, total)}")


def _refined(job: Finishing, scored: np.ndarray) -> "tuple[Refinement | None, Source | np.ndarray]":
    """Return the refinement, None if it is off, and what gave the labels: one source, or one a cell."""
    order = job.order
    if order.refining.refine == "none":
        return None, Source.ENCODER
    from cellray.pipeline.refining import refine_dataset
    from cellray.pipeline.tiny import too_few, unsmoothed

    if too_few(order, len(scored)):
        return unsmoothed(order, job.plan, job.part_uris, scored)
    refinement = refine_dataset(order, job.plan, job.shards, job.part_uris, scored)
    return refinement, Source(refinement.diagnostics["method"])


def _clusters(job: Finishing) -> "ClusterLabels | None":
    """Label the clusters that the user gave, if any."""
    key = job.order.refining.cluster_key
    if key is None:
        return None
    from cellray.write import label_clusters, read_annotations

    clusters = read_obs_text(job.plan.source, key)
    return label_clusters(key, clusters, read_annotations(job.annotations), job.order.scoring.labels)


def _have_labels(annotations: str, scored: np.ndarray) -> np.ndarray:
    """Say which of the scored cells are annotated, bool."""
    from cellray.write import read_annotations

    statuses = [part[schema.STATUS].to_numpy() == Status.ANNOTATED.value for part in read_annotations(annotations)]
    return np.concatenate([np.empty(0, bool), *statuses])[scored]


def _reasoned(job: Finishing, counts: "Counts", verdicts: Verdicts) -> "Counts":
    """Write what the language model said, and the annotations again if it changes any."""
    import pyarrow.parquet as pq

    from cellray.write import read_annotations, relabelled, write_annotations

    with storage.writing(storage.join(job.folder, schema.REASONING_FILE)) as path:
        pq.write_table(verdicts.table, path, compression="zstd")
    if not len(verdicts.rows):
        return counts
    how = (verdicts.rows, verdicts.labels, verdicts.score, verdicts.margin)
    known = (job.order.scoring.labels, job.order.label_ids)
    tables = (relabelled(part, *how, *known) for part in read_annotations(job.annotations))
    return write_annotations(job.annotations, tables)


def _concluded(
    job: Finishing,
    cells: dict[str, int],
    rejects: dict[str, int],
    seconds: dict[str, float],
    refinement: dict[str, Any] | None = None,
    reasoning: dict[str, Any] | None = None,
    warnings: Sequence[str] = (),
    clusters: "ClusterLabels | None" = None,
) -> Concluded:
    from cellray.write import Results

    order, plan = job.order, job.plan
    diagnostics = {key: value for key, value in (refinement or {}).items() if key != "steps"}
    record = {**order.record, "plan": plan.describe(), "refinement": diagnostics}
    if reasoning is not None:
        record["reasoning"] = reasoning
    if clusters is not None:
        record["cluster_key"] = clusters.key
    manifest = Manifest(
        dataset_id=plan.source.dataset_id,
        source=plan.source.uri,
        content_hash=plan.content_hash,
        scoring_key=order.scoring_key,
        refining_key=order.refining_key,
        labels=list(order.scoring.labels),
        label_ids=list(order.label_ids),
        n_cells=plan.n_cells,
        **cells,
        rejects=rejects,
        shards=[_hashed(job, shard) for shard in job.shards],
        plan=plan.describe(),
        refinement=refinement,
        reasoning=reasoning,
        clusters=None if clusters is None else clusters.describe(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        warnings=[*plan.warnings, *warnings],
        versions=order.versions,
    )
    annotations = job.annotations if order.scoring.labels else None
    return Concluded(manifest, Results(annotations, job.part_uris, record, order.scoring.embedding_key, clusters))


def _publish(job: Finishing, concluded: Concluded) -> Manifest:
    """Write the annotated copy and the manifest."""
    started = time.perf_counter()
    target = storage.join(job.order.out, f"{job.plan.source.dataset_id}.h5ad")
    write_copy(job.plan, job.shards, target, concluded.results)
    concluded.manifest.seconds["copy"] = round(time.perf_counter() - started, 3)
    _sweep(job)
    manifests.publish(job.folder, concluded.manifest)
    return concluded.manifest


def _hashed(job: Finishing, shard: ShardRecord) -> ShardRecord:
    """Add the hash of a part that an earlier run wrote."""
    if shard.sha256:
        return shard
    digest = storage.file_digest(storage.join(job.folder, schema.SCORES_DIR, shard.name))
    return shard.model_copy(update={"sha256": digest})


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


def _sweep(job: Finishing) -> None:
    """Remove part files of other settings and the row-readable copy of the input."""
    kept = {shard.name for shard in job.shards}
    scores = storage.join(job.folder, schema.SCORES_DIR)
    for name in storage.list_files(scores):
        if name not in kept:
            storage.remove(storage.join(scores, name))
    storage.remove(storage.join(job.folder, schema.STAGED_DIR))
