"""Part files: same content, same bytes; wrong content is refused."""

import hashlib
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray import schema, storage, write
from cellray.errors import ReadError, WriteError

LABELS = ["B cell", "T cell", "monocyte"]
MakePart = Callable[..., pa.Table]

identities = st.tuples(st.text(max_size=4), st.integers(0, 30), st.integers(0, 30), st.text(max_size=4))


@given(identities, identities)
def test_name_stands_for_content_rows_and_settings(
    one: tuple[str, int, int, str], two: tuple[str, int, int, str]
) -> None:
    assert re.fullmatch(rf"part-{one[1]:010d}-[0-9a-f]{{12}}\.parquet", write.part_name(*one))
    assert storage.join("/out", write.part_name(*one))
    if "\0" not in one[0] + one[3] + two[0] + two[3]:  # keys and hashes are hexadecimal
        assert (write.part_name(*one) == write.part_name(*two)) == (one == two)


def test_round_trip(root: str, make_part: MakePart) -> None:
    part = make_part(np.array([True, False, True]), start=8192)
    uri = storage.join(root, "part.parquet")
    digest = write.write_part(uri, part, LABELS)
    assert digest == hashlib.sha256(storage.read_bytes(uri)).hexdigest()
    assert write.part_labels(uri) == LABELS
    again = write.read_part(uri)
    assert again.schema.equals(schema.scores())
    assert again.equals(part)
    assert write.read_part(uri, [schema.CELL_ID]).to_pydict() == {
        schema.CELL_ID: ["cell-8192", "cell-8193", "cell-8194"]
    }


@given(st.lists(st.booleans(), max_size=40), st.lists(st.integers(0, 40), max_size=4))
def test_bytes_depend_on_the_content_only(
    tmp_path_factory: pytest.TempPathFactory, make_part: MakePart, scored: list[bool], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    part = make_part(np.array(scored, bool))
    edges = sorted({0, len(scored), *(min(cut, len(scored)) for cut in cuts)})
    padded = pa.concat_tables([make_part(np.ones(3, bool)), part]).combine_chunks()[3:]  # the same rows at an offset
    chunked = pa.concat_tables([padded[i:j] for i, j in pairwise(edges)] or [padded])
    uris = [str(folder / name) for name in ("one", "two")]
    assert write.write_part(uris[0], part, LABELS) == write.write_part(uris[1], chunked, LABELS)
    assert write.read_part(uris[1]).equals(part)
    assert pq.ParquetFile(uris[1]).num_row_groups <= 1


def test_chunks_do_not_show_in_a_large_part(tmp_path: Path, make_part: MakePart) -> None:
    part = make_part(np.arange(5000) % 9 > 0)
    chunked = pa.concat_tables([part[start : start + 700] for start in range(0, 5000, 700)])
    assert write.write_part(str(tmp_path / "a"), part, LABELS) == write.write_part(str(tmp_path / "b"), chunked, LABELS)


def replaced(part: pa.Table, name: str, values: list[object]) -> pa.Table:
    index = part.schema.get_field_index(name)
    return part.set_column(index, part.schema.field(name), pa.array(values, part.schema.field(name).type))


def test_wrong_tables_are_refused(tmp_path: Path, make_part: MakePart) -> None:
    uri = str(tmp_path / "part.parquet")
    part = make_part(np.array([True, False]))
    probabilities = part[schema.PROBABILITIES].to_pylist()
    embedding = part[schema.EMBEDDING].to_pylist()[0]
    wrong = {
        "lists of length": replaced(part, schema.PROBABILITIES, [[0.5, 0.5], None]),
        "not all finite": replaced(part, schema.PROBABILITIES, [[0.5, float("nan"), 0.5], None]),
        "cell cell-0 must have probabilities": replaced(part, schema.PROBABILITIES, [None, None]),
        "cell cell-1 must have probabilities": replaced(part, schema.PROBABILITIES, [probabilities[0]] * 2),
        "cell cell-1 must have embedding": replaced(part, schema.EMBEDDING, [embedding, embedding]),
        "other names or types": part.drop_columns([schema.N_GENES]),
    }
    for message, table in wrong.items():
        with pytest.raises(WriteError, match=message):
            write.write_part(uri, table, LABELS)
    assert list(tmp_path.iterdir()) == []


def test_damaged_part_is_a_read_error(tmp_path: Path, make_part: MakePart) -> None:
    uri = tmp_path / "part.parquet"
    write.write_part(str(uri), make_part(np.ones(50, bool)), LABELS)
    uri.write_bytes(uri.read_bytes()[:-100])
    for read in (write.read_part, write.part_labels):
        with pytest.raises(ReadError, match=r"part file .*part\.parquet: "):
            read(str(uri))
    with pytest.raises(ReadError, match="none"):
        write.read_part(str(tmp_path / "none"))
