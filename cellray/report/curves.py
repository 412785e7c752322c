"""A training run as pictures: ``report.html`` with a curve for every number of its steps.

Contract: the same rows give the same bytes. The page needs no network and no script. A curve shows each step and, in
bold, the mean of the steps around it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from cellray import storage
from cellray.report import svg

_NAMES = {
    "reward": "mean reward",
    "format": "share of answers in the right format",
    "length": "tokens of an answer",
    "kl": "divergence from the first weights",
    "clip_share": "share of clipped tokens",
    "equal_groups": "share of groups whose rewards are all equal",
    "gap": "mean difference of log-probabilities to the engine's",
    "tokens_per_s": "tokens written a second",
    "sync_s": "seconds of a weight update",
    "trainer_idle": "share of a step that the trainer waits",
    "rollout_idle": "share of a step that the engine waits",
}
_STYLE = Markup(
    "body{font:14px/1.5 sans-serif;max-width:1000px;margin:2em auto;color:#1c2430}h2{font-size:15px;margin:1.6em 0 0}"
)


def write_curves(uri: str, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of ``rows``, each with its ``step`` and numbers by name."""
    parts = [
        Markup("<h2>{}</h2>{}").format(text, curve(rows, name))
        for name, text in _NAMES.items()
        if rows and name in rows[0]
    ]
    page = Markup(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>{0}</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<style>{1}</style><h1>{0}</h1><p>{2} steps</p>{3}</html>\n"
    ).format(svg.label(title), _STYLE, len(rows), Markup("").join(parts))
    storage.put(uri, page.encode())


def curve(rows: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """Return the number ``name`` of ``rows`` by step, as SVG."""
    values = np.array([float(row[name]) for row in rows])
    steps = [float(row["step"]) for row in rows]
    return svg.curve(steps, values.tolist(), smooth(values).tolist(), title=_NAMES[name], x_label="step")


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the mean of the values around each, a tenth of all; fewer at both ends."""
    half = len(values) // 20
    sums = np.r_[0.0, np.cumsum(values)]
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
