"""What CellRay adds to an AnnData file: ``obs`` columns, the embedding in ``obsm`` and the run's record in ``uns``.

Contract: works on an open, writable HDF5 file of any AnnData version and follows its on-disk specification; rows must
agree one by one with the file's ``obs``. Rejected cells get a missing label, and NaN as score, margin and embedding.
X is never touched. It writes into the file it is given only: a link in it that leads elsewhere is an error.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from anndata.io import write_elem

from cellray import schema, storage
from cellray.errors import WriteError
from cellray.write.legacy import modernise
from cellray.write.scores import part_width, read_part

if TYPE_CHECKING:
    from cellray.write.h5ad import Results


def annotate(file: h5py.File, results: "Results") -> None:
    """Add the results to ``file``."""
    for name in ("obs", "obsm", "uns"):
        if name in file and not isinstance(file.get(name, getlink=True), h5py.HardLink):
            msg = f"{name!r} is a link out of the file and cannot be extended; copy the dataset with anndata first"
            raise WriteError(msg)
    modernise(file)
    n_cells = _length(file["obs"][file["obs"].attrs["_index"]])
    if results.annotations_uri is not None:
        _add_columns(file["obs"], results.annotations_uri, n_cells)
    _add_embedding(_mapping(file, "obsm"), results.embedding_key, results.part_uris, n_cells)
    write_elem(_mapping(file, "uns"), schema.UNS_KEY, _record(results.uns))


def _mapping(file: h5py.File, name: str) -> h5py.Group:
    if name not in file:
        write_elem(file, name, {})
    return file[name]


def _add_columns(obs: h5py.Group, annotations_uri: str, n_obs: int) -> None:
    """Replace all columns of ours in ``obs``."""
    index = obs.attrs["_index"]
    kept = [name for name in obs.attrs["column-order"] if not name.startswith(schema.OBS_PREFIX)]
    for name in [name for name in obs if name.startswith(schema.OBS_PREFIX) and name != index]:
        del obs[name]
    with storage.open_read(annotations_uri) as stream:
        table = pq.ParquetFile(stream, read_dictionary=list(schema.OBS_COLUMNS))
        if table.metadata.num_rows != n_obs:
            msg = f"{annotations_uri} has {table.metadata.num_rows} cells, the dataset has {n_obs}"
            raise WriteError(msg)
        for name in schema.OBS_COLUMNS:
            write_elem(obs, schema.OBS_PREFIX + name, _column(table.read([name])[name]))
    order = [*kept, *(schema.OBS_PREFIX + name for name in schema.OBS_COLUMNS)]
    obs.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())


def _length(element: h5py.Dataset | h5py.Group) -> int:
    """Return the length of an index, which is an array, a categorical or a nullable array."""
    if isinstance(element, h5py.Group):
        element = element["codes" if "codes" in element else "values"]
    return len(element)


def _column(column: pa.ChunkedArray) -> Any:
    """Return floats as float32 with NaN for null, strings as a pandas categorical with sorted categories."""
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy().astype(np.float32)
    categorical = column.unify_dictionaries().to_pandas().array
    return categorical.reorder_categories(sorted(categorical.categories))


def _add_embedding(obsm: h5py.Group, key: str, part_uris: Sequence[str], n_cells: int) -> None:
    """Copy the embeddings part by part."""
    if key in obsm:
        del obsm[key]
    width = part_width(part_uris[0]) if part_uris else 0
    embedding = obsm.create_dataset(key, (n_cells, width), np.float32)
    embedding.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    n_rows = 0
    for uri in part_uris:
        part = read_part(uri, [schema.ROW, schema.EMBEDDING])
        stop = n_rows + part.num_rows
        if stop > n_cells or not np.array_equal(part[schema.ROW].to_numpy(), np.arange(n_rows, stop)):
            msg = f"part file {uri} does not hold {part.num_rows} of {n_cells} cells from row {n_rows} on in order"
            raise WriteError(msg)
        scored = part[schema.EMBEDDING].is_valid().to_numpy()
        block = np.full((part.num_rows, width), np.nan, np.float32)
        block[scored] = pc.list_flatten(part[schema.EMBEDDING]).to_numpy().reshape(-1, width)
        embedding[n_rows:stop] = block
        n_rows = stop
    if n_rows != n_cells:
        msg = f"the part files hold {n_rows} cells, the dataset has {n_cells}"
        raise WriteError(msg)


def _record(value: Any) -> Any:
    """Return ``value`` without None, which the file format cannot hold in all versions."""
    if isinstance(value, Mapping):
        return {key: _record(item) for key, item in value.items() if item is not None}
    return value
