"""Matrix Market matrices with tables of their genes and cells, as every counting pipeline writes them.

Contract: which axis is cells is told by the lengths of the two name tables, and where these are equal by the names
of the files. Which table names genes is told by their file names, and where these say nothing by their content. The
only layer is ``X``; the gene table has symbols as ``index``, ids as ``gene_ids`` and, where there is a heading, its
columns under their own names. All features are columns, whatever their type. The file is text without an index: it can
be sampled at its start only and read from end to end only. What it announces is compared with what it holds.

A matrix of alevin-fry's mode "USA" has three columns a gene: spliced and ambiguous counts are one gene's, unspliced
ones (``-U``) are features of another type.
"""

import re
from collections.abc import Iterator
from typing import IO, Final

import numpy as np

from cellray import storage
from cellray.ingest import matrix as matrices
from cellray.ingest import tree
from cellray.ingest.market_files import find_markets, part_of_counts, says_role
from cellray.ingest.matrix import Entries, Matrix
from cellray.ingest.name_shapes import gene_likeness
from cellray.ingest.name_table import NameTable, column_like, open_text
from cellray.ingest.reader import INDEX, Beside, Reader, X

GENE_IDS: Final = "gene_ids"
UNSPLICED: Final = "Unspliced"

_EXPRESSION = "Gene Expression"
_LINE = 1 << 16
_LOOKED_AT = 100
_BANNER = b"%%MatrixMarket"
_SIZE = re.compile(rb"\s*\d+\s+\d+\s+\d+\s*")
_FIELDS: Final = {"integer": True, "unsigned-integer": True, "real": False, "double": False}
"""Kinds of values by their names in the banner, and whether they are integers."""

_REFUSED: Final = {
    "array": "is a dense Matrix Market file (array); write it as a sparse one (coordinate)",
    "pattern": "says where there are counts but not how many (pattern); give the matrix with its values",
    "symmetric": "is symmetric, a matrix of genes by genes or cells by cells; give the matrix of genes and cells",
}
_BY_CELL = re.compile(r"cells_x_genes|quants_mat|dge|count_matrix", re.IGNORECASE)
_SYMBOL = r"symbols?|gene_?symbols?|gene_?names?|feature_?names?|names?|hgnc.*|genes?"
_ID = r"gene_?ids?|feature_?ids?|featurekey|ids?|ensembl.*|accession"
_TYPE = r"feature_?types?"
_GENOME = r"genomes?"


def is_market(head: bytes) -> bool:
    """Whether the first bytes of an unpacked file are those of a Matrix Market file, with or without its banner."""
    if head[: len(_BANNER)].lower() == _BANNER.lower():
        return True
    lines = [line for line in head.split(b"\n") if line.strip() and not line.startswith(b"%")]
    return len(lines) > 1 and _SIZE.fullmatch(lines[0]) is not None and len(lines[1].split()) in (2, 3)


def read_folder(uri: str) -> dict[str, str]:
    """Return the files of a folder with one Matrix Market dataset by role.

    Raises
    ------
    RefusedError
        If a table is missing.
    ValueError
        If there is not just one matrix.
    """
    found = find_markets(storage.list_files(uri))
    if len(found) != 1:
        msg = f"the folder has {len(found)} Matrix Market files with their tables"
        raise ValueError(msg)
    return {role: f"{uri.rstrip('/')}/{name}" for role, name in found[0].roles()}


