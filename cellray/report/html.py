"""A run's ``report.html``: one page that needs no network and no script.

Contract: the same output folder gives the same bytes (no clock, no random numbers). Every value of the run passes
through autoescaping or ``svg.label``; a content security policy forbids the page to load or run anything. The page
counts cells dataset by dataset and in total, so that ``in = annotated + abstained + rejected`` can be checked by eye.
It computes no accuracy: pass ``evaluate``'s result to show one.
"""

from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cellray import schema, storage
from cellray.report import sections, svg
from cellray.report.folder import DatasetResult, Run, read_run

MOST_SECTIONS = 50
"""Datasets described in detail; the others are rows of the summary table, so that a large atlas gives a page that
opens."""

_MOST_CLASSES = 40


def write_report(out_uri: str, *, evaluation: dict[str, Any] | None = None) -> str:
    """Write ``report.html`` into a run's output folder.

    Parameters
    ----------
    out_uri
        Folder (local or ``s3://``) that ``annotate`` wrote.
    evaluation
        Result of ``evaluate`` on the same folder, shown as a block of its own.

    Returns
    -------
    str
        URI of the page.

    Raises
    ------
    SettingError
        If the folder has no ``run.json``.
    ReadError
        If a file that a manifest promises is missing or damaged.
    WriteError
        If the page cannot be written.
    """
    run = read_run(out_uri)
    uri = storage.join(out_uri, schema.REPORT_FILE)
    storage.put(uri, _page(run, evaluation).encode("utf-8", errors="replace"))
    return uri


def _page(run: Run, evaluation: dict[str, Any] | None) -> str:
    finished = [dataset for dataset in run.datasets if dataset.manifest]
    failed = {dataset.dataset_id: dataset for dataset in run.datasets if not dataset.manifest}
    detailed = finished[:MOST_SECTIONS]
    colours: dict[int, str] = {}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(clean=svg.label, plain=sections.plain, words=sections.words)
    template = environment.from_string(files(__package__).joinpath("template.html.j2").read_text(encoding="utf-8"))
    return template.render(
        run=run.info,
        totals=_totals(finished),
        summary=[_summary(dataset) for dataset in run.datasets],
        most_sections=MOST_SECTIONS,
        most_bars=sections.MOST_BARS,
        failures=list(failed.values()),
        sections=[sections.build(run, dataset, colours) for dataset in detailed],
        anchors={dataset.dataset_id: f"dataset-{number}" for number, dataset in enumerate(detailed, start=1)},
        n_finished=len(finished),
        evaluation=evaluation,
        skipped=[skip for skip in evaluation["skipped"] if skip["dataset_id"] not in failed] if evaluation else [],
        confusions=_confusions(evaluation) if evaluation else {},
    )


def _totals(finished: list[DatasetResult]) -> dict[str, int]:
    counts = ("n_cells", "n_annotated", "n_abstained", "n_rejected")
    return {count: sum(getattr(dataset.manifest, count) for dataset in finished) for count in counts}


def _summary(dataset: DatasetResult) -> dict[str, Any]:
    """One row of the table of datasets."""
    manifest = dataset.manifest
    seconds = sum(manifest.seconds.values()) if manifest else 0
    return {
        "dataset_id": dataset.dataset_id,
        "manifest": manifest,
        "n_changed": manifest.refinement["n_changed"] if manifest and manifest.refinement else None,
        "cells_per_s": manifest.n_cells / seconds if manifest and seconds else None,
    }


def _confusions(evaluation: dict[str, Any]) -> dict[str, Markup]:
    """Heat maps of all scored cells, after refinement first."""
    return {when: _confusion(evaluation["overall"][when]["confusion"], when) for when in ("after", "before")}


def _confusion(confusion: dict[str, Any], when: str) -> Markup:
    """Draw the classes with most cells in truth and prediction; one with none of either gets no row or no column."""
    matrix = np.asarray(confusion["matrix"]).reshape(2 * (len(confusion["labels"]),))
    truth, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    kept = np.sort(np.argsort(-(truth + predicted), kind="stable")[:_MOST_CLASSES])
    rows, columns = kept[truth[kept] > 0], kept[predicted[kept] > 0]
    names = confusion["labels"]
    title = f"Confusion {when} refinement"
    return svg.heat_map(
        matrix[np.ix_(rows, columns)], [names[i] for i in rows], [names[j] for j in columns], title=title
    )
