"""10x Genomics matrices: Cell Ranger ``.h5`` files (versions 2 and 3) and ``matrix.mtx`` folders, plain or gzipped.

Contract: both are genes x cells on disk and cells x genes here. The only layer is ``X``; the gene table has the
symbols as ``index``, and ``gene_ids``, as scanpy names them. Where features have a type, only those of type ``Gene
Expression`` are columns. A matrix market file is text without an index: it can be sampled at its start only and read
from end to end only.
"""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import IO, cast

import numpy as np
from scipy import sparse

from cellray import storage
from cellray.ingest import matrix as matrices
from cellray.ingest import tree
from cellray.ingest.matrix import Entries, Matrix
from cellray.ingest.reader import INDEX, Reader, X

GENE_IDS = "gene_ids"
_EXPRESSION = "Gene Expression"
_FILES = ("matrix.mtx", "barcodes.tsv", "features.tsv", "genes.tsv")
_LINE = 1 << 16


class _TenxReader(Reader):
    """The gene table of both formats. ``_kept`` maps a feature of the file to its column, -1 for what is no gene."""

    def _set_features(self, ids: list[str], symbols: list[str], types: list[str] | None) -> None:
        keep = np.array([kind == _EXPRESSION for kind in types] if types else [True] * len(ids), bool)
        if len(ids) and not keep.any():
            msg = f"there is no feature of type {_EXPRESSION!r} (types: {', '.join(sorted(set(types or [])))})"
            raise ValueError(msg)
        self._genes = {
            INDEX: [name for name, kept in zip(symbols, keep, strict=True) if kept],
            GENE_IDS: [name for name, kept in zip(ids, keep, strict=True) if kept],
        }
        self._kept = np.where(keep, np.cumsum(keep) - 1, -1)
        self._columns = np.flatnonzero(keep)

    def layers(self) -> list[str]:
        """``X`` only."""
        return [X]

    def gene_keys(self, layer: str) -> list[str]:
        """``index`` (symbols) and ``gene_ids``."""
        return list(self._genes)

    def gene_names(self, layer: str, key: str) -> list[str]:
        """Symbols or ids of the columns."""
        return self._genes[key]


