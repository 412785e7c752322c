"""What CellRay adds to an AnnData file: ``obs`` columns, the embedding in ``obsm`` and the run's record in ``uns``.

Contract: works on an open, writable HDF5 file of any AnnData version and follows its on-disk specification; rows must
agree one by one with the file's ``obs``. Rejected cells get a missing label, and NaN as score, margin and embedding.
X is never touched. It writes into the file it is given only: a link in it that leads elsewhere is an error.
"""

from typing import TYPE_CHECKING

import h5py
import numpy as np
from anndata.io import write_elem

from cellray import schema
from cellray.errors import WriteError
from cellray.write.columns import embedding_blocks, embedding_width, obs_columns, record
from cellray.write.legacy import modernise

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
        _add_columns(file["obs"], results, n_cells)
    _add_embedding(_mapping(file, "obsm"), results, n_cells)
    write_elem(_mapping(file, "uns"), schema.UNS_KEY, record(results.uns))


def _mapping(file: h5py.File, name: str) -> h5py.Group:
    if name not in file:
        write_elem(file, name, {})
    return file[name]


def _add_columns(obs: h5py.Group, results: "Results", n_cells: int) -> None:
    """Replace all columns of ours in ``obs``."""
    index = obs.attrs["_index"]
    order = [name for name in obs.attrs["column-order"] if not name.startswith(schema.OBS_PREFIX)]
    for name in [name for name in obs if name.startswith(schema.OBS_PREFIX) and name != index]:
        del obs[name]
    for name, values in obs_columns(results, n_cells):
        write_elem(obs, name, values)
        order.append(name)
    obs.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())


def _length(element: h5py.Dataset | h5py.Group) -> int:
    """Return the length of an index, which is an array, a categorical or a nullable array."""
    if isinstance(element, h5py.Group):
        element = element["codes" if "codes" in element else "values"]
    return len(element)


def _add_embedding(obsm: h5py.Group, results: "Results", n_cells: int) -> None:
    """Copy the embeddings part by part."""
    key = results.embedding_key
    if key in obsm:
        del obsm[key]
    embedding = obsm.create_dataset(key, (n_cells, embedding_width(results)), np.float32)
    embedding.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for start, block in embedding_blocks(results, n_cells):
        embedding[start : start + len(block)] = block
