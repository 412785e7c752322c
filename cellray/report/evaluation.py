"""How right a run was, before and after refinement, against a truth column.

Contract: accuracy and macro-F1 are over *scored* cells only: annotated cells whose truth is one of the run's labels.
Rejected and abstained cells with such a truth are counted beside it (``n_rejected_with_truth``,
``n_abstained_with_truth``), and so are cells whose truth is no label of the run (``outside``), so that nothing is
dropped silently: ``n_with_truth = n_scored + n_rejected_with_truth + n_abstained_with_truth + sum(outside.values())``.
Truth and prediction are compared as indices into the run's labels. Datasets are pooled by their confusion matrices, so
memory is bounded by one dataset's labels. It does not rerun anything.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellray import schema, storage
from cellray.errors import ReadError, SettingError
from cellray.report.folder import Calls, Run, read_calls, read_run
from cellray.report.truth import Truth, read_truth

if TYPE_CHECKING:
    from rich.table import Table

    from cellray.labels.candidates import Label
    from cellray.labels.ontology import Ontology


_MOST_SUGGESTED = 3
_MOST_TYPES = 500  # a column of more values names no cell types
_COUNTS = ("n_cells", "n_annotated", "n_with_truth", "n_scored", "n_rejected_with_truth", "n_abstained_with_truth")


@dataclass(frozen=True)
class _Tally:
    """Counts of one or more datasets.

    ``counts`` by the names in ``_COUNTS``, ``outside`` by truth; ``before`` and ``after`` (labels, labels) int64 are
    the scored cells by true and predicted label.
    """

    counts: Counter[str]
    outside: Counter[str]
    before: np.ndarray
    after: np.ndarray

    def __add__(self, other: "_Tally") -> "_Tally":
        return _Tally(
            self.counts + other.counts,
            self.outside + other.outside,
            self.before + other.before,
            self.after + other.after,
        )


def evaluate(out_uri: str, truth_key: str) -> dict[str, Any]:
    """Compare a run's labels with ``obs[truth_key]`` of its annotated ``.h5ad`` files.

    Parameters
    ----------
    out_uri
        Folder (local or ``s3://``) that ``annotate`` wrote.
    truth_key
        Column of ``obs``. If ``<truth_key>_ontology_term_id`` or ``<truth_key>_ontology_id`` is there too, its Cell
        Ontology ids help to find the label that a truth stands for.

    Returns
    -------
    dict
        JSON-able: ``run_id``, ``truth_key``, ``datasets`` (one dict each, with ``dataset_id``), ``skipped``
        (``dataset_id`` and ``reason``) and ``overall``, all cells pooled. The dict of a dataset and ``overall`` have
        ``n_cells``, ``n_annotated``, ``n_with_truth``, ``n_scored``, ``n_rejected_with_truth``,
        ``n_abstained_with_truth``, ``coverage`` (scored cells among those with a truth), ``outside`` (truths that are
        no label of the run, and their cells) and, under ``before`` (the encoder's label) and ``after`` (the final one),
        ``accuracy``, ``macro_f1``, ``confusion`` (``labels`` and ``matrix``, a row a truth) and ``graded`` (shares of
        cells by ``labels.metrics.graded``). A share of nothing is None. Where no cell could be scored, ``suggestions``
        has the ``labels`` that are written most like the most frequent truths, and the ``columns`` that would do.

    Raises
    ------
    SettingError
        If ``out_uri`` holds no run, no dataset finished, or no finished dataset has the column.
    ReadError
        If a file that a manifest promises is missing or damaged.
    """
    from cellray.labels.candidates import Label, match_truth
    from cellray.labels.ontology import Ontology

    run = read_run(out_uri)
    labels = [Label(**label) for label in run.info["labels"]]
    ontology = Ontology()
    tallies: dict[str, _Tally] = {}
    skipped, seen = [], set()
    for dataset in run.datasets:
        if dataset.manifest is None:
            skipped.append({"dataset_id": dataset.dataset_id, "reason": dataset.failure})
            continue
        truth, columns = read_truth(storage.join(run.uri, f"{dataset.dataset_id}.h5ad"), truth_key)
        seen.update(columns)
        if truth is None:
            skipped.append({"dataset_id": dataset.dataset_id, "reason": f"no obs column {truth_key!r}"})
            continue
        matched = match_truth(truth.values, truth.ids, labels, ontology)
        tallies[dataset.dataset_id] = _tally(
            dataset.dataset_id, truth, matched, read_calls(dataset, run.labels), len(labels)
        )
    if not tallies:
        known = ", ".join(sorted(seen)) or "none"
        msg = f"no finished dataset in {out_uri!r} has an obs column {truth_key!r} (columns: {known})"
        raise SettingError(msg)
    described = {dataset_id: _describe(tally, labels, ontology) for dataset_id, tally in tallies.items()}
    first, *others = tallies.values()
    return {
        "run_id": run.info["run_id"],
        "truth_key": truth_key,
        "datasets": [{"dataset_id": dataset_id, **numbers} for dataset_id, numbers in described.items()],
        "skipped": skipped,
        "overall": _describe(sum(others, first), labels, ontology),
        **_suggestions(run, truth_key, sum(others, first), labels, ontology),
    }


def _suggestions(
    run: Run, truth_key: str, tally: _Tally, labels: Sequence["Label"], ontology: "Ontology"
) -> dict[str, Any]:
    """Return what may have been meant when no cell could be scored; nothing otherwise."""
    from cellray.labels.candidates import close_labels, match_truth

    if tally.counts["n_scored"]:
        return {}
    most = [value for value, _ in tally.outside.most_common(_MOST_SUGGESTED)]
    dataset_id = next(dataset.dataset_id for dataset in run.datasets if dataset.manifest is not None)
    uri = storage.join(run.uri, f"{dataset_id}.h5ad")
    _, columns = read_truth(uri, "")
    fitting = []
    for column in [name for name in columns if name != truth_key and not name.startswith(schema.OBS_PREFIX)]:
        truth, _ = read_truth(uri, column)
        few = truth is not None and 0 < len(truth.values) <= _MOST_TYPES
        if truth is not None and few and max(match_truth(truth.values, truth.ids, labels, ontology)) >= 0:
            fitting.append(column)
    close = {value: close_labels(value, labels) for value in most}
    return {"suggestions": {"labels": close, "columns": fitting}}


def evaluation_table(evaluation: dict[str, Any]) -> "Table":
    """Return ``evaluate``'s result as a rich table for a terminal: one row a dataset, all pooled at the bottom."""
    from rich.table import Table
    from rich.text import Text

    overall = evaluation["overall"]
    left_out = [f"not scored: {skipped['dataset_id']} ({skipped['reason']})" for skipped in evaluation["skipped"]]
    if overall["outside"]:
        cells = ", ".join(f"{name} ({count:,})" for name, count in overall["outside"].items())
        left_out.append(f"truths that are no label of the run: {cells}")
    title, caption = Text(f"against obs[{evaluation['truth_key']!r}]"), Text("\n".join(left_out))
    table = Table(title=title, caption=caption, caption_justify="left", show_footer=True)
    names = ["dataset", "cells", "scored", "coverage", "accuracy before", "after", "macro-F1 before", "after"]
    for name, total in zip(names, _row("all", overall), strict=True):
        table.add_column(name, footer=Text(total), justify="left" if name == "dataset" else "right")
    for dataset in evaluation["datasets"]:
        table.add_row(*map(Text, _row(dataset["dataset_id"], dataset)))
    return table


def _row(name: str, numbers: dict[str, Any]) -> list[str]:
    shares = [
        numbers["coverage"],
        *(numbers[when][share] for share in ("accuracy", "macro_f1") for when in ("before", "after")),
    ]
    written = ["-" if share is None else f"{share:.3f}" for share in shares]
    return [name, f"{numbers['n_cells']:,}", f"{numbers['n_scored']:,}", *written]


def _tally(dataset_id: str, truth: Truth, matched: list[int], calls: Calls, n_labels: int) -> _Tally:
    """Count one dataset. ``matched`` gives the label (or -1) of each distinct truth."""
    if len(truth.codes) != len(calls.after):
        msg = (
            f"dataset {dataset_id!r}: {len(truth.codes)} cells in the h5ad, {len(calls.after)} annotated; run it again"
        )
        raise ReadError(msg)
    label = np.array([*matched, -1])[truth.codes]  # code -1, no truth, takes the last
    outside = np.bincount(truth.codes[(truth.codes >= 0) & (label < 0)], minlength=len(truth.values))
    annotated = calls.having(schema.Status.ANNOTATED)
    scored = annotated & (label >= 0)

    def confusion(predicted: np.ndarray) -> np.ndarray:
        pairs = label[scored] * n_labels + predicted[scored]
        return np.bincount(pairs, minlength=n_labels**2).reshape(n_labels, n_labels)

    return _Tally(
        counts=Counter(
            n_cells=len(label),
            n_annotated=int(annotated.sum()),
            n_with_truth=int((truth.codes >= 0).sum()),
            n_scored=int(scored.sum()),
            n_rejected_with_truth=int((calls.having(schema.Status.REJECTED) & (label >= 0)).sum()),
            n_abstained_with_truth=int((calls.having(schema.Status.ABSTAINED) & (label >= 0)).sum()),
        ),
        outside=Counter({value: int(cells) for value, cells in zip(truth.values, outside, strict=True) if cells}),
        before=confusion(calls.before),
        after=confusion(calls.after),
    )


def _describe(tally: _Tally, labels: Sequence["Label"], ontology: "Ontology") -> dict[str, Any]:
    counts = {name: tally.counts[name] for name in _COUNTS}
    return {
        **counts,
        "coverage": counts["n_scored"] / counts["n_with_truth"] if counts["n_with_truth"] else None,
        "outside": dict(sorted(tally.outside.items(), key=lambda item: (-item[1], item[0]))),
        "before": _agreement(tally.before, labels, ontology),
        "after": _agreement(tally.after, labels, ontology),
    }


def _agreement(matrix: np.ndarray, labels: Sequence["Label"], ontology: "Ontology") -> dict[str, Any]:
    """Describe a confusion matrix; macro-F1 is over the classes present in truth or prediction."""
    from cellray.labels.metrics import graded

    sizes = matrix.sum(axis=0) + matrix.sum(axis=1)
    present = np.flatnonzero(sizes)
    n_scored, hits = int(matrix.sum()), np.diag(matrix)
    shares: Counter[str] = Counter()
    for i, j in np.argwhere(matrix).tolist():  # each pair of labels once, however many cells have it
        for relation, share in graded([labels[i].term_id], [labels[j].term_id], ontology).items():
            shares[relation] += share * matrix[i, j] / n_scored
    return {
        "accuracy": int(hits.sum()) / n_scored if n_scored else None,
        "macro_f1": float(np.mean(2 * hits[present] / sizes[present])) if n_scored else None,
        "confusion": {
            "labels": [labels[i].name for i in present.tolist()],
            "matrix": matrix[np.ix_(present, present)].tolist(),
        },
        "graded": {relation: float(share) for relation, share in shares.items()},
    }