class TenxReader(_TenxReader):
    """Reader of a Cell Ranger ``.h5``: its columns-of-genes by cell are what AnnData calls csr."""

    def __init__(self, root: tree.Group) -> None:
        names = [name for name in root if tree.find(root, f"{name}/barcodes") is not None]
        if len(names) != 1:
            msg = f"10x .h5: expected one group with barcodes, found {len(names)} (has: {', '.join(sorted(root))})"
            raise ValueError(msg)
        self._root, self._name = root, names[0]
        group = tree.need(root, names[0])
        self._barcodes = tree.need(group, "barcodes")
        self.n_cells = tree.length(self._barcodes)
        version3 = tree.find(group, "features") is not None
        ids, symbols = ("features/id", "features/name") if version3 else ("genes", "gene_names")
        self._n_features = tree.length(tree.need(group, ids))
        matrices.check_size(self.n_cells, self._n_features)
        types = tree.find(group, "features/feature_type")
        self._set_features(
            tree.strings(tree.need(group, ids)),
            tree.strings(tree.need(group, symbols)),
            None if types is None else tree.strings(types),
        )

    def matrix(self, layer: str) -> Matrix:
        """Check the matrix and describe it."""
        shape = tuple(int(size) for size in tree.need(self._root, f"{self._name}/shape")[:])
        if shape != (self._n_features, self.n_cells):
            msg = f"shape says {shape}, but there are {self._n_features} features and {self.n_cells} barcodes"
            raise ValueError(msg)
        stored = matrices.describe_sparse(self._root, self._name, "csr", self.n_cells, self._n_features)
        return replace(stored, n_columns=len(self._columns))

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Barcodes of cells ``start`` to ``stop``."""
        return tree.strings(self._barcodes, start, stop)

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return some non-zero values."""
        return matrices.sample(self._root, matrix)

    def rows(self, matrix: Matrix, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop``."""
        block = matrices.rows(self._root, replace(matrix, n_columns=self._n_features), start, stop)
        return block if len(self._columns) == self._n_features else block[:, self._columns]


class MtxReader(_TenxReader):
    """Reader of a folder with ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` (or ``genes.tsv``, version 2)."""

    def __init__(self, folder: str) -> None:
        names = [name for name in storage.list_files(folder) if name.removesuffix(".gz") in _FILES]
        self._files = {name.removesuffix(".gz"): storage.join(folder, name) for name in names}
        with self._open("matrix.mtx") as file:
            self._n_features, self.n_cells, self._nnz = _header(file)
        matrices.check_size(self.n_cells, self._n_features)
        with self._open("features.tsv" if "features.tsv" in self._files else "genes.tsv") as file:
            lines = [
                line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
                for line in islice(file, self._n_features + 1)
            ]
        if len(lines) != self._n_features:
            msg = f"matrix.mtx has {self._n_features} rows, but the gene table has not"
            raise ValueError(msg)
        types = [line[2] for line in lines] if lines and all(len(line) > 2 for line in lines) else None
        self._set_features([line[0] for line in lines], [line[min(1, len(line) - 1)] for line in lines], types)

    def matrix(self, layer: str) -> Matrix:
        """Check the sizes and describe the matrix; its entries are checked when they are read."""
        with self._open("barcodes.tsv") as file:
            n_barcodes = sum(1 for _ in file)
        if n_barcodes != self.n_cells:
            msg = f"matrix.mtx has {self.n_cells} columns, but barcodes.tsv {n_barcodes} lines"
            raise ValueError(msg)
        return Matrix("matrix.mtx", "mtx", self.n_cells, len(self._columns), self._nnz)

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Barcodes of cells ``start`` to ``stop``; the lines before them are read and dropped."""
        with self._open("barcodes.tsv") as file:
            return [line.decode("utf-8", "replace").rstrip("\r\n") for line in islice(file, start, stop)]

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return the first non-zero values."""
        values = next((values for _, _, values in self._lines(matrices.SAMPLE_VALUES)), np.empty(0))
        return matrices.to_float32(values[values != 0])

    def entries(self, matrix: Matrix) -> Iterator[Entries]:
        """All stored values of the kept features."""
        n_read = 0
        for features, cells, values in self._lines(matrices.BLOCK):
            n_read += len(values)
            matrices.check_range(features, self._n_features, "row number")
            matrices.check_range(cells, self.n_cells, "column number")
            columns = self._kept[features]
            kept = columns >= 0
            yield Entries(cells[kept], columns[kept], matrices.to_float32(values[kept]))
        if n_read != self._nnz:
            msg = f"matrix.mtx announces {self._nnz} entries, but holds {n_read}"
            raise ValueError(msg)

    def _lines(self, n_lines: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield feature and cell (int64, from 0) and value (float64) of the entries, ``n_lines`` at a time."""
        import pandas as pd

        types = {0: np.int64, 1: np.int64, 2: np.float64}
        with self._open("matrix.mtx") as file:
            _header(file)
            try:
                table = pd.read_csv(file, sep=r"\s+", header=None, names=list(types), dtype=types, chunksize=n_lines)
            except pd.errors.EmptyDataError:
                return
            for lines in table:
                yield lines[0].to_numpy() - 1, lines[1].to_numpy() - 1, lines[2].to_numpy()

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        if name not in self._files:
            msg = f"the folder has no {name}[.gz]"
            raise ValueError(msg)
        with storage.open_read(self._files[name]) as file:
            if self._files[name].endswith(".gz"):
                with gzip.open(file, "rb") as plain:
                    yield cast("IO[bytes]", plain)
            else:
                yield file


def _header(file: IO[bytes]) -> tuple[int, int, int]:
    """Read up to the size line of a matrix market file: rows, columns, entries."""
    words = file.readline(_LINE).decode("ascii", "replace").lower().split()
    if words[:3] != ["%%matrixmarket", "matrix", "coordinate"] or words[3:] not in (
        ["integer", "general"],
        ["real", "general"],
    ):
        msg = "matrix.mtx does not start with '%%MatrixMarket matrix coordinate integer|real general'"
        raise ValueError(msg)
    line = file.readline(_LINE)
    while line.startswith(b"%"):
        line = file.readline(_LINE)
    rows, columns, entries = (int(word) for word in line.split())
    return rows, columns, entries
