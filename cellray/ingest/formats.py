"""Which format a file or folder has, told by its content; a name is asked only where the content says nothing.

Contract: ``file_kind`` reads the first bytes of a file and, of HDF5 and zip files, the names at their top. A file that
holds something CellRay does not read is an ``InputError`` that says what it holds and which file to give instead. An
empty, cut or damaged file keeps the kind of its name, so that it fails as a dataset alone when it is read. Nothing is
judged here beyond the format.
"""

import zipfile
import zlib
from pathlib import PurePosixPath
from typing import Final, Literal

import fsspec

from cellray import storage
from cellray.errors import InputError
from cellray.ingest import tree

Kind = Literal["h5ad", "h5mu", "zarr", "zarr_zip", "10x_h5", "10x_mtx", "loom", "table", "memory"]

KNOWN: Final = (
    "an AnnData file or Zarr store, a 10x .h5 file, a folder with a Matrix Market file, a .loom or .h5mu file, "
    "or a count table"
)
MODALITIES: Final = "mod"

_HEAD = 1 << 14
_HDF5 = b"\x89HDF\r\n\x1a\n"
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_BY_SUFFIX: dict[str, Kind] = {".h5ad": "h5ad", ".h5": "10x_h5", ".hdf5": "h5ad", ".h5mu": "h5mu", ".loom": "loom"}
_MATRIX_SUFFIXES = (".mtx", ".mtx.gz")
_TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".tab")

_ELSEWHERE: dict[str, str] = {
    ".rds": "an R object; write it from R as .h5ad, for example with zellkonverter::writeH5AD",
    ".rda": "R objects; write the one with the counts from R as .h5ad, for example with zellkonverter::writeH5AD",
    ".rdata": "R objects; write the one with the counts from R as .h5ad, for example with zellkonverter::writeH5AD",
    ".h5seurat": "a Seurat file; convert it in R with SeuratDisk::Convert(..., dest = 'h5ad')",
    ".cloupe": "a Loupe Browser file; give filtered_feature_bc_matrix.h5 of the same run",
    ".bam": "aligned reads; count them first (Cell Ranger, STARsolo, alevin-fry) and give the count matrix",
    ".fastq": "reads; count them first (Cell Ranger, STARsolo, alevin-fry) and give the count matrix",
    ".fq": "reads; count them first (Cell Ranger, STARsolo, alevin-fry) and give the count matrix",
    ".xlsx": "a spreadsheet; save the counts as .csv",
    ".xls": "a spreadsheet; save the counts as .csv",
    ".parquet": "a Parquet table; make an AnnData file of it (anndata.AnnData(table).write_h5ad)",
    ".tar": "an archive; unpack it (tar -xf) and give what is in it",
    ".tgz": "an archive; unpack it (tar -xf) and give what is in it",
    ".bz2": "compressed with bzip2; unpack it first (bunzip2)",
    ".xz": "compressed with xz; unpack it first (unxz)",
    ".zst": "compressed with zstd; unpack it first (unzstd)",
}


def file_kind(fs: fsspec.AbstractFileSystem, path: str, uri: str) -> Kind:
    """Return the format of a file.

    Raises
    ------
    InputError
        If it is of no format that CellRay reads; the message says which file to give instead.
    OSError
        If it cannot be read at all.
    """
    head = fs.cat_file(path, start=0, end=_HEAD) if fs.size(path) else b""
    if any(head[start:].startswith(_HDF5) for start in (0, 512, 1024, 2048)):
        return _hdf5_kind(uri)
    if head.startswith(_ZIP):
        return _zip_kind(fs, path, uri)
    plain = _unpacked(head) if head.startswith(_GZIP) else head
    if plain is not head and plain.startswith(_HDF5):
        name = PurePosixPath(path).name
        msg = f"input {uri!r}: a gzip-compressed HDF5 file; unpack it first: gunzip {name!r}"
        raise InputError(msg)
    suffix = _suffix(path)
    _refuse_known(plain, suffix, uri)
    if suffix in _BY_SUFFIX:
        if plain.lstrip()[:1] == b"<":
            msg = f"input {uri!r}: a web page, not a dataset; the download failed, fetch the file again"
            raise InputError(msg)
        return _BY_SUFFIX[suffix]
    return _text_kind(plain, path, uri, suffix)


