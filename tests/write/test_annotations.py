"""Annotations: every cell has one row and one status, and the label is the highest probability's."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray import schema, storage, write
from cellray.errors import RefineError, WriteError

LABELS = ["B cell", "T cell", "monocyte"]
LABEL_IDS = ["CL:0000236", "CL:0000084", ""]
MakePart = Callable[..., pa.Table]

shards = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=4)


@given(shards, st.integers(0, 99), st.booleans())
def test_cells_are_conserved(
    tmp_path_factory: pytest.TempPathFactory, make_part: MakePart, scored: list[list[bool]], seed: int, refine: bool
) -> None:
    starts = np.cumsum([0, *map(len, scored)])
    parts = [make_part(np.array(s, bool), start, seed) for s, start in zip(scored, starts, strict=False)]
    rng = np.random.default_rng(seed)
    refined = [rng.random((sum(s), 3)) if refine else None for s in scored]
    tables = [write.label_table(part, LABELS, LABEL_IDS, r) for part, r in zip(parts, refined, strict=True)]
    uri = str(tmp_path_factory.mktemp("annotations") / "annotations.parquet")
    counts = write.write_annotations(uri, iter(tables))

    file = pq.ParquetFile(uri)
    rows = file.read().to_pylist()
    assert file.schema_arrow.equals(schema.annotations())
    assert file.num_row_groups == len(parts)
    assert [row[schema.ROW] for row in rows] == list(range(starts[-1]))
    n_rejected = sum(not ok for s in scored for ok in s)
    assert counts.statuses == {"annotated": len(rows) - n_rejected, "abstained": 0, "rejected": n_rejected}
    assert sum(counts.rejects.values()) == n_rejected
    assert counts.n_changed == sum(row[schema.CELL_TYPE] != row[schema.ENCODER_CELL_TYPE] for row in rows)
    assert refine or counts.n_changed == 0

    cells = [cell for part in parts for cell in part.to_pylist()]
    decisive = iter(np.concatenate([r for r in refined if r is not None] or [np.empty((0, 3))]))
    for cell, row in zip(cells, rows, strict=True):
        assert row[schema.CELL_ID] == cell[schema.CELL_ID]
        assert row[schema.REJECT_CODE] == cell[schema.REJECT_CODE]
        if cell[schema.REJECT_CODE] is not None:
            assert row[schema.STATUS] == schema.Status.REJECTED
            told = (schema.ROW, schema.CELL_ID, schema.STATUS, schema.REJECT_CODE)
            assert all(value is None for name, value in row.items() if name not in told)
            continue
        encoder = np.array(cell[schema.PROBABILITIES], np.float32)
        values = next(decisive) if refine else encoder
        assert row[schema.STATUS] == schema.Status.ANNOTATED
        assert row[schema.SOURCE] == ("grit" if refine else "encoder")
        assert row[schema.ENCODER_CELL_TYPE] == LABELS[int(np.argmax(encoder))]
        assert row[schema.CELL_TYPE] == LABELS[int(np.argmax(values))]
        assert row[schema.CELL_TYPE_ID] == (LABEL_IDS[int(np.argmax(values))] or None)
        best, second = sorted(values, reverse=True)[:2]
        assert row[schema.SCORE] == pytest.approx(best, rel=1e-6)
        assert row[schema.MARGIN] == pytest.approx(best - second, abs=1e-6)


def test_first_label_wins_a_tie(make_part: MakePart) -> None:
    part = make_part(np.array([True]))
    index = part.schema.get_field_index(schema.PROBABILITIES)
    tied = part.set_column(index, part.schema.field(index), pa.array([[0.2, 0.4, 0.4]], pa.list_(pa.float32())))
    row = write.label_table(tied, LABELS, LABEL_IDS, np.array([[0.5, 0.5, 0.0]])).to_pylist()[0]
    assert (row[schema.ENCODER_CELL_TYPE], row[schema.CELL_TYPE], row[schema.MARGIN]) == ("T cell", "B cell", 0)


def test_shapes_that_do_not_fit_are_refused(make_part: MakePart) -> None:
    part = make_part(np.array([True, False, True]))
    with pytest.raises(WriteError, match="6 probabilities for 2 labels"):
        write.label_table(part, LABELS[:2], LABEL_IDS[:2])
    with pytest.raises(WriteError, match="3 labels and 2 ids"):
        write.label_table(part, LABELS, LABEL_IDS[:2])
    with pytest.raises(WriteError, match=r"shape \(3, 3\), the encoder's \(2, 3\)"):
        write.label_table(part, LABELS, LABEL_IDS, np.ones((3, 3)))


def test_missing_doubled_or_misplaced_rows_are_refused(tmp_path: Path, make_part: MakePart) -> None:
    one, two = (write.label_table(make_part(np.ones(4, bool), start), LABELS, LABEL_IDS) for start in (0, 4))
    for wrong in ([two], [two, one], [one, one], [one, two[1:]], [one[::-1]]):
        with pytest.raises(WriteError, match="one each and in order"):
            write.write_annotations(str(tmp_path / "annotations.parquet"), wrong)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_published_when_a_part_fails(root: str, make_part: MakePart) -> None:
    def tables() -> Iterator[pa.Table]:
        yield write.label_table(make_part(np.ones(4, bool)), LABELS, LABEL_IDS)
        raise RefineError("the solve failed")

    with pytest.raises(RefineError, match="the solve failed"):
        write.write_annotations(storage.join(root, "annotations.parquet"), tables())
    assert storage.list_files(root) == []


def test_bytes_are_the_same_every_time(tmp_path: Path, make_part: MakePart) -> None:
    digests = set()
    for name in ("one", "two"):
        parts = [make_part(np.arange(500) % 7 > 0, start) for start in (0, 500)]
        write.write_annotations(str(tmp_path / name), (write.label_table(p, LABELS, LABEL_IDS) for p in parts))
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("refine", [False, True])
def test_a_cell_that_no_label_got_anything_of_is_abstained(make_part: MakePart, *, refine: bool) -> None:
    part = make_part(np.array([True, True, False, True]), 0, 0)
    values = np.array([[0.2, 0.5, 0.3], [0, 0, 0], [0.6, 0.2, 0.2]], np.float32)
    offsets = pa.array([0, 3, 6, 6, 9], pa.int32())
    mask = pa.array([False, False, True, False])
    column = pa.ListArray.from_arrays(offsets, pa.array(values.ravel()), mask=mask)
    part = part.set_column(part.column_names.index(schema.PROBABILITIES), schema.PROBABILITIES, column)
    rows = write.label_table(part, LABELS, LABEL_IDS, np.full((3, 3), 1 / 3) if refine else None).to_pylist()
    assert [row[schema.STATUS] for row in rows] == ["annotated", "abstained", "rejected", "annotated"]
    assert rows[1][schema.SOURCE] == "abstain"
    told = (schema.ROW, schema.CELL_ID, schema.STATUS, schema.SOURCE)
    assert all(value is None for name, value in rows[1].items() if name not in told)
    assert [row[schema.ENCODER_CELL_TYPE] for row in rows] == ["T cell", None, None, "B cell"]
