"""How right the cell types of a run are: graded by the ontology, or by the published table of graded pairs.

Contract: scores are means over the cells whose truth names a cell type; a cell without a label scores 0, for the model
was asked and did not answer. Rejected cells were not asked and do not count. The table (CellReasoner's, the user's
copy) knows the pairs of its own runs alone: a pair that it lacks has no score there, as upstream has it.
"""

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from cellray import schema, storage
from cellray.errors import InputError, boundary
from cellray.labels.metrics import graded_score, hierarchical_f1
from cellray.labels.ontology import Ontology
from cellray.labels.spoken import spoken

Pairs = Mapping[tuple[str, str], float]
_TRUTH, _SAID, _SCORE = "Ground Truth", "Model Prediction", "Evaluation Score"


def read_pairs(uri: str) -> Pairs:
    """Read the table of graded pairs, a CSV file, gzipped or not.

    Raises
    ------
    InputError
        If it cannot be read or lacks a column.
    """
    with boundary(InputError, f"pair scores {uri!r}", ValueError, KeyError, TypeError):
        data = storage.read_bytes(uri)
        text = (gzip.decompress(data) if uri.endswith(".gz") else data).decode()
        return {(row[_TRUTH], row[_SAID]): float(row[_SCORE]) for row in csv.DictReader(io.StringIO(text, newline=""))}


def scored(truth: Sequence[str], reasons: pa.Table, pairs: Pairs | None = None) -> dict[str, Any]:
    """Compare ``reasons`` (``schema.cell_reasons()``) with the true cell types of the same cells.

    Returns
    -------
    dict
        ``cells`` (that count), ``graded`` (``labels.metrics.graded_score``), ``exact`` (share with 1),
        ``hierarchical_f1``; with ``pairs`` also ``pairs_known`` (share of cells whose pair it has) and ``pairs_score``.
    """
    ontology = Ontology()
    rows = [
        (true, row[schema.ANSWER] or "")
        for true, row in zip(truth, reasons.select([schema.STATUS, schema.ANSWER]).to_pylist(), strict=True)
        if row[schema.STATUS] != schema.Status.REJECTED and spoken(true).names
    ]
    if not rows:
        return {"cells": 0}

    @cache
    def grade(true: str, said: str) -> float:
        return graded_score(spoken(true), spoken(said), ontology)

    grades = np.array([grade(true, said) for true, said in rows])
    found: dict[str, Any] = {
        "cells": len(rows),
        "graded": float(grades.mean()),
        "exact": float((grades == 1).mean()),
        "hierarchical_f1": hierarchical_f1(
            [(spoken(true).term_ids or ("",))[0] for true, _ in rows],
            [(spoken(said).term_ids or ("",))[0] for _, said in rows],
            ontology,
        ),
    }
    if pairs is not None:
        known = [pairs[pair] for pair in rows if pair in pairs]
        found |= {"pairs_known": len(known) / len(rows), "pairs_score": float(np.mean(known)) if known else None}
    return found
