"""The manifest: cells are conserved, and a dataset is complete for one content and one set of settings only."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cellray import manifest, schema, storage
from cellray.manifest import Manifest, ShardRecord


def record(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "dataset_id": "liver",
        "source": "liver.h5ad",
        "content_hash": "c" * 64,
        "scoring_key": "s" * 64,
        "refining_key": "r" * 64,
        "labels": ["B cell", "T cell"],
        "label_ids": ["CL:0000236", "CL:0000084"],
        "n_cells": 10,
        "n_annotated": 7,
        "n_abstained": 1,
        "n_rejected": 2,
        "rejects": {"empty_cell": 1, "too_few_genes": 1},
        "shards": [ShardRecord(name="part-0", start=0, stop=10, sha256="0" * 64)],
        "plan": {"matrix": "X"},
        "refinement": None,
        "seconds": {"encode": 1.5},
        "warnings": [],
        "versions": {"cellray": "0"},
    }
    return Manifest.model_validate(values | changes)


def test_publish_and_read(root: str) -> None:
    folder = storage.join(root, "liver")
    storage.put_json(storage.join(folder, schema.ERROR_FILE), {"message": "an earlier run failed"})
    manifest.publish(folder, record())
    assert manifest.read(folder) == record()
    assert storage.list_files(folder) == [schema.SUCCESS_FILE, schema.MANIFEST_FILE]


def test_complete_for_this_content_and_these_settings_only(root: str) -> None:
    assert not manifest.is_complete(root, "c" * 64, "r" * 64)
    storage.put_json(storage.join(root, schema.MANIFEST_FILE), record().model_dump())
    assert not manifest.is_complete(root, "c" * 64, "r" * 64)
    manifest.publish(root, record())
    assert manifest.is_complete(root, "c" * 64, "r" * 64)
    assert not manifest.is_complete(root, "d" * 64, "r" * 64)
    assert not manifest.is_complete(root, "c" * 64, "s" * 64)


counts = st.integers(0, 5)


@given(counts, counts, st.dictionaries(st.sampled_from(list(schema.RejectCode)), counts), counts, st.integers(0, 20))
def test_cells_are_conserved(
    annotated: int, abstained: int, rejects: dict[str, int], rejected: int, cells: int
) -> None:
    values = {
        "n_cells": cells,
        "n_annotated": annotated,
        "n_abstained": abstained,
        "n_rejected": rejected,
        "rejects": rejects,
    }
    if cells == annotated + abstained + rejected and sum(rejects.values()) == rejected:
        record(**values)
    else:
        with pytest.raises(ValidationError, match=f"dataset 'liver': {cells} cells in, but {annotated} annotated"):
            record(**values)
    record(**(values | {"n_rejected": sum(rejects.values()), "n_cells": annotated + abstained + sum(rejects.values())}))


def test_reading_a_manifest_that_lost_cells_fails(root: str) -> None:
    storage.put_json(storage.join(root, schema.MANIFEST_FILE), record().model_dump() | {"n_annotated": 6})
    with pytest.raises(ValidationError, match="10 cells in, but 6 annotated"):
        manifest.read(root)
