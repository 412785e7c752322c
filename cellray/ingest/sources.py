"""What the user points at, made into a list of datasets.

Contract: each input is a path, a glob or an ``s3://`` URI (glob or not) of a file or folder in one of the formats of
``cellray.ingest.formats``; a folder with several Matrix Market files is several datasets. The result keeps the order of
the inputs, a glob's hits sorted, each URI once and each with an id that is safe as a file name and unique in the list.

An id is the first part of the path, from its end, that is not a name which every run of a pipeline has
(``filtered_feature_bc_matrix.h5``, ``outs``); it depends on nothing but the path. Only inputs that would have the same
id get the folders that tell them apart in front. Matrices are not read here.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import fsspec

from cellray import storage
from cellray.errors import InputError, one_line
from cellray.ingest import tree
from cellray.ingest.formats import KNOWN, Kind, file_kind
from cellray.ingest.market_files import MarketFiles, find_markets

_ID_LENGTH = 128 - len("-12345678")
_SNIFFERS = 8
_PACKED = (".gz", ".zip")
_SUFFIXES = (".h5ad", ".h5mu", ".hdf5", ".h5", ".zarr", ".loom", ".mtx", ".csv", ".tsv", ".txt", ".tab", ".gct")
_USUAL = (
    r"(sample_)?(filtered|raw|unfiltered)([_.-](feature|gene|peak)[_.-]bc[_.-](matrix|matrices))?([_.-]h5)?"
    r"|(cell_)?(feature|gene)_(cell_|bc_)?matri(x|ces)|matri(x|ces)|quants(_mat)?|counts_(un)?filtered|count_matrix"
    r"|dge(_(un)?filtered)?|cells_x_genes([._](mature|nascent|ambiguous|total))?"
)
_USUAL_NAME = re.compile(_USUAL, re.IGNORECASE)
_USUAL_FOLDER = re.compile(
    _USUAL + r"|outs?|outputs?|count|per_sample_outs|multi|solo\.out|gene(full)?(_ex50pas|_exonoverintron)?"
    r"|velocyto|alevin|af_quant|hg19|hg38|mm10|grch3[78]",
    re.IGNORECASE,
)
_MOST_SHOWN = 3
_DEPTH = 4


@dataclass(frozen=True)
class DatasetSource:
    """One dataset.

    Attributes
    ----------
    uri
        Absolute path or URI of its file or folder.
    kind
        The format it is in.
    dataset_id
        What its outputs are named by.
    files
        Of a Matrix Market dataset: (role, URI) of its matrix and name tables; empty where the folder says.
    genome
        Which genome the user wants of a file with several; None: the human one.
    """

    uri: str
    kind: Kind
    dataset_id: str
    files: tuple[tuple[str, str], ...] = ()
    genome: str | None = None

    def content_hash(self) -> str:
        """Return 64 hex digits that change when the content of the dataset's files does."""
        if not self.files:
            return storage.content_hash(self.uri)
        digest = hashlib.sha256()
        for role, uri in self.files:
            digest.update(f"{role}\0{storage.content_hash(uri)}\n".encode())
        return digest.hexdigest()


def find_sources(inputs: Sequence[str], genome: str | None = None) -> list[DatasetSource]:
    """Resolve ``inputs`` to datasets.

    Parameters
    ----------
    inputs
        Paths, globs and URIs.
    genome
        Noted in each dataset, for files with several genomes.

    Raises
    ------
    InputError
        If an input does not exist, matches nothing or is of no known format.
    """
    found: dict[str, DatasetSource] = {}
    with ThreadPoolExecutor(_SNIFFERS) as pool:
        for text in inputs:
            try:
                with storage.network_errors():
                    fs, prefix, paths = _paths(text)
                    for sources in pool.map(lambda path, fs=fs, prefix=prefix: _datasets(fs, path, prefix), paths):
                        found.update((source.uri, source) for source in sources)
            except (OSError, ValueError) as error:
                msg = f"input {text!r}: {one_line(error)}"
                raise InputError(msg) from error
    return [replace(source, genome=genome) for source in _told_apart(list(found.values()))]


def _paths(text: str) -> tuple[fsspec.AbstractFileSystem, str, list[str]]:
    """Return the file system of an input, what stands before its paths in a URI, and the paths."""
    fs, path = storage.filesystem(text)
    local = storage.is_local(text)
    path, prefix = (os.path.normpath(path), "") if local else (path.rstrip("/"), f"{storage.scheme(text)}://")
    if not re.search(r"[*?\[]", path) or fs.exists(path):
        return fs, prefix, [path]
    paths = sorted(fs.glob(path))
    if not paths:
        msg = f"input {text!r}: nothing matches; check the pattern"
        raise InputError(msg)
    return fs, prefix, paths


def _datasets(fs: fsspec.AbstractFileSystem, path: str, prefix: str) -> list[DatasetSource]:
    """Return the datasets of one file or folder."""
    uri = prefix + path
    if fs.isfile(path):
        kind = file_kind(fs, path, uri)
        if kind == "10x_mtx":
            return [_single_market(path, prefix)]
        return [DatasetSource(uri, kind, _dataset_id(path))]
    if not fs.isdir(path):
        msg = f"input {uri!r}: no such file or folder; check the path"
        raise InputError(msg)
    names = storage.list_files(uri)
    if path.endswith(".zarr") or not {".zgroup", "zarr.json"}.isdisjoint(names):
        return [DatasetSource(uri, "zarr", _dataset_id(path, folder=True))]
    if any(name.lower().removesuffix(".gz").endswith(".mtx") for name in names):
        return _markets(path, prefix, names)
    raise InputError(_nothing_read(fs, path, uri))


