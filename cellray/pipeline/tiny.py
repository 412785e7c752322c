"""Datasets of so few cells that smoothing would join all with all: they keep the encoder's labels.

Contract: with n scored cells and k neighbours, refinement is skipped where n <= 3 k, unless the user gives the graph.
A cell whose label is known (an anchor) still gets it. What was skipped and why is said in the diagnostics.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from cellray.ingest import DatasetPlan
from cellray.pipeline.order import WorkOrder
from cellray.pipeline.refining import encoder_scores, given_entries
from cellray.refine.grit import Refinement
from cellray.schema import Source

NEIGHBOURHOODS: Final = 3
"""A dataset needs more cells than so many neighbourhoods hold."""


def too_few(order: WorkOrder, n_scored: int) -> str:
    """Return why ``n_scored`` cells are not refined, or ``""`` if they are."""
    told = order.refining
    if told.refine == "none" or told.use_graph is not None or n_scored > NEIGHBOURHOODS * told.k:
        return ""
    method = "GRIT" if told.refine == "grit" else f"--refine {told.refine}"
    cells = "1 cell is" if n_scored == 1 else f"{n_scored:,} cells are"
    return (
        f"{method} is skipped, labels are the encoder's: {cells} too few for {told.k} neighbours each, all would be "
        f"joined with all; pass a smaller --k (it takes more than {NEIGHBOURHOODS} x k cells)"
    )


def unsmoothed(
    order: WorkOrder, plan: DatasetPlan, part_uris: Sequence[str], scored: np.ndarray
) -> tuple[Refinement, np.ndarray]:
    """Return the scores of the cells ``scored`` (ascending rows) as they are, but for anchors, which are held.

    Returns
    -------
    refinement
        Without points and graph.
    sources
        (n_scored,) ``schema.Source`` of each label: refinement's for anchors, else the encoder's.
    """
    p0 = encoder_scores(part_uris, scored, len(order.scoring.labels))
    p, known = p0, np.empty(0, np.int64)
    if order.refining.anchor_key is not None:
        anchors = given_entries(order, plan, scored).anchors
        if anchors is not None:
            known = np.flatnonzero(anchors >= 0)
            p = p0.copy()
            p[known] = 0
            p[known, anchors[known]] = 1
    diagnostics = {
        "method": order.refining.refine,
        "skipped": too_few(order, len(scored)),
        "n_cells": len(scored),
        "n_edges": 0,
        "k": order.refining.k,
        "n_changed": int(np.count_nonzero(p.argmax(axis=1) != p0.argmax(axis=1))),
        "n_anchored": len(known),
        # As of any graph without edges.
        "edge_disagreement_before": 0.0,
        "edge_disagreement_after": 0.0,
    }
    sources = np.full(len(p), Source.ENCODER.value, object)
    sources[known] = order.refining.refine
    return Refinement(p, np.zeros((len(p), 0), np.float32), diagnostics), sources