class MarketReader(Reader):
    """Reader of one matrix and its tables.

    Parameters
    ----------
    files
        URIs by role: ``matrix``, ``cells``, ``genes`` and perhaps ``gene_names``.

    Raises
    ------
    ValueError
        If the files do not belong together.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self._uri = files["matrix"]
        self._name = self._uri.rsplit("/", 1)[-1]
        with open_text(self._uri) as file:
            rows, columns, self._nnz, self._integers = _header(file, self._name)
            first = file.readline(_LINE).split()
        if len(first) not in (0, 3):
            # Pandas would take a fourth number of all lines for that of the line.
            msg = f"{self._name} has {len(first)} numbers on its first line of entries, not row, column and value"
            raise ValueError(msg)
        self._cells, genes = self._tables(files)
        self._by_cell = self._cells_in_rows(rows, columns, genes)
        self.n_cells, self._n_features = (rows, columns) if self._by_cell else (columns, rows)
        matrices.check_size(self.n_cells, self._n_features)
        self._cells.fit(self.n_cells)
        genes.fit(self._n_features)
        names = NameTable(files["gene_names"]) if "gene_names" in files else None
        self._types: list[str] | None = None
        self._genomes: list[str] | None = None
        self._genes = self._gene_columns(genes, names)
        self._split_by_splicing()

    def layers(self) -> list[str]:
        """``X`` only."""
        return [X]

    def notes(self) -> list[str]:
        """Say so where the matrix is one of several of the same cells, which hold parts of their counts."""
        part = part_of_counts(self._name)
        return [] if part is None else [f"counts are those of {self._name} ({part}), one of the parts of this run"]

    def matrix(self, layer: str) -> Matrix:
        """Describe the matrix; its entries are checked when they are read."""
        return Matrix(self._name, "mtx", self.n_cells, self._n_features, self._nnz)

    def gene_keys(self, layer: str) -> list[str]:
        """``index`` (symbols), ``gene_ids`` and the columns that have a heading."""
        return list(self._genes)

    def gene_names(self, layer: str, key: str) -> list[str]:
        """One column of the gene table."""
        return self._genes[key]

    def feature_types(self, layer: str) -> list[str] | None:
        """Return the third column of ``features.tsv``, or what the names say of splicing."""
        return self._types

    def genomes(self, layer: str) -> list[str] | None:
        """Return the column of genomes, as Parse writes it."""
        return self._genomes

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Names of cells ``start`` to ``stop``; the lines before them are read and dropped."""
        return [row[0] if row else "" for row in self._cells.rows(start, stop)]

    def keys_beside(self, kind: Beside) -> list[str]:
        """Columns of the table of cells that have a heading."""
        return (self._cells.heading or [])[1:] if kind == "obs" else []

    def obs_column(self, key: str) -> list[str]:
        """One column of the table of cells."""
        at = (self._cells.heading or []).index(key)
        return [row[at] if at < len(row) else "" for row in self._cells.rows(0, self.n_cells)]

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return the first non-zero values."""
        values = next((values for _, _, values in self._lines(matrices.SAMPLE_VALUES)), np.empty(0))
        return matrices.to_float32(values[values != 0])

    def entries(self, matrix: Matrix) -> Iterator[Entries]:
        """All stored values."""
        n_read, lacks_value = 0, False
        n_rows, n_columns = (self.n_cells, self._n_features) if self._by_cell else (self._n_features, self.n_cells)
        for rows, columns, values in self._lines(matrices.BLOCK):
            n_read += len(values)
            matrices.check_range(rows, n_rows, "row number")
            matrices.check_range(columns, n_columns, "column number")
            lacks_value |= self._integers and bool(np.isnan(values).any())
            cells, features = (rows, columns) if self._by_cell else (columns, rows)
            yield Entries(cells, features, matrices.to_float32(values))
        if n_read != self._nnz:
            msg = f"{self._name} announces {self._nnz} entries, but holds {n_read}"
            raise ValueError(msg)
        if lacks_value:
            msg = f"{self._name} has an entry without its value"
            raise ValueError(msg)

    def _tables(self, files: dict[str, str]) -> tuple[NameTable, NameTable]:
        """Return the tables of cells and genes; where no file name says which is which, their content does."""
        cells, genes = NameTable(files["cells"]), NameTable(files["genes"])
        if not says_role(cells.name) and not says_role(genes.name):
            likeness = [gene_likeness(_some_names(table)) for table in (cells, genes)]
            if likeness[0] > likeness[1]:
                return genes, cells
        return cells, genes

    def _cells_in_rows(self, rows: int, columns: int, genes: NameTable) -> bool:
        """Whether cells are the matrix's rows."""
        by_gene = genes.fits(rows) and self._cells.fits(columns)
        by_cell = genes.fits(columns) and self._cells.fits(rows)
        if by_gene and by_cell:
            return _BY_CELL.search(self._name) is not None
        if not by_gene and not by_cell:
            msg = (
                f"{self._name} is {rows} x {columns}, but {self._cells.name} {self._cells.n_lines} lines and the gene "
                f"table {genes.name} {genes.n_lines} lines long"
            )
            raise ValueError(msg)
        return by_cell

    def _gene_columns(self, table: NameTable, names: NameTable | None) -> dict[str, list[str]]:
        """Return the gene table by key, and note types and genomes."""
        columns = table.columns() or [[]]
        if table.heading is not None:
            heading = [*table.heading, *(f"column{at}" for at in range(len(table.heading), len(columns)))]
            symbol, gene_id = column_like(heading, _SYMBOL), column_like(heading, _ID)
            if gene_id is None and heading[0] == "":
                gene_id = 0  # R and pandas leave the heading of row names empty
            first = symbol if symbol is not None else gene_id if gene_id is not None else 0
            found = {INDEX: columns[first]}
            if gene_id is not None:
                found[GENE_IDS] = columns[gene_id]
            named = zip(heading, columns, strict=True)
            found |= {name: column for name, column in named if name and name not in found}
            types, genomes = column_like(heading, _TYPE), column_like(heading, _GENOME)
            self._types = None if types is None else columns[types]
            self._genomes = None if genomes is None else columns[genomes]
        else:
            found = {INDEX: columns[min(1, len(columns) - 1)], GENE_IDS: columns[0]}
            if len(columns) > 2 and all(columns[2]):
                self._types = columns[2]
        if names is not None and names.fits(self._n_features):
            names.fit(self._n_features)
            found[INDEX] = names.columns()[0]
        return found

    def _split_by_splicing(self) -> None:
        """Take the marks of alevin-fry's three columns a gene off the names, and note which are unspliced."""
        ids = self._genes.get(GENE_IDS, self._genes[INDEX])
        marks = [name[-2:] for name in ids]
        third = len(ids) // 3
        if len(ids) % 3 or not ids or marks.count("-U") != third or marks.count("-A") != third:
            return
        self._types = [UNSPLICED if mark == "-U" else _EXPRESSION for mark in marks]
        for key, names in self._genes.items():
            marked = zip(names, marks, strict=True)
            self._genes[key] = [name.removesuffix(mark) if mark in ("-U", "-A") else name for name, mark in marked]

    def _lines(self, n_lines: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield row and column (int64, from 0) and value (float64) of the entries, ``n_lines`` at a time."""
        import pandas as pd

        types = {0: np.int64, 1: np.int64, 2: np.float64}
        with open_text(self._uri) as file:
            _header(file, self._name)
            try:
                table = pd.read_csv(file, sep=r"\s+", header=None, names=list(types), dtype=types, chunksize=n_lines)
            except pd.errors.EmptyDataError:
                return
            for lines in table:
                yield lines[0].to_numpy() - 1, lines[1].to_numpy() - 1, lines[2].to_numpy()


def _some_names(table: NameTable) -> list[str]:
    """Return all fields of the first rows: the names may be in any column."""
    return [field for row in table.rows(0, _LOOKED_AT) for field in row]


def _header(file: IO[bytes], name: str) -> tuple[int, int, int, bool]:
    """Read up to the size line: rows, columns, entries, and whether values must be integers.

    A banner may be missing or bare.
    """
    line = file.readline(_LINE)
    integers = False
    if line[: len(_BANNER)].lower() == _BANNER.lower():
        words = line.decode("ascii", "replace").lower().split()
        said = next((said for word, said in _REFUSED.items() if word in words), None)
        if said is not None:
            msg = f"{name} {said}"
            raise tree.RefusedError(msg)
        if words[1:3] != ["matrix", "coordinate"] or words[4:] != ["general"] or words[3] not in _FIELDS:
            msg = f"{name} does not start with '%%MatrixMarket matrix coordinate integer|real general'"
            raise ValueError(msg)
        integers = _FIELDS[words[3]]
    while line.startswith(b"%") or (line and not line.strip()):
        line = file.readline(_LINE)
    if not _SIZE.fullmatch(line):
        msg = f"{name} does not start with '%%MatrixMarket ...' and a line of rows, columns and entries"
        raise ValueError(msg)
    rows, columns, entries = (int(word) for word in line.split())
    return rows, columns, entries, integers
