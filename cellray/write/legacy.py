"""Layouts of older AnnData versions, brought to today's where CellRay has to add something.

Contract: after ``modernise`` the file's ``obs`` is a dataframe of encoding version 0.2.0 and ``obsm`` a group, with
the same content. ``var`` is rewritten only beside a compound ``obs`` (anndata before 0.7), since readers treat the
two as one. X and the rest stay.
"""

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem

_DATAFRAME_VERSION = "0.2.0"


def modernise(file: h5py.File) -> None:
    """Rewrite what cannot be extended in place."""
    if isinstance(file["obs"], h5py.Dataset):
        for axis in ("obs", "var"):
            if isinstance(file[axis], h5py.Dataset):
                _replace(file, axis, _from_records(file, axis))
    elif file["obs"].attrs.get("encoding-version") != _DATAFRAME_VERSION:
        _replace(file, "obs", read_elem(file["obs"]))
    if isinstance(file.get("obsm"), h5py.Dataset):
        records = file["obsm"][()]
        _replace(file, "obsm", {name: records[name] for name in records.dtype.names})


def _replace(file: h5py.File, name: str, value: object) -> None:
    del file[name]
    write_elem(file, name, value)


def _from_records(file: h5py.File, axis: str) -> pd.DataFrame:
    """Read a compound table: its first field is the index, and ``uns`` holds the categories of coded columns."""
    records = file[axis][()]
    frame = pd.DataFrame({name: _decoded(records[name]) for name in records.dtype.names})
    for name in frame.columns[1:]:
        stored = file.get(f"uns/{name}_categories")
        if stored is None or not np.issubdtype(frame[name].dtype, np.integer):
            continue
        categories = _decoded(np.atleast_1d(stored[()]))
        if frame[name].max() < len(categories):  # else they are the other axis's
            frame[name] = pd.Categorical.from_codes(frame[name], categories)
    return frame.set_index(frame.columns[0])


def _decoded(values: np.ndarray) -> np.ndarray:
    """Return byte strings as text and anything else as it is."""
    if values.dtype.kind in "SO":
        return np.array([value.decode() if isinstance(value, bytes) else value for value in values], dtype=object)
    return values
