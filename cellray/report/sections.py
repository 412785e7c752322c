"""What the page says about one finished dataset: numbers in words, charts as SVG.

Contract: one dataset is read at a time (its labels and its view, never its matrix). A class keeps its colour through
the whole page: classes take the next free colour in the order in which the page first shows them. No HTML is written
here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from cellray import schema, storage
from cellray.errors import ReadError, boundary
from cellray.manifest import Manifest
from cellray.report import svg
from cellray.report.folder import Calls, DatasetResult, Run, read_calls

_BEFORE_COLOUR, _AFTER_COLOUR, _CHANGED_COLOUR = "#b9c3cf", svg.PALETTE[0], svg.PALETTE[1]
MOST_BARS = 40
MOST_GROUPS = 60
_BINS = 40
_SAID_ELSEWHERE = ("dataset_id", "source", "n_cells", "warnings")


@dataclass(frozen=True)
class TypeRow:
    """One cell type of a dataset: cells before and after refinement, and its summed probability before and after."""

    name: str
    term_id: str
    before: int
    after: int
    masses: tuple[float, float] | None


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    name: str
    colour: str
    badge: str
    cells: int


@dataclass(frozen=True)
class Section:
    """Everything the template shows of one dataset; charts that do not apply are empty."""

    dataset_id: str
    manifest: Manifest
    warnings: list[str]
    read: dict[str, Any]
    types: list[TypeRow]
    type_bars: Markup
    n_view: int
    type_view: Markup
    type_keys: list[Key]
    change_view: Markup
    change_keys: list[Key]
    score_histogram: Markup
    reject_bars: Markup
    stage_bars: Markup
    diagnostics: dict[str, Any]
    reasoning: dict[str, Any]
    groups: list[dict[str, Any]]


def build(run: Run, dataset: DatasetResult, colours: dict[int, str]) -> Section:
    """Read a finished dataset and describe it; ``colours`` (label index -> colour) grows with the classes it shows."""
    manifest = dataset.manifest
    if manifest is None:
        msg = f"dataset {dataset.dataset_id!r} is not finished"
        raise ReadError(msg)
    calls = read_calls(dataset, run.labels)
    called = calls.having(schema.Status.ANNOTATED)
    refined = manifest.refinement is not None
    types = _types(run, manifest, calls, called)
    emptied = [
        f"refinement emptied {row.name!r}: from {row.before:,} to 0 cells"
        for row in types
        if refined and row.before and not row.after
    ]
    rows, xy = _view(dataset)
    view_calls = calls.after[rows]
    type_view, type_keys = _by_type(run.labels, xy, view_calls, colours)
    change_view, change_keys = _by_change(xy, calls.before[rows] != view_calls) if refined else (Markup(), [])
    return Section(
        dataset_id=dataset.dataset_id,
        manifest=manifest,
        warnings=emptied + manifest.warnings,
        read={
            "source": manifest.source,
            **{key: manifest.plan[key] for key in manifest.plan if key not in _SAID_ELSEWHERE},
        },
        types=types,
        type_bars=_type_bars(types, refined=refined),
        n_view=len(rows),
        type_view=type_view,
        type_keys=type_keys,
        change_view=change_view,
        change_keys=change_keys,
        score_histogram=_score_histogram(calls.score[called]),
        reject_bars=_reject_bars(manifest.rejects),
        stage_bars=_stage_bars(manifest),
        diagnostics=_diagnostics(manifest.refinement or {}, int(called.sum())),
        reasoning=manifest.reasoning or {},
        groups=_groups(dataset) if manifest.reasoning else [],
    )


def words(key: str) -> str:
    """Turn a key of ours into words."""
    return key.replace("_", " ")


def plain(value: Any) -> str:
    """Write a JSON value for a reader: thousands separated, lists and dicts in one line."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}"
        case list() | tuple():
            return ", ".join(map(plain, value)) or "–"
        case Mapping():
            return ", ".join(f"{words(str(key))}: {plain(item)}" for key, item in value.items()) or "–"
    return str(value)


def _types(run: Run, manifest: Manifest, calls: Calls, called: np.ndarray) -> list[TypeRow]:
    """Types that any cell has before or after, the most frequent first."""
    before = np.bincount(calls.before[called], minlength=len(run.labels))
    after = np.bincount(calls.after[called], minlength=len(run.labels))
    refinement = manifest.refinement or {}
    masses = list(zip(refinement.get("class_masses_before", ()), refinement.get("class_masses_after", ()), strict=True))
    order = sorted(np.flatnonzero(before + after), key=lambda i: (-after[i], -before[i], i))
    return [
        TypeRow(
            name=run.labels[i],
            term_id=run.info["labels"][i]["term_id"] or "",
            before=int(before[i]),
            after=int(after[i]),
            masses=masses[i] if masses else None,
        )
        for i in order
    ]


