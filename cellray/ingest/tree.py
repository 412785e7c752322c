"""HDF5 files and Zarr stores as one kind of tree: open, walk, read strings.

Contract: a *group* is an ``h5py.Group`` or a ``zarr.Group``, an *array* an ``h5py.Dataset`` or a ``zarr.Array``; both
answer to the same few calls, so a reader is written once. ``reading`` turns whatever a damaged file makes the
libraries raise into one ``ReadError``; an error of another class that our own code raises is a bug and stays what it
is. Links that leave an HDF5 file are not followed: a dataset must not read other files of this machine. It knows
nothing of AnnData or 10x.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from cellray import storage
from cellray.errors import ReadError, one_line

Group = Any
Array = Any

MAX_STRINGS = 4_000_000

_FORMAT = (OSError, EOFError, ValueError, MemoryError, zlib.error, BadZipFile)
_FORMAT_IN_LIBRARIES = (LookupError, TypeError, RuntimeError, ArithmeticError, AttributeError)
_PACKAGE = str(Path(__file__).parents[1])
_FILTERS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2"}


class RefusedError(ValueError):
    """What stands in the way is no damage; the message says what it is and ends with the way out."""


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Make the errors of file formats, ours (``ValueError``) and the libraries', a ``ReadError`` naming ``uri``."""
    try:
        with storage.network_errors():
            yield
    except RefusedError as error:
        msg = f"{uri}: {one_line(error)}"
        raise ReadError(msg) from error
    except (*_FORMAT, *_FORMAT_IN_LIBRARIES) as error:
        if isinstance(error, _FORMAT_IN_LIBRARIES) and _raised_by_us(error):
            raise
        msg = f"{uri}: {one_line(error)}; it is damaged or not what its name says, fetch or write it again"
        raise ReadError(msg) from error


def _raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame of the error's trace is code of this package: a bug, not a damaged file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)


@contextmanager
def open_hdf5(uri: str) -> Iterator[Group]:
    """Open an HDF5 file for reading: by path when local, else through the object store's file."""
    import h5py

    with suppress(ImportError):
        import hdf5plugin  # noqa: F401 - registers the filters it brings

    if storage.is_local(uri):
        with h5py.File(storage.filesystem(uri)[1], "r") as root:
            yield root
    else:
        with storage.open_read(uri) as file, h5py.File(file, "r") as root:
            yield root


@contextmanager
def open_zarr(uri: str) -> Iterator[Group]:
    """Open a Zarr store (format 2 or 3) for reading."""
    import zarr
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    if storage.is_local(uri):
        yield zarr.open_group(storage.filesystem(uri)[1], mode="r")
    else:
        # Zarr wants an asynchronous file system; ours, wrapped, closes its connections itself.
        fs, path = storage.filesystem(uri)
        store = zarr.storage.FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=path, read_only=True)
        yield zarr.open_group(store, mode="r")


@contextmanager
def open_zarr_zip(uri: str) -> Iterator[Group]:
    """Open a Zarr store inside a zip archive, at its top or in its one folder, for reading."""
    import zipfile

    import zarr

    with storage.local_copy(uri) as path:
        with zipfile.ZipFile(path) as archive:
            root = zarr_root(archive.namelist())
        with zarr.storage.ZipStore(path, mode="r") as store:
            yield zarr.open_group(store, path=root or "", mode="r")


def zarr_root(names: list[str]) -> str | None:
    """Return the folder inside a zip archive that is a Zarr store (``""`` for its top), None if there is none."""
    roots = [name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in (".zgroup", "zarr.json")]
    top = min(roots, key=lambda root: (len(root.split("/")) if root else 0, root), default=None)
    return None if top is None or "/" in top else top


def is_group(node: Any) -> bool:
    """Whether ``node`` is a group, not an array."""
    return not hasattr(node, "shape")


def find(group: Group, path: str) -> Any | None:
    """Return the node at ``path`` below ``group``, or None if it or a group on the way is not there (or holds nothing).

    Raises
    ------
    ValueError
        If the node or its data lie outside the HDF5 file.
    RefusedError
        If its values are compressed by an HDF5 filter that is not installed.
    """
    import h5py

    node = group
    for name in path.split("/"):
        if not is_group(node) or name not in node:
            return None
        if isinstance(node, h5py.Group) and isinstance(node.get(name, getlink=True), h5py.ExternalLink):
            msg = f"{path} is a link to another file"
            raise ValueError(msg)
        node = node[name]
    if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual):
        msg = f"{path} keeps its data in another file"
        raise ValueError(msg)
    if isinstance(node, h5py.Dataset):
        _check_filters(node, path)
    return None if attribute(node, "encoding-type") == "null" else node


def _check_filters(node: Any, path: str) -> None:
    """Refuse a dataset that was compressed by a filter which is not there to read it."""
    import h5py

    properties = node.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code = properties.get_filter(number)[0]
        if not h5py.h5z.filter_avail(code):
            name = _FILTERS.get(code, "unknown")
            msg = (
                f"{path!r} is compressed by the HDF5 filter {name} ({code}), which is not installed; "
                "run pip install hdf5plugin, or write the file again with compression='gzip'"
            )
            raise RefusedError(msg)


def need(group: Group, path: str) -> Any:
    """Return the node at ``path``; a missing one is a ``ValueError``."""
    node = find(group, path)
    if node is None:
        msg = f"{path!r} is missing"
        raise ValueError(msg)
    return node


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return an attribute, text always as ``str``."""
    value = node.attrs.get(name, default)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def is_text(node: Any) -> bool:
    """Whether ``node`` holds text: a string array, or a categorical or nullable one of strings."""
    if is_group(node):
        return any(inner is not None and is_text(inner) for inner in (find(node, "categories"), find(node, "values")))
    return node.dtype.kind in "OSTU"


def strings(node: Any, start: int = 0, stop: int | None = None) -> list[str]:
    """Return elements ``start`` to ``stop`` as text; a missing value is the empty string, bad UTF-8 is replaced.

    ``node`` is an array, or a group in AnnData's categorical (``codes``, ``categories``) or nullable (``values``,
    ``mask``) form.
    """
    if stop is None:
        stop = length(node)
        if stop > MAX_STRINGS:
            msg = f"{node.name} holds {stop:,} names (at most {MAX_STRINGS:,})"
            raise ValueError(msg)
    if not is_group(node):
        return decode(node[start:stop])
    if find(node, "categories") is not None:
        return take(strings(need(node, "categories")), need(node, "codes")[start:stop])
    values = strings(need(node, "values"), start, stop)
    missing = need(node, "mask")[start:stop]
    return ["" if gone else value for value, gone in zip(values, missing, strict=True)]


def take(categories: list[str], codes: np.ndarray) -> list[str]:
    """Return the category of each code; a negative code is a missing value, the empty string."""
    return ["" if code < 0 else categories[code] for code in codes.tolist()]


def decode(values: Any) -> list[str]:
    """Return an array of bytes, strings or numbers as a list of text."""
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]


def length(node: Any) -> int:
    """Return the number of elements of what ``strings`` reads."""
    if is_group(node):
        node = need(node, "values" if find(node, "codes") is None else "codes")
    if len(node.shape) != 1:
        msg = f"{node.name} has {len(node.shape)} dimensions, not 1"
        raise ValueError(msg)
    return int(node.shape[0])
