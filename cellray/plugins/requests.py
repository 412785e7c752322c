"""Requests to label cells, as they come over the network, to judged cells; and labels back to a response.

Contract: a body is JSON or an Arrow IPC stream, of the same content; whatever is wrong with it is a ``RequestError``
with the HTTP status and one line that says what. Bad cells are no error: they come back with a reject code. Text of the
client goes nowhere but into the response's ids. It holds no model.

JSON: ``{"tissue": "liver", "cells": [{"id": "c1", "genes": ["CD3D", ...], "counts": [4, ...]}, ...]}``; ``tissue`` and
``id`` may be left out. Arrow: columns ``id`` (string), ``genes`` (list of strings), ``counts`` (list of numbers), with
``tissue`` in the schema's metadata.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import sparse

from cellray.errors import RequestError, one_line
from cellray.ingest import GeneIndex, RowBlock, Shard, judge

JSON: Final = "application/json"
ARROW: Final = "application/vnd.apache.arrow.stream"
_LONGEST_NAME = 200
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Limits:
    """Most cells of a request, genes of a cell and bytes of a body; and fewest known genes of a cell."""

    cells: int = 2000
    genes: int = 50_000
    body_bytes: int = 64 << 20
    min_genes: int = 5


@dataclass(frozen=True)
class Request:
    """Judged cells in the base's genes, the ``slots`` of the genes in the request, and the tissue if it named one."""

    tissue: str | None
    cells: Shard
    slots: np.ndarray


class _Cell(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(default=None, max_length=_LONGEST_NAME)
    genes: list[str]
    counts: list[float]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tissue: str | None = Field(default=None, max_length=_LONGEST_NAME)
    cells: list[_Cell]


def parse(body: bytes, content_type: str, genes: GeneIndex, limits: Limits) -> Request:
    """Read a request.

    Raises
    ------
    RequestError
        400 malformed, 413 too much of something, 415 another content type, 422 no gene is known.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind not in (JSON, ARROW):
        raise RequestError(415, f"content type {kind[:80]!r} is not {JSON} or {ARROW}")
    try:
        found = _of_json(body) if kind == JSON else _of_arrow(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RequestError(400, f"{where or 'body'}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError, RecursionError, OSError, pa.ArrowException) as error:
        raise RequestError(400, f"the body is no {kind}: {one_line(error)[:300]}") from error
    if not found.cells:
        raise RequestError(400, "there are no cells in the request")
    if len(found.cells) > limits.cells:
        raise RequestError(413, f"{len(found.cells):,} cells are more than the {limits.cells:,} of one request")
    return _laid_out(found, genes, limits)


def _of_json(body: bytes) -> _Body:
    return _Body.model_validate(json.loads(body))


def _of_arrow(body: bytes) -> _Body:
    table = pa.ipc.open_stream(io.BytesIO(body)).read_all()
    table.validate(full=True)  # offsets and lengths are the client's: unchecked, they are read outside of the buffers
    columns = {name: table[name].to_pylist() for name in table.column_names}
    tissue = (table.schema.metadata or {}).get(b"tissue")
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return _Body.model_validate({"tissue": tissue.decode() if tissue else None, "cells": rows})


def _laid_out(body: _Body, genes: GeneIndex, limits: Limits) -> Request:
    column: dict[str, int] = {}
    indptr, indices, values = [0], [], []
    for number, cell in enumerate(body.cells):
        if len(cell.genes) != len(cell.counts):
            text = f"cell {number}: {len(cell.genes)} genes and {len(cell.counts)} counts; give as many of both"
            raise RequestError(400, text)
        if len(cell.genes) > limits.genes:
            raise RequestError(413, f"cell {number}: {len(cell.genes):,} genes are more than {limits.genes:,}")
        indices += [column.setdefault(gene, len(column)) for gene in cell.genes]
        values += cell.counts
        indptr.append(len(indices))
    match = genes.match(list(column))
    if match.n_known == 0:
        some = ", ".join(list(column)[:3])[:100] or "none"
        raise RequestError(422, f"none of the {len(column):,} genes ({some}) is known; give symbols or Ensembl ids")
    data = np.clip(np.array(values, np.float64), -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)
    data[np.isinf(np.array(values, np.float64))] = np.inf
    counts = sparse.csr_matrix((data, np.array(indices, np.int32), indptr), shape=(len(body.cells), len(column)))
    counts.sum_duplicates()
    ids = [cell.id if cell.id is not None else f"cell-{number}" for number, cell in enumerate(body.cells)]
    shard = judge(RowBlock(0, ids, counts), match.slots, min_genes=limits.min_genes, n_slots=genes.n_genes)
    return Request(body.tissue, shard, match.slots)


def respond(rows: Sequence[dict[str, Any]], accept: str) -> tuple[bytes, str]:
    """Return body and content type: an Arrow stream for a client that accepts it, else JSON."""
    if ARROW not in accept:
        return json.dumps({"cells": list(rows)}).encode(), JSON
    table = pa.Table.from_pylist(list(rows), schema=RESPONSE)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes(), ARROW


RESPONSE: Final = pa.schema(
    [
        ("id", pa.string()),
        ("status", pa.string()),
        ("reject_code", pa.string()),
        ("tissue", pa.string()),
        ("label", pa.string()),
        ("ontology_id", pa.string()),
        ("score", pa.float32()),
        ("doubtful", pa.bool_()),
        ("plugin", pa.string()),
    ]
)
"""Columns of a response, one row a cell in the request's order; ``doubtful``: the score is below the threshold."""
