"""HDF5 files on disks that may fill up, and matrices streamed into them.

Contract: ``open_hdf5`` raises the disk's error once, as ``OSError``, with the file closed. HDF5 alone does not
survive a failed write: it cannot close the file any more, and crashes the process later. So it never gets to see one.
It does not know what is in the files; ``COMPRESSION`` is for whatever is written in chunks.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np
import scipy.sparse as sp

from cellray.errors import WriteError

COMPRESSION: Final = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
_CHUNK: Final = 1 << 17


class _Disk(io.FileIO):
    """A file that keeps the first error of writing for later and drops what is written after it.

    HDF5 reads back some of what it wrote; what was dropped reads as zeros, which are valid empty references.
    """

    error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        n_read = super().readinto(view)
        view[n_read:] = bytes(len(view) - n_read)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        try:
            while self.error is None and written < len(view):
                written += super().write(view[written:])
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


@contextmanager
def open_hdf5(path: Path, mode: Literal["r+", "w"]) -> Iterator[h5py.File]:
    """Open an existing file as HDF5, as it is (``r+``) or emptied (``w``).

    Raises
    ------
    OSError
        If the file is not HDF5, or on leaving, if the disk did not take all that was written.
    """
    with _Disk(path, "r+") as disk:
        try:
            with h5py.File(disk, mode) as file:
                yield file
        finally:
            if disk.error is not None:
                raise disk.error


def copy_group(source: Path, group: str, target: Path) -> None:
    """Make the ``group`` of one HDF5 file all of another, attributes too; links out of it stay links."""
    with h5py.File(source, "r") as whole, open_hdf5(target, "w") as file:
        file.attrs.update(whole[group].attrs)
        for name in whole[group]:
            whole.copy(whole[f"{group}/{name}"], file, name)


def write_csr(file: h5py.File, blocks: Iterable[sp.csr_matrix], n_columns: int) -> int:
    """Stream row blocks of ``n_columns`` into ``X``; return the number of rows."""
    group = file.create_group("X")
    data, indices = (
        group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(_CHUNK,), **COMPRESSION)
        for name, dtype in (("data", np.float32), ("indices", np.int32))
    )
    ends = [np.zeros(1, np.int64)]
    for block in blocks:
        if block.shape[1] != n_columns:
            msg = f"a block of counts has {block.shape[1]} genes, var has {n_columns}"
            raise WriteError(msg)
        start = len(data)
        for dataset, values in ((data, block.data), (indices, block.indices)):
            dataset.resize((start + block.nnz,))
            dataset[start:] = values[: block.nnz]
        ends.append(start + block.indptr[1:].astype(np.int64))
    indptr = np.concatenate(ends)
    group.create_dataset("indptr", data=indptr)
    n_rows = len(indptr) - 1
    shape = np.array((n_rows, n_columns))
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    return n_rows
