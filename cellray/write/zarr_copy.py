"""A ``.zarr`` AnnData store copied into an HDF5 file, array by array and chunk by chunk.

Contract: the two on-disk specifications name the same groups, arrays and attributes, so that the tree is copied as it
is; what differs is how strings are stored. Memory is bounded by one zarr chunk. Records and dataframes of old
versions, which are small and stored otherwise, go through anndata. It does not interpret the content.
"""

import itertools
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from anndata.io import read_elem, write_elem

from cellray.write.hdf5 import COMPRESSION


def copy_store(source: Path, target: h5py.Group) -> None:
    """Copy the zarr store (format 2 or 3) in folder ``source``, or in a zip archive, into ``target``."""
    with ExitStack() as stack:
        store: Any = source
        root = ""
        if source.is_file():
            root = _root_in(source)
            store = stack.enter_context(zarr.storage.ZipStore(source, mode="r"))
        # Consolidated metadata are a copy that may be older than the store.
        _copy_group(zarr.open_group(store, path=root, mode="r", use_consolidated=False), target)


def _root_in(archive: Path) -> str:
    """Return the folder of a zip archive that is the store: the one nearest to its top."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.rpartition("/")[2] in (".zgroup", "zarr.json")]
    folders = [name.rpartition("/")[0] for name in names]
    return min(folders, key=lambda folder: (folder != "", folder.count("/"), folder), default="")


def _copy_group(source: zarr.Group, target: h5py.Group) -> None:
    target.attrs.update({name: _attribute(value) for name, value in source.attrs.asdict().items()})
    for name, member in source.members():
        if _needs_anndata(member):
            write_elem(target, name, read_elem(member))
        elif isinstance(member, zarr.Group):
            _copy_group(member, target.create_group(name))
        else:
            _copy_array(member, target, name)


def _needs_anndata(member: zarr.Group | zarr.Array) -> bool:
    encoding = (member.attrs.get("encoding-type"), member.attrs.get("encoding-version"))
    return encoding[0] == "rec-array" or encoding == ("dataframe", "0.1.0")


def _copy_array(source: zarr.Array, target: h5py.Group, name: str) -> None:
    text = source.dtype.kind in "TOU"
    dtype = h5py.string_dtype() if text else source.dtype
    layout: dict[str, Any] = {}
    if source.nchunks > 1:
        layout = {"chunks": tuple(map(min, source.chunks, source.shape)), **COMPRESSION}
    dataset = target.create_dataset(name, source.shape, dtype, **layout)
    dataset.attrs.update({key: _attribute(value) for key, value in source.attrs.asdict().items()})
    starts = (range(0, length, chunk) for length, chunk in zip(source.shape, source.chunks, strict=True))
    for corner in itertools.product(*starts):
        block = tuple(slice(start, start + chunk) for start, chunk in zip(corner, source.chunks, strict=True))
        values = np.asarray(source[block])
        dataset[block] = values.astype(object) if text else values


def _attribute(value: Any) -> Any:
    """Return a JSON attribute as the HDF5 attribute that anndata writes for it."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return np.array(value, dtype=h5py.string_dtype())
    return value
