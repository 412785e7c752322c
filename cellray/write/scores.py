"""Part files: the encoder's scores of one shard, one Parquet file each.

Contract: the name of a part is a pure function of the dataset's content, the row range and everything that changes a
score, and its bytes are a pure function of the table and the labels, so that doing a shard again changes nothing. A
part is published whole or not at all. This module does not decide which shards there are, nor which of them are done.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.errors import ReadError, WriteError, boundary

_LABELS_KEY: Final = b"labels"


def part_name(content_hash: str, start: int, stop: int, scoring_key: str) -> str:
    """Return the file name of the part that holds cells ``start`` to ``stop`` (exclusive); names sort by ``start``."""
    identity = "\0".join([content_hash, str(start), str(stop), scoring_key])
    return f"part-{start:010d}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.parquet"


def write_part(uri: str, table: pa.Table, labels: Sequence[str]) -> str:
    """Write one part and return the SHA-256 of its bytes (64 hex digits).

    Parameters
    ----------
    uri
        Where to; an existing file is replaced.
    table
        Cells of one shard, ``schema.scores(width)``, in the input's order; without labels ``schema.embeddings(width)``.
    labels
        Names of the c labels, in the order of the probabilities; none of a run that embeds only.

    Raises
    ------
    WriteError
        If the table has other columns, a scored cell lacks an embedding or c finite probabilities, a rejected cell
        has any, or the file cannot be written.
    """
    _check(uri, table, len(labels))
    metadata = {_LABELS_KEY: json.dumps(list(labels)).encode()}
    with boundary(WriteError, f"part file {uri}"), storage.writing(uri) as local:
        pq.write_table(
            table.combine_chunks().replace_schema_metadata(metadata),
            local,
            row_group_size=max(table.num_rows, 1),
            compression="zstd",
            use_dictionary=[schema.REJECT_CODE],
        )
        with local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a part, or the named columns of it."""
    with boundary(ReadError, f"part file {uri}", KeyError), storage.open_read(uri) as file:
        return pq.read_table(file, columns=None if columns is None else list(columns))


def part_labels(uri: str) -> list[str]:
    """Return the label names of a part, in the order of its probabilities."""
    with boundary(ReadError, f"part file {uri}", KeyError), storage.open_read(uri) as file:
        return json.loads(pq.read_schema(file).metadata[_LABELS_KEY])


def part_width(uri: str) -> int:
    """Return the width of a part's embeddings."""
    with boundary(ReadError, f"part file {uri}", KeyError), storage.open_read(uri) as file:
        return pq.read_schema(file).field(schema.EMBEDDING).type.list_size


def _check(uri: str, table: pa.Table, n_labels: int) -> None:
    known = schema.EMBEDDING in table.schema.names
    width = getattr(table.schema.field(schema.EMBEDDING).type, "list_size", 0) if known else 0
    if not table.schema.equals(schema.scores(width) if n_labels else schema.embeddings(width)):
        msg = f"part file {uri}: columns are {table.schema.names} of other names or types than the scores schema"
        raise WriteError(msg)
    scored = table[schema.REJECT_CODE].is_null()
    for name in (schema.PROBABILITIES, schema.EMBEDDING)[0 if n_labels else 1 :]:
        wrong = pc.equal(table[name].is_null(), scored)
        if pc.any(wrong).as_py():
            cell = table[schema.CELL_ID].filter(wrong)[0]
            msg = f"part file {uri}: cell {cell} must have {name} if and only if it is not rejected"
            raise WriteError(msg)
    if not n_labels:
        return
    lengths = pc.unique(pc.list_value_length(table[schema.PROBABILITIES]).drop_null()).to_pylist()
    if lengths not in ([], [n_labels]):
        msg = f"part file {uri}: probability lists of length {sorted(lengths)} for {n_labels} labels"
        raise WriteError(msg)
    if not pc.all(pc.is_finite(pc.list_flatten(table[schema.PROBABILITIES])), min_count=0).as_py():
        msg = f"part file {uri}: probabilities are not all finite"
        raise WriteError(msg)
