"""What a run adds to an AnnData, piece by piece, for a file as for an object in memory.

Contract: ``obs_columns`` and ``embedding_blocks`` yield the same values wherever they go, in the input's order, and
check that there is one row a cell. Rejected cells get a missing label, and NaN as score, margin and embedding. Memory
is one column, or one part. Nothing is written here.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.errors import WriteError
from cellray.write.scores import part_width, read_part

if TYPE_CHECKING:
    from cellray.write.h5ad import Results


def obs_columns(results: "Results", n_cells: int) -> Iterator[tuple[str, Any]]:
    """Yield name and values of every column of ours in ``obs``: float32 arrays and pandas categoricals."""
    if results.annotations_uri is None:
        return
    with storage.open_read(results.annotations_uri) as stream:
        table = pq.ParquetFile(stream, read_dictionary=list(schema.OBS_COLUMNS))
        if table.metadata.num_rows != n_cells:
            msg = f"{results.annotations_uri} has {table.metadata.num_rows} cells, the dataset has {n_cells}"
            raise WriteError(msg)
        for name in schema.OBS_COLUMNS:
            yield schema.OBS_PREFIX + name, _column(table.read([name])[name])
    if results.clusters is not None:
        for name, values in results.clusters.columns().items():
            yield schema.OBS_PREFIX + name, values


def embedding_width(results: "Results") -> int:
    """Return the width of the embedding."""
    return part_width(results.part_uris[0]) if results.part_uris else 0


def embedding_blocks(results: "Results", n_cells: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the embedding part by part: first row, and (rows, width) float32."""
    width, n_rows = embedding_width(results), 0
    for uri in results.part_uris:
        part = read_part(uri, [schema.ROW, schema.EMBEDDING])
        stop = n_rows + part.num_rows
        if stop > n_cells or not np.array_equal(part[schema.ROW].to_numpy(), np.arange(n_rows, stop)):
            msg = f"part file {uri} does not hold {part.num_rows} of {n_cells} cells from row {n_rows} on in order"
            raise WriteError(msg)
        scored = part[schema.EMBEDDING].is_valid().to_numpy()
        block = np.full((part.num_rows, width), np.nan, np.float32)
        block[scored] = pc.list_flatten(part[schema.EMBEDDING]).to_numpy().reshape(-1, width)
        yield n_rows, block
        n_rows = stop
    if n_rows != n_cells:
        msg = f"the part files hold {n_rows} cells, the dataset has {n_cells}"
        raise WriteError(msg)


def record(value: Any) -> Any:
    """Return ``value`` without None, which the file format cannot hold in all versions."""
    if isinstance(value, Mapping):
        return {key: record(item) for key, item in value.items() if item is not None}
    return value


def _column(column: pa.ChunkedArray) -> Any:
    """Return floats as float32 with NaN for null, strings as a pandas categorical with sorted categories."""
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy().astype(np.float32)
    categorical = column.unify_dictionaries().to_pandas().array
    return categorical.reorder_categories(sorted(categorical.categories))
