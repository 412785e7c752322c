"""Run folders made by hand, as ``annotate`` would leave them."""

from dataclasses import dataclass, field

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from cellray import manifest, schema, storage


@dataclass
class _Dataset:
    """Cells by label index: -1 in ``after`` is a rejected cell, -2 an abstained one."""

    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    obs: dict[str, object] = field(default_factory=dict)
    refined: bool = True
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    plan: dict[str, object] = field(default_factory=dict)
    view: pa.Table | None = None
    scores: np.ndarray | None = None


def _write_run(
    out,
    datasets,
    *,
    names=("B cell", "T cell", "monocyte"),
    terms=("CL:0000236", "CL:0000084", "CL:0000576"),
    run_id="run-1",
    settings=None,
):
    """Write a whole output folder from the fields of ``_Dataset`` by dataset id; an ``error`` leaves only that."""
    out = str(out)
    info = {
        "run_id": run_id,
        "settings": settings or {"inputs": ["a.h5ad"], "out": "somewhere", "alpha": 0.2, "layer": None},
        "versions": {"cellray": "0.1.0", "python": "3.11"},
        "model": {"name": "mini", "digest": "ab" * 32},
        "labels": [{"name": n, "term_id": t, "text": f"{n}: a cell."} for n, t in zip(names, terms, strict=True)],
        "scoring_key": "5c" * 32,
        "refining_key": "4e" * 32,
        "datasets": list(datasets),
        "seconds": {"annotate": 12.5},
        "cells_per_s": 321.0,
    }
    storage.put_json(storage.join(out, schema.RUN_FILE), info)
    for dataset_id, values in datasets.items():
        dataset = _Dataset(**values)
        folder = storage.join(out, schema.DATASETS_DIR, dataset_id)
        if dataset.error:
            storage.put_json(storage.join(folder, schema.ERROR_FILE), {"code": "ReadError", "message": dataset.error})
        else:
            _write_dataset(out, folder, dataset_id, dataset, info)
    return out


def _write_dataset(out, folder, dataset_id, dataset, info):
    names, terms = [label["name"] for label in info["labels"]], [label["term_id"] for label in info["labels"]]
    before, after = np.asarray(dataset.before, dtype=int), np.asarray(dataset.after, dtype=int)
    n = len(after)
    called = after >= 0
    status = [("annotated", "rejected", "abstained")[min(0, code) * -1] for code in after]
    scores = np.linspace(0.1, 0.9, n, dtype=np.float32) if dataset.scores is None else dataset.scores
    pick = lambda values, index: [values[i] if i >= 0 else None for i in index]  # noqa: E731
    table = pa.table(
        {
            schema.ROW: np.arange(n),
            schema.CELL_ID: [f"cell-{i}" for i in range(n)],
            schema.CELL_TYPE: pick(names, after),
            schema.CELL_TYPE_ID: pick(terms, after),
            schema.SCORE: [float(s) if c else None for s, c in zip(scores, called, strict=True)],
            schema.MARGIN: [0.1 if c else None for c in called],
            schema.SOURCE: ["grit" if c else None for c in called],
            schema.STATUS: status,
            schema.REJECT_CODE: [str(schema.RejectCode.TOO_FEW_GENES) if s == "rejected" else None for s in status],
            schema.ENCODER_CELL_TYPE: pick(names, before),
        },
        schema=schema.annotations(),
    )
    view = dataset.view
    if view is None:
        rows = np.flatnonzero(called)
        view = pa.table([rows, np.cos(rows), np.sin(rows)], schema=schema.view())
    for name, content in ((schema.ANNOTATIONS_FILE, table), (schema.VIEW_FILE, view)):
        with storage.writing(storage.join(folder, name)) as path:
            pq.write_table(content, path)
    rejected, abstained = status.count("rejected"), status.count("abstained")
    masses = lambda index: np.bincount(index[called], minlength=len(names)).astype(float).tolist()  # noqa: E731
    refinement = {
        "n_changed": int((before != after)[called].sum()),
        "lam": 1.0,
        "k": 15,
        "n_pcs": 50,
        "iterations": 14,
        "residual": 3.2e-7,
        "n_edges": 9 * n,
        "edge_disagreement_before": 0.31,
        "edge_disagreement_after": 0.12,
        "class_masses_before": masses(before),
        "class_masses_after": masses(after),
    }
    record = manifest.Manifest(
        dataset_id=dataset_id,
        source=f"/data/{dataset_id}.h5ad",
        content_hash="c0" * 32,
        scoring_key=info["scoring_key"],
        refining_key=info["refining_key"],
        labels=names,
        label_ids=[term or "" for term in terms],
        n_cells=n,
        n_annotated=int(called.sum()),
        n_abstained=abstained,
        n_rejected=rejected,
        rejects={str(schema.RejectCode.TOO_FEW_GENES): rejected} if rejected else {},
        shards=[],
        plan=dataset.plan,
        refinement=refinement if dataset.refined else None,
        seconds={"read": 0.5, "encode": 4.0, "refine": 0.25, "write": 0.0},
        warnings=dataset.warnings,
        versions=info["versions"],
    )
    adata = anndata.AnnData(
        sp.csr_matrix((n, 2), dtype=np.float32), obs=pd.DataFrame(dataset.obs, index=table[schema.CELL_ID].to_pylist())
    )
    with storage.writing(storage.join(out, f"{dataset_id}.h5ad")) as path:
        adata.write_h5ad(path)
    manifest.publish(folder, record)


@pytest.fixture(scope="session")
def write_run():
    """Write a run folder at a path and return the path as text."""
    return _write_run


@pytest.fixture
def make_run(tmp_path):
    """Write a run folder to ``tmp_path / "out"`` and return the path as text."""

    def make(datasets, **run):
        return _write_run(tmp_path / "out", datasets, **run)

    return make
