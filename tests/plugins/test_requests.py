"""Requests as they come over the network: both forms, every way they can be wrong, and anything at all."""

import json
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray import schema
from cellray.errors import RequestError
from cellray.ingest import GeneIndex
from cellray.plugins.requests import ARROW, JSON, RESPONSE, Limits, parse, respond
from jobs.bench.synthetic import gene_ids

N = 30
GENES = GeneIndex(
    pa.table([[f"GENE{n}" for n in range(N)], gene_ids(N), np.arange(N), np.ones(N)], schema=schema.weighted_genes()),
    schema.symbols().empty_table(),
)
LIMITS = Limits(cells=5, genes=20, min_genes=2)


def cell(*pairs, **more):
    return {"genes": [f"GENE{gene}" for gene, _ in pairs], "counts": [count for _, count in pairs], **more}


def body(*cells, **more):
    return json.dumps({"cells": list(cells), **more}).encode()


def arrow(*cells, tissue=None):
    table = pa.Table.from_pylist(list(cells))
    table = table.replace_schema_metadata({"tissue": tissue}) if tissue else table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


CELLS = [cell((1, 4), (3, 2), (1, 1), id="a"), cell((2, 1), (29, 7), id="b")]


@pytest.mark.parametrize(
    ("data", "kind"), [(body(*CELLS, tissue="liver"), f"{JSON}; charset=utf-8"), (arrow(*CELLS, tissue="liver"), ARROW)]
)
def test_both_forms_say_the_same(data, kind):
    found = parse(data, kind, GENES, LIMITS)
    assert found.tissue == "liver"
    assert found.cells.cell_ids == ["a", "b"]
    assert found.cells.reject_codes == [None, None]
    expected = np.zeros((2, N))
    expected[0, [1, 3]], expected[1, [2, 29]] = [5, 2], [1, 7]
    np.testing.assert_array_equal(found.cells.counts.toarray(), expected)


def test_ensembl_ids_are_known_too_and_names_may_be_left_out():
    ids = gene_ids(N)
    found = parse(json.dumps({"cells": [{"genes": ids[:3], "counts": [1, 2, 3]}]}).encode(), JSON, GENES, LIMITS)
    assert found.cells.cell_ids == ["cell-0"]
    assert found.tissue is None
    assert found.cells.counts.sum() == 6


def test_bad_cells_are_no_error():
    cells = [
        cell((1, 1), (2, 1)),
        cell((1, -1), (2, 1)),
        cell((1, 0.5), (2, 1)),
        cell(),
        cell((1, 3)),
    ]
    found = parse(body(*cells), JSON, GENES, LIMITS)
    assert found.cells.reject_codes == [
        None,
        "negative_count",
        "non_integer_count",
        "empty_cell",
        "too_few_genes",
    ]
    text = b'{"cells": [{"genes": ["GENE1", "GENE2"], "counts": [NaN, 1]}, {"genes": ["GENE1"], "counts": [1e300]}]}'
    assert parse(text, JSON, GENES, LIMITS).cells.reject_codes == ["not_finite", "too_few_genes"]


@pytest.mark.parametrize(
    ("data", "kind", "status", "says"),
    [
        (b"", JSON, 400, "no application/json"),
        (b"[]", JSON, 400, "dictionary"),
        (b"{", JSON, 400, "no application/json"),
        (b'{"cells": []}', JSON, 400, "no cells"),
        (b'{"cells": [{"genes": ["GENE1"]}]}', JSON, 400, "cells.0.counts"),
        (b'{"cells": [{"genes": ["GENE1"], "counts": ["x"]}]}', JSON, 400, "counts.0"),
        (b'{"cells": [{"genes": ["GENE1"], "counts": [1, 2]}]}', JSON, 400, "1 genes and 2 counts"),
        (b'{"cells": [], "prompt": "x"}', JSON, 400, "prompt"),
        (body(*CELLS * 3), JSON, 413, "6 cells"),
        (body(cell(*((gene, 1) for gene in range(21)))), JSON, 413, "21 genes"),
        (body({"genes": ["nothing"], "counts": [1]}), JSON, 422, "none of the 1 genes"),
        (body(*CELLS), "text/plain", 415, "text/plain"),
        (b"ARROW1", ARROW, 400, "no application/vnd"),
        (arrow({"genes": [1], "counts": [1.0]}), ARROW, 400, "genes"),
        (b"[" * 100_000, JSON, 400, "no application/json"),
    ],
)
def test_malformed(data, kind, status, says):
    with pytest.raises(RequestError, match=says) as caught:
        parse(data, kind, GENES, LIMITS)
    assert caught.value.status == status
    assert len(str(caught.value)) < 500


@given(st.binary(max_size=300), st.sampled_from([JSON, ARROW]))
def test_anything_at_all(data, kind):
    with pytest.raises(RequestError):
        parse(data, kind, GENES, LIMITS)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_broken_byte(at, value):
    whole = arrow(*CELLS)
    data = bytearray(whole)
    data[at % len(data)] = value
    try:
        found = parse(bytes(data), ARROW, GENES, LIMITS)
    except RequestError:
        return
    assert len(found.cells.cell_ids) <= LIMITS.cells


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["genes", "counts", "id"]), inner),
)


@given(JSON_VALUES)
def test_any_value_for_cells(value):
    with suppress(RequestError):
        parse(json.dumps({"cells": value}).encode(), JSON, GENES, LIMITS)


def test_responses():
    rows = [dict.fromkeys(RESPONSE.names) | {"id": "a", "status": "rejected"}]
    data, kind = respond(rows, "application/json")
    assert json.loads(data) == {"cells": rows}
    assert kind == JSON
    data, kind = respond(rows, f"{ARROW}, */*")
    assert pa.ipc.open_stream(data).read_all().to_pylist() == rows
    assert kind == ARROW