def _type_bars(types: list[TypeRow], *, refined: bool) -> Markup:
    shown = types[:MOST_BARS]
    after = ("after refinement" if refined else "cells", _AFTER_COLOUR, [row.after for row in shown])
    before = ("before (encoder)", _BEFORE_COLOUR, [row.before for row in shown])
    return svg.bars([row.name for row in shown], [before, after] if refined else [after], title="Cells per type")


def _view(dataset: DatasetResult) -> tuple[np.ndarray, np.ndarray]:
    uri = storage.join(dataset.folder, schema.VIEW_FILE)
    with boundary(ReadError, f"view of dataset {dataset.dataset_id!r}"), storage.open_read(uri) as file:
        table = pq.read_table(file)
    xy = np.column_stack([table[schema.VIEW_X].to_numpy(), table[schema.VIEW_Y].to_numpy()])
    return table[schema.ROW].to_numpy(), xy


def _groups(dataset: DatasetResult) -> list[dict[str, Any]]:
    """Return the first groups that the language model was asked about, with the number of their cells."""
    uri = storage.join(dataset.folder, schema.REASONING_FILE)
    with boundary(ReadError, f"reasoning of dataset {dataset.dataset_id!r}"), storage.open_read(uri) as file:
        rows = pq.read_table(file).slice(0, MOST_GROUPS).to_pylist()
    return [{**row, "n_cells": len(row[schema.CELLS])} for row in rows]


def _by_type(labels: list[str], xy: np.ndarray, calls: np.ndarray, colours: dict[int, str]) -> tuple[Markup, list[Key]]:
    counts = np.bincount(calls[calls >= 0], minlength=len(labels))
    keys, groups = [], np.full(len(calls), -1)
    for rank, i in enumerate(sorted(np.flatnonzero(counts), key=lambda i: (-counts[i], i))):
        colour = colours.setdefault(int(i), svg.PALETTE[len(colours)] if len(colours) < len(svg.PALETTE) else svg.OTHER)
        keys.append(Key(labels[i], colour, str(rank + 1), int(counts[i])))
        groups[calls == i] = rank
    looks = [(key.name, key.colour, key.badge) for key in keys]
    return svg.scatter(xy, groups, looks, title="UMAP coloured by cell type"), keys


def _by_change(xy: np.ndarray, changed: np.ndarray) -> tuple[Markup, list[Key]]:
    n_changed = int(changed.sum())
    keys = [
        Key("kept the encoder's label", _BEFORE_COLOUR, "", len(changed) - n_changed),
        Key("changed by refinement", _CHANGED_COLOUR, "", n_changed),
    ]
    looks = [(key.name, key.colour, "") for key in keys]
    return svg.scatter(xy, changed.astype(int), looks, title="UMAP coloured by change"), keys


def _score_histogram(scores: np.ndarray) -> Markup:
    scores = scores[np.isfinite(scores)].astype(np.float64)
    if not scores.size:
        return Markup()
    # Scores that do not differ still span a range that can be cut into bins.
    low, high = scores.min(), max(scores.max(), scores.min() + 1e-4)
    counts, edges = np.histogram(scores, bins=_BINS, range=(low, high))
    x_label = "score (probability of the chosen label)"
    return svg.histogram(counts.tolist(), edges.tolist(), title="Scores of the annotated cells", x_label=x_label)


def _reject_bars(rejects: dict[str, int]) -> Markup:
    found = sorted(((code, count) for code, count in rejects.items() if count), key=lambda item: (-item[1], item[0]))
    if not found:
        return Markup()
    values = [count for _, count in found]
    return svg.bars(
        [words(code) for code, _ in found], [("cells", svg.PALETTE[7], values)], title="Rejected cells by reason"
    )


def _stage_bars(manifest: Manifest) -> Markup:
    if not manifest.seconds:
        return Markup()
    stages = sorted(manifest.seconds.items(), key=lambda item: -item[1])

    def text(seconds: float) -> str:
        return f"{seconds:,.1f} s" + (f"  ({manifest.n_cells / seconds:,.0f} cells/s)" if seconds > 0 else "")

    series = [("seconds", svg.PALETTE[11], [seconds for _, seconds in stages])]
    return svg.bars([words(stage) for stage, _ in stages], series, title="Seconds by stage", text=text)


def _diagnostics(refinement: dict[str, Any], n_annotated: int) -> dict[str, Any]:
    """Refinement's numbers without those of single types, which are elsewhere; what belongs together on one line."""
    if not refinement:
        return {}
    elsewhere = ("n_cells", "classes_emptied", "class_masses_before", "class_masses_after")
    rest = {key: value for key, value in refinement.items() if key not in elsewhere}
    n_changed = rest.pop("n_changed")
    share = f" ({n_changed / n_annotated:.1%} of the annotated)" if n_annotated else ""
    before, after = rest.pop("edge_disagreement_before"), rest.pop("edge_disagreement_after")
    edges = {} if "skipped" in rest else {"edges between types": f"{before:.1%} before, {after:.1%} after"}
    return {"cells changed": f"{n_changed:,}{share}", **edges, **rest}
