"""Parts as the encoder makes them, with some cells rejected."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cellray import schema, storage, write

LABELS = ["B cell", "T cell", "monocyte"]
LABEL_IDS = ["CL:0000236", "CL:0000084", ""]


MakePart = Callable[..., pa.Table]
WriteResults = Callable[[str, list[pa.Table]], write.Results]


def _make_part(scored: np.ndarray, start: int = 0, seed: int = 0) -> pa.Table:
    """Return ``schema.scores()`` for the cells ``start`` and on; those not ``scored`` are rejected."""
    rng = np.random.default_rng([seed, start])
    n = len(scored)
    probabilities = rng.dirichlet(np.ones(len(LABELS)), n).astype(np.float32)
    embeddings = rng.normal(size=(n, schema.EMBEDDING_DIM)).astype(np.float16)

    def masked(rows: np.ndarray) -> list[np.ndarray | None]:
        return [row if ok else None for row, ok in zip(rows, scored, strict=True)]

    columns = {
        schema.ROW: np.arange(start, start + n),
        schema.CELL_ID: [f"cell-{i}" for i in range(start, start + n)],
        schema.N_COUNTS: rng.poisson(1000, n),
        schema.N_GENES: rng.poisson(300, n),
        schema.REJECT_CODE: [None if ok else schema.RejectCode.TOO_FEW_GENES for ok in scored],
        schema.PROBABILITIES: masked(probabilities),
        schema.EMBEDDING: masked(embeddings),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in schema.scores()]
    return pa.table(arrays, schema=schema.scores())


def _write_results(folder: str, parts: list[pa.Table]) -> write.Results:
    """Write parts and annotations as a run does."""
    uris = [storage.join(folder, write.part_name("c", i, i + 1, "s")) for i in range(len(parts))]
    for uri, part in zip(uris, parts, strict=True):
        write.write_part(uri, part, LABELS)
    annotations_uri = storage.join(folder, schema.ANNOTATIONS_FILE)
    write.write_annotations(annotations_uri, (write.label_table(part, LABELS, LABEL_IDS) for part in parts))
    uns = {"run_id": "r1", "schema_version": 1, "alpha": 0.2, "layer": None, "labels": LABELS, "versions": {"a": "1"}}
    return write.Results(annotations_uri, uris, uns)


@pytest.fixture(scope="session")
def make_part() -> MakePart:
    return _make_part


@pytest.fixture(scope="session")
def write_results() -> WriteResults:
    return _write_results


@pytest.fixture
def results(tmp_path: Path) -> write.Results:
    """Ten cells in three parts; the third, the fourth and the last are rejected."""
    scored = np.ones(10, bool)
    scored[[2, 3, 9]] = False
    parts = [_make_part(scored[start : start + 4], start) for start in (0, 4, 8)]
    return _write_results(str(tmp_path / "results"), parts)