def _text_kind(plain: bytes, path: str, uri: str, suffix: str) -> Kind:
    from cellray.ingest.market import is_market
    from cellray.ingest.table import table_dialect

    if is_market(plain) or path.lower().endswith(_MATRIX_SUFFIXES):
        return "10x_mtx"
    if plain and table_dialect(plain) is not None:
        return "table"
    said = f"suffix {suffix!r} is not known and its content is of no format that is read"
    if suffix in _TABLE_SUFFIXES:
        said = "it is no table of counts with names of genes and cells" if plain else f"an empty {suffix!r} file"
    msg = f"input {uri!r}: {said}; give {KNOWN}"
    raise InputError(msg)


def _suffix(path: str) -> str:
    """Return the last suffix in lower case, of ``x.csv.gz`` that of ``x.csv``."""
    name = PurePosixPath(path).name.lower().removesuffix(".gz")
    return PurePosixPath(name).suffix


def _refuse_known(plain: bytes, suffix: str, uri: str) -> None:
    said = _ELSEWHERE.get(suffix)
    if plain[257:262] == b"ustar":
        said = _ELSEWHERE[".tar"]
    elif plain.startswith((b"RDX", b"RDA")):
        said = _ELSEWHERE[".rda"]
    elif plain.startswith((b"X\n\0\0", b"A\n")):
        said = _ELSEWHERE[".rds"]
    elif plain.startswith(b"BAM\1"):
        said = _ELSEWHERE[".bam"]
    elif plain.startswith(b"PAR1"):
        said = _ELSEWHERE[".parquet"]
    if said is not None:
        msg = f"input {uri!r}: {said}"
        raise InputError(msg)


def _unpacked(head: bytes) -> bytes:
    """Return what the first bytes of a gzip file hold; nothing if they are damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _HEAD)
    except zlib.error:
        return b""


def _hdf5_kind(uri: str) -> Kind:
    by_name = _BY_SUFFIX.get(_suffix(uri), "h5ad")
    try:
        with storage.network_errors(), tree.open_hdf5(uri) as root:
            names = set(root)
            encoding = tree.attribute(root, "encoding-type")
            with_barcodes = any(tree.find(root, f"{name}/barcodes") is not None for name in names)
    except (OSError, RuntimeError, KeyError, ValueError):
        return by_name
    if encoding == "MuData" or MODALITIES in names:
        return "h5mu"
    if {"row_attrs", "col_attrs", "matrix"} <= names:
        return "loom"
    if {"obs", "var"} <= names or names & {"X", "layers", "raw.X"}:
        return "h5ad"
    if {"barcode_idx", "umi"} <= names or {"barcode", "umi", "gem_group"} <= names:
        msg = (
            f"input {uri!r}: a molecule_info.h5, which lists molecules and no cells; give "
            "filtered_feature_bc_matrix.h5 (or sample_filtered_feature_bc_matrix.h5) of the same run"
        )
        raise InputError(msg)
    if {"assays", "cell.names"} <= names:
        msg = f"input {uri!r}: {_ELSEWHERE['.h5seurat']}"
        raise InputError(msg)
    if with_barcodes:
        return "10x_h5"
    if names:
        shown = ", ".join(sorted(names)[:10])
        msg = (
            f"input {uri!r}: an HDF5 file that is neither AnnData, MuData, 10x nor loom (it has: {shown}); give {KNOWN}"
        )
        raise InputError(msg)
    return by_name


def _zip_kind(fs: fsspec.AbstractFileSystem, path: str, uri: str) -> Kind:
    try:
        with fs.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        names = []
    if tree.zarr_root(names) is not None or (not names and path.endswith(".zarr.zip")):
        return "zarr_zip"
    if _suffix(path) in (".xlsx", ".xls"):
        msg = f"input {uri!r}: {_ELSEWHERE['.xlsx']}"
        raise InputError(msg)
    held = f" (it holds {', '.join(names[:3])})" if names else ""
    msg = f"input {uri!r}: a zip archive{held}; unpack it (unzip) and give what is in it"
    raise InputError(msg)