def _markets(path: str, prefix: str, names: Sequence[str]) -> list[DatasetSource]:
    """Return the Matrix Market datasets of a folder."""
    uri = prefix + path
    try:
        markets = find_markets(names)
    except tree.RefusedError as error:
        if sum(".mtx" in name.lower() for name in names) > 1:
            msg = f"input {uri!r}: {one_line(error)}"
            raise InputError(msg) from error
        # What is missing is said when the dataset is read, which then fails alone.
        return [DatasetSource(uri, "10x_mtx", _dataset_id(path, folder=True))]
    whole = len(markets) == 1 and not markets[0].prefix
    return [_market(path, prefix, market, uri if whole else _child(uri, market.matrix)) for market in markets]


def _single_market(path: str, prefix: str) -> DatasetSource:
    """Return the dataset of one Matrix Market file, its name tables being in the same folder."""
    folder, _, name = path.rpartition("/")
    uri = prefix + path
    try:
        (market,) = find_markets(storage.list_files(prefix + folder), matrix=name)
    except tree.RefusedError as error:
        msg = f"input {uri!r}: {one_line(error)}"
        raise InputError(msg) from error
    return _market(folder, prefix, market, uri)


def _market(folder: str, prefix: str, market: MarketFiles, uri: str) -> DatasetSource:
    files = tuple((role, _child(prefix + folder, name)) for role, name in market.roles())
    where = f"{folder}/{market.prefix.rstrip('._- ')}" if market.prefix else folder
    return DatasetSource(uri, "10x_mtx", _dataset_id(where, folder=True), files)


def _nothing_read(fs: fsspec.AbstractFileSystem, path: str, uri: str) -> str:
    """Return why a folder is no dataset, and which of the files below it are some."""
    likely = re.compile(r".*(\.h5ad|\.h5mu|\.loom|\.zarr|feature_bc_matrix\.h5|\.mtx(\.gz)?)$", re.IGNORECASE)
    below = fs.find(path, maxdepth=_DEPTH, withdirs=True)
    hits = sorted(name for name in below if likely.fullmatch(name.rstrip("/")))
    root = path.rstrip("/") + "/"
    shown = [name.removeprefix(root) for name in hits[:_MOST_SHOWN]]
    shown = list(dict.fromkeys(name.rpartition("/")[0] if ".mtx" in name and "/" in name else name for name in shown))
    if not shown:
        return f"input {uri!r}: a folder without matrix.mtx[.gz] or any other dataset; give {KNOWN}"
    more = f" and {len(hits) - _MOST_SHOWN} more" if len(hits) > _MOST_SHOWN else ""
    return (
        f"input {uri!r}: a folder without matrix.mtx[.gz], but below it there is {', '.join(shown)}{more}; "
        f"give these instead, for example '{uri}/{shown[0]}'"
    )


def _told_apart(sources: list[DatasetSource]) -> list[DatasetSource]:
    """Put a folder before the ids of those that have the same one: the nearest that tells them apart, else a hash."""
    used = Counter(source.dataset_id for source in sources)
    named = {source.uri: source.dataset_id for source in sources}
    for dataset_id in [name for name, count in used.items() if count > 1]:
        same = [source for source in sources if source.dataset_id == dataset_id]
        parents = [[_safe(part) for part in reversed(PurePosixPath(source.uri).parts[:-1])] for source in same]
        for folders in zip(*parents, strict=False):
            if len(set(folders)) == len(same):
                pairs = zip(same, folders, strict=True)
                named |= {source.uri: f"{folder}_{dataset_id}"[:_ID_LENGTH].lstrip(".") for source, folder in pairs}
                break
    used = Counter(named.values())
    for uri, dataset_id in named.items():
        if used[dataset_id] > 1:
            named[uri] = f"{dataset_id}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    return [replace(source, dataset_id=named[source.uri]) for source in sources]


def _dataset_id(path: str, *, folder: bool = False) -> str:
    """Return the part of a path, from its end, that tells its dataset from those of other runs."""
    *folders, last = [_stem(part) for part in PurePosixPath(path).parts if part != "/"] or [""]
    if not (_USUAL_FOLDER if folder else _USUAL_NAME).fullmatch(last):
        telling = last
    else:
        telling = next((part for part in reversed(folders) if not _USUAL_FOLDER.fullmatch(part)), last)
    return _safe(telling).lstrip(".")[:_ID_LENGTH] or "dataset"


def _stem(name: str) -> str:
    """Return a file name without the suffix of a format, and that of a compression behind it."""
    for suffixes in (_PACKED, _SUFFIXES):
        suffix = next((one for one in suffixes if name.lower().endswith(one)), "")
        name = name[: len(name) - len(suffix)]
    return name


def _child(folder: str, name: str) -> str:
    """Return the URI of a file that ``folder`` was seen to hold; such names are not ours and need not be safe ones."""
    return f"{folder.rstrip('/')}/{name}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
