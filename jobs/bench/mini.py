"""How good a model is on unseen cells, beside two plain baselines: ``python -m jobs.bench.mini --data DIR [--json]``.

The split is the one of the training configuration. Two measures: for each training set, accuracy and macro-F1 of the
exact label on its held-out cells; for an independent set (``--independent``), the share of cells put into the right
lineage (B, T or NK, myeloid), whatever the label within it, because its authors used other labels. No refinement. The
baselines see the training cells' log-normalised counts over the genes that the evaluated set shares with them.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from cellray import schema
from cellray.encode.langcell import LangCellEncoder
from cellray.errors import CellRayError, one_line
from cellray.labels.metrics import accuracy, macro_f1
from cellray.labels.ontology import Ontology
from cellray.models import checkpoints
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.train.config import PretrainConfig, TrainingSet
from cellray.train.prepare import Cells, read_cells, tokenise
from jobs.numbers import share

_CONFIG = Path(__file__).parents[1] / "configs" / "mini.yaml"
_LINEAGES = {"B": ("CL:0000236",), "T or NK": ("CL:0000084", "CL:0000623"), "myeloid": ("CL:0000766",)}


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.mini", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that the configuration's files are relative to"
    )
    parser.add_argument("--config", type=Path, default=_CONFIG)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--alpha", type=share, default=0.2)
    parser.add_argument("--independent", default="datasets/pbmc_kang2018_1267genes.h5ad")
    parser.add_argument("--label-key", default="cell_type_ontology_id", help="of the independent set")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        rows = measure(given)
    except CellRayError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    if given.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        for row in rows:
            numbers = ", ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
            sys.stdout.write(f"{row['set']} ({row['cells']} cells, {row['measure']}): {numbers}\n")
    return 0


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a dataset and measure."""
    ontology = Ontology()
    config = PretrainConfig.read(given.config)
    checkpoint = checkpoints.load_langcell(given.model)
    sets = [read_cells(given.data, entry) for entry in config.sets]
    independent = read_cells(given.data, TrainingSet(file=given.independent, label_key=given.label_key))
    rows = []
    for entry, cells in zip(config.sets, sets, strict=True):
        chosen = cells.held_out & (cells.labels != "")
        calls = {"model": call(checkpoint, cells, chosen, given.alpha), **baselines(sets, cells, chosen)}
        truth = cells.labels[chosen].tolist()
        scores = {
            f"{name}_{score.__name__}": score(truth, found)
            for name, found in calls.items()
            for score in (accuracy, macro_f1)
        }
        rows.append(
            {
                "set": Path(entry.file).stem,
                "cells": int(chosen.sum()),
                "measure": "exact label, held-out cells",
                **scores,
            }
        )
    every = np.ones(len(independent.labels), bool)
    calls = {"model": call(checkpoint, independent, every, given.alpha), **baselines(sets, independent, every)}
    truth = [lineage(ontology, label) for label in independent.labels]
    shares = {
        f"{name}_accuracy": accuracy(truth, [lineage(ontology, term) for term in found])
        for name, found in calls.items()
    }
    rows.append(
        {"set": Path(given.independent).stem, "cells": len(truth), "measure": "lineage, never trained on", **shares}
    )
    return rows


def call(checkpoint: LangCellCheckpoint, cells: Cells, chosen: np.ndarray, alpha: float) -> list[str]:
    """Label ids that the model gives to the chosen cells, out of its own label set."""
    slots = {gene: slot for slot, gene in enumerate(checkpoint.genes[schema.ENSEMBL_ID].to_pylist())}
    flat, offsets = tokenise(cells, slots, checkpoint.genes)
    encoder = LangCellEncoder(checkpoint, [label["text"] for label in checkpoint.labels], alpha=alpha)
    probabilities, _ = encoder.score_tokens({schema.TOKENS: flat}, offsets, np.flatnonzero(chosen))
    return [checkpoint.labels[best]["term_id"] for best in probabilities.argmax(1)]


def baselines(sets: list[Cells], cells: Cells, chosen: np.ndarray) -> dict[str, list[str]]:
    """Label ids by nearest centroid and by logistic regression, fitted on all training cells over the shared genes."""
    shared = sorted(set(cells.genes).intersection(*[set(one.genes) for one in sets]))
    training = [~one.held_out & (one.labels != "") for one in sets]
    x = sparse.vstack(
        [log_normalised(one, shared, rows) for one, rows in zip(sets, training, strict=True)], format="csr"
    )
    y = np.concatenate([one.labels[rows] for one, rows in zip(sets, training, strict=True)])
    unseen = log_normalised(cells, shared, chosen)
    centroid = NearestCentroid().fit(x.toarray(), y).predict(unseen.toarray())
    logistic = LogisticRegression(max_iter=300).fit(x, y).predict(unseen)
    return {"centroid": centroid.tolist(), "logistic": logistic.tolist()}


def log_normalised(cells: Cells, genes: list[str], rows: np.ndarray) -> sparse.csr_matrix:
    """``log1p`` of counts per ten thousand over ``genes``."""
    column = {gene: index for index, gene in enumerate(cells.genes)}
    counts = sparse.csr_matrix(cells.counts[rows][:, [column[gene] for gene in genes]])
    total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    return sparse.csr_matrix(sparse.diags_array(1e4 / total) @ counts).log1p()


def lineage(ontology: Ontology, term: str) -> str:
    """Which of the three lineages a term belongs to, or ``other``."""
    for name, roots in _LINEAGES.items():
        if any(ontology.is_a(term, root) for root in roots):
            return name
    return "other"


if __name__ == "__main__":
    sys.exit(main())
