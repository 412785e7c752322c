"""What the user points at, made into a list of datasets.

Contract: each input is a path, a glob or an ``s3://`` URI (glob or not) of an ``.h5ad`` file, a ``.zarr`` folder, a
10x ``.h5`` file or a folder with ``matrix.mtx[.gz]``. The result keeps the order of the inputs, a glob's hits sorted,
each URI once and each with an id that is safe as a file name and unique in the list. Only names are looked at: no
dataset is opened.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

import fsspec

from cellray import storage
from cellray.errors import InputError, one_line

Kind = Literal["h5ad", "zarr", "10x_h5", "10x_mtx"]

_KNOWN = "an .h5ad file, a .zarr folder, a 10x .h5 file or a folder with matrix.mtx[.gz]"
_FILE_KINDS: dict[str, Kind] = {".h5ad": "h5ad", ".h5": "10x_h5"}
_ID_LENGTH = 128 - len("-12345678")


@dataclass(frozen=True)
class DatasetSource:
    """One dataset: its absolute path or URI, the format it is in, and the id its outputs are named by."""

    uri: str
    kind: Kind
    dataset_id: str


def find_sources(inputs: Sequence[str]) -> list[DatasetSource]:
    """Resolve ``inputs`` to datasets.

    Raises
    ------
    InputError
        If an input does not exist, matches nothing or is of no known kind.
    """
    found: dict[str, DatasetSource] = {}
    for text in inputs:
        try:
            with storage.network_errors():
                found.update((source.uri, source) for source in _resolve(text))
        except (OSError, ValueError) as error:
            msg = f"input {text!r}: {one_line(error)}"
            raise InputError(msg) from error
    used = Counter(source.dataset_id for source in found.values())
    return [_distinct(source) if used[source.dataset_id] > 1 else source for source in found.values()]


def _distinct(source: DatasetSource) -> DatasetSource:
    digest = hashlib.sha256(source.uri.encode()).hexdigest()[:8]
    return replace(source, dataset_id=f"{source.dataset_id}-{digest}")


def _resolve(text: str) -> Iterator[DatasetSource]:
    fs, path = storage.filesystem(text)
    local = storage.is_local(text)
    path, prefix = (os.path.normpath(path), "") if local else (path.rstrip("/"), f"{storage.scheme(text)}://")
    paths = [path]
    if re.search(r"[*?\[]", path) and not fs.exists(path):
        paths = sorted(fs.glob(path))
        if not paths:
            msg = f"input {text!r}: nothing matches; check the pattern"
            raise InputError(msg)
    for name in paths:
        yield DatasetSource(prefix + name, _kind(fs, name, prefix + name), _dataset_id(name))


def _kind(fs: fsspec.AbstractFileSystem, path: str, uri: str) -> Kind:
    suffix = PurePosixPath(path).suffix
    if fs.isfile(path):
        if suffix in _FILE_KINDS:
            return _FILE_KINDS[suffix]
        msg = f"input {uri!r}: suffix {suffix!r} is not known; give {_KNOWN}"
        raise InputError(msg)
    if not fs.isdir(path):
        msg = f"input {uri!r}: no such file or folder; check the path"
        raise InputError(msg)
    if suffix == ".zarr":
        return "zarr"
    if any(fs.exists(f"{path}/{name}") for name in ("matrix.mtx", "matrix.mtx.gz")):
        return "10x_mtx"
    msg = f"input {uri!r}: a folder without matrix.mtx[.gz]; give its files instead, for example '{uri}/*.h5ad'"
    raise InputError(msg)


def _dataset_id(path: str) -> str:
    name = PurePosixPath(path).name
    for suffix in (*_FILE_KINDS, ".zarr"):
        name = name.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:_ID_LENGTH] or "dataset"
