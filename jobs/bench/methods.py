"""GRIT, the paper's two baselines and no refinement on real cells; part of ``python -m jobs.bench.refine --data DIR``.

Scores are the bundled model's, over the types that the dataset's own authors named, as in Table 1 of the GRIT paper;
the accuracy is that of the exact term. Cells of the training sets are among them (only the Kang set is wholly unseen),
so the rows compare methods, and say little of the model.
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cellray import schema
from cellray.encode.langcell import LangCellEncoder
from cellray.labels.candidates import prompt
from cellray.labels.metrics import accuracy, macro_f1
from cellray.labels.ontology import Ontology
from cellray.models import checkpoints
from cellray.refine.grit import Method, Options, refine
from cellray.train.config import TrainingSet
from cellray.train.prepare import read_cells, tokenise
from jobs.bench.atlas import noisy_scores

LABELLED = ("pbmc_zheng2017_facs", "liver_he2020", "pancreas_baron2016_mini", "pbmc_kang2018_1267genes")
ALLEN = "scale_allen_m1_76k_141genes"
METHODS: tuple[Method, ...] = ("majority", "average", "grit")


def table(folder: Path, model: str = "mini", alpha: float = 0.2) -> list[dict[str, Any]]:
    """Return accuracy and macro-F1 of every method on every labelled dataset."""
    ontology, checkpoint = Ontology(), checkpoints.load_langcell(model)
    slots = {gene: slot for slot, gene in enumerate(checkpoint.genes[schema.ENSEMBL_ID].to_pylist())}
    rows = []
    for name in LABELLED:
        cells = read_cells(folder, TrainingSet(file=f"datasets/{name}.h5ad"))
        labelled = np.flatnonzero(cells.labels != "")
        kinds, truth = np.unique(cells.labels[labelled], return_inverse=True)
        texts = [prompt(ontology.name(term), ontology.definition(term)) for term in kinds]
        flat, offsets = tokenise(cells, slots, checkpoint.genes)
        encoder = LangCellEncoder(checkpoint, texts, alpha=alpha)
        scores, _ = encoder.score_tokens({schema.TOKENS: flat}, offsets, labelled)
        counts = sparse.csr_matrix(cells.counts[labelled])
        row = {"dataset": name, "cells": len(labelled), "classes": len(kinds)}
        rows.append(row | _compared(scores.astype(np.float32), counts, truth))
    return rows


def allen(folder: Path, accuracies: tuple[float, ...] = (0.5, 0.7, 0.9)) -> list[dict[str, Any]]:
    """Return the same for scores that are right for a stated share of the Allen cells."""
    import anndata

    data = anndata.read_h5ad(folder / "datasets" / f"{ALLEN}.h5ad")
    kinds, truth = np.unique(data.obs["cell_type"].astype(str), return_inverse=True)
    counts = sparse.csr_matrix(data.X, dtype=np.float32)
    return [
        {"dataset": ALLEN, "cells": len(truth), "classes": len(kinds), "simulated_accuracy": share}
        | _compared(noisy_scores(truth, len(kinds), share), counts, truth)
        for share in accuracies
    ]


def _compared(scores: np.ndarray, counts: sparse.csr_matrix, truth: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = _measured("none", scores, truth)
    for method in METHODS:
        result = refine(scores, lambda: [counts], Options(method=method))
        found |= _measured(method, result.p, truth)
    return found | {"knn_recall": result.diagnostics["knn_recall"]}


def _measured(method: str, scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    calls, known = scores.argmax(axis=1).tolist(), truth.tolist()
    return {
        f"{method}_accuracy": round(accuracy(known, calls), 4),
        f"{method}_macro_f1": round(macro_f1(known, calls), 4),
    }
