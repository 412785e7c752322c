"""Dense count tables as text: comma, tab, semicolon or space between fields, gzipped or not.

Contract: genes are rows or columns, which is told by their names: Ensembl ids, or names that differ more from one
another than those of cells do; where that says nothing genes are rows, as GEO has it. A heading may lack the field
above the names, as R writes it; rows may be numbered before they are named; text columns beside the names are kept,
columns of gene lengths and positions are no cells. The table is read by blocks of rows, never whole, and from end to
end only.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np

from cellray.ingest import matrix as matrices
from cellray.ingest import tree
from cellray.ingest.matrix import Entries, Matrix
from cellray.ingest.name_table import open_text
from cellray.ingest.reader import INDEX, Beside, Reader, X

_DELIMITERS: Final = "\t,; "
_LOOKED_AT = 100
_BLOCK_VALUES = 1 << 22
_MIN_FIELDS_OF_CUT_HEADING = 20
_NO_CELLS = re.compile(
    r"(gene_?)?length|start|end|strand|chr(omosome)?|(gene_?)?(bio)?type|description|entrez.*|exon.*|gc(_?content)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|na|inf|-inf)?\s*", re.IGNORECASE)
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}")
_BARCODE = re.compile(r"(?:.*[_.:#-])?[ACGTN]{8,}(?:[_.:#-].*)?")


def table_dialect(head: bytes) -> str | None:
    """Return what parts the fields of a table whose unpacked content begins with ``head``; None if it is no table."""
    lines = [line for line in head.decode("utf-8", "replace").split("\n") if not line.startswith("#")]
    whole = lines[:-1] if len(lines) > 1 else lines
    for delimiter in _DELIMITERS:
        fields = [_split(line, delimiter) for line in whole[:20] if line.strip()]
        if len(fields) == 1 and len(fields[0]) >= _MIN_FIELDS_OF_CUT_HEADING and len(lines) == 1:
            return delimiter  # the heading is longer than what was looked at
        if len(fields) < 2 or len(fields[1]) < 2:
            continue
        widths = {len(row) for row in fields[1:]}
        numbers = [bool(_NUMBER.fullmatch(field)) for row in fields[1:] for field in row[1:]]
        if len(widths) == 1 and len(fields[0]) - widths.pop() in (0, -1) and np.mean(numbers) > 0.5:
            return delimiter
    return None


class TableReader(Reader):
    """Reader of one table at ``uri``.

    Raises
    ------
    ValueError
        If its first lines are no table of numbers with names.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with open_text(uri) as file:
            self._skipped = 0
            lines: list[str] = []
            for line in file:
                if line.startswith(b"#") and not lines:
                    self._skipped += 1
                    continue
                lines.append(line.decode("utf-8", "replace").rstrip("\r\n").removeprefix("\ufeff"))
                if len(lines) > _LOOKED_AT:
                    break
        delimiter = table_dialect("\n".join([*lines[:20], ""]).encode())
        if delimiter is None:
            msg = "its first lines are no table of counts with a heading and names"
            raise ValueError(msg)
        self._delimiter = delimiter
        first = [_split(line, delimiter) for line in lines if line.strip()]
        heading, rows = first[0], first[1:]
        width = len(rows[0])
        if len(heading) == width - 1:
            heading = ["", *heading]
        self._heading = heading
        self._text = [at for at in range(width) if _is_text([row[at] for row in rows if at < len(row)])]
        numbered = bool(self._text) and self._text[0] > 0 and heading[0].strip().lower() in ("", "x", "index")
        self._names_at = self._text[0] if numbered or 0 in self._text else 0
        left_out = {*self._text, self._names_at, *range(self._names_at)}
        self._values_at = [at for at in range(width) if at not in left_out and not _NO_CELLS.fullmatch(heading[at])]
        if not self._values_at:
            msg = "there is no column of numbers"
            raise ValueError(msg)
        self._columns = [heading[at] for at in self._values_at]
        some_rows = [row[self._names_at] for row in rows if len(row) > self._names_at]
        self._genes_in_columns = _likeness(self._columns) > _likeness(some_rows)

    @property
    def n_cells(self) -> int:  # type: ignore[override]
        """Number of cells; of a table with cells in rows its lines are counted once."""
        return len(self._row_names) if self._genes_in_columns else len(self._columns)

    def layers(self) -> list[str]:
        """``X`` only."""
        return [X]

    def matrix(self, layer: str) -> Matrix:
        """Count the rows and describe the matrix; its values are checked when they are read."""
        n_columns = len(self._columns) if self._genes_in_columns else len(self._row_names)
        matrices.check_size(self.n_cells, n_columns)
        return Matrix("table", "mtx", self.n_cells, n_columns, self.n_cells * n_columns)

    def gene_keys(self, layer: str) -> list[str]:
        """``index`` and, where genes are rows, the other text columns by their headings."""
        return [INDEX] if self._genes_in_columns else [INDEX, *self._beside]

    def gene_names(self, layer: str, key: str) -> list[str]:
        """Names of the genes, or another text column of them."""
        if self._genes_in_columns:
            return self._columns
        return self._row_names if key == INDEX else self._text_column(self._beside[key])

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Names of cells ``start`` to ``stop``."""
        if not self._genes_in_columns:
            return self._columns[start:stop]
        return self._text_column(self._names_at, start, stop)

    def keys_beside(self, kind: Beside) -> list[str]:
        """Text columns of a table with cells in rows."""
        return list(self._beside) if kind == "obs" and self._genes_in_columns else []

    def obs_column(self, key: str) -> list[str]:
        """One text column."""
        return self._text_column(self._beside[key])

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return the first non-zero values."""
        block = next(self._blocks(max(1, matrices.SAMPLE_VALUES * 4 // len(self._columns))), np.empty((0, 0)))
        return matrices.to_float32(block[block != 0][: matrices.SAMPLE_VALUES])

    def entries(self, matrix: Matrix) -> Iterator[Entries]:
        """All values that are not zero."""
        row0, n_rows = 0, len(self._row_names)
        for block in self._blocks(max(1, _BLOCK_VALUES // len(self._columns))):
            rows, columns = np.nonzero(block)
            values = matrices.to_float32(block[rows, columns])
            rows = rows + row0
            row0 += len(block)
            yield Entries(rows, columns, values) if self._genes_in_columns else Entries(columns, rows, values)
        if row0 != n_rows:
            msg = f"the table has {n_rows} named rows, but values for {row0}"
            raise ValueError(msg)

    @cached_property
    def _beside(self) -> dict[str, int]:
        return {self._heading[at] or f"column{at}": at for at in self._text if at != self._names_at}

    @cached_property
    def _row_names(self) -> list[str]:
        names = self._text_column(self._names_at)
        if len(names) > matrices.MAX_COLUMNS:
            msg = f"the table has {len(names):,} rows (at most {matrices.MAX_COLUMNS:,})"
            raise ValueError(msg)
        return names

    def _text_column(self, at: int, start: int = 0, stop: int | None = None) -> list[str]:
        """Return a column of text; only the part of a line up to it is parsed."""
        found = []
        with open_text(self._uri) as file:
            lines = (line for line in islice(file, self._skipped + 1, None) if line.strip())
            for line in islice(lines, start, stop):
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                fields = _split(text, self._delimiter) if '"' in text else text.split(self._delimiter, at + 1)
                found.append(fields[at].strip() if at < len(fields) else "")
        return found

    def _blocks(self, n_rows: int) -> Iterator[np.ndarray]:
        """Yield the values of ``n_rows`` rows at a time, float64."""
        import pandas as pd

        row0 = 0
        with open_text(self._uri) as file:
            for _ in range(self._skipped + 1):
                file.readline()
            try:
                chunks = pd.read_csv(
                    file,
                    sep=self._delimiter,
                    header=None,
                    names=range(len(self._heading)),
                    usecols=self._values_at,
                    dtype=np.float64,
                    chunksize=n_rows,
                    decimal="," if self._delimiter == ";" else ".",
                    skipinitialspace=True,
                    index_col=False,
                )
                for chunk in chunks:
                    yield chunk.to_numpy()
                    row0 += len(chunk)
            except ValueError as error:
                msg = f"a row after row {row0} is no row of numbers ({error})"
                raise tree.RefusedError(f"{msg}; every field but the names must be a count") from error


def _is_text(fields: Sequence[str]) -> bool:
    """Whether most fields are no numbers; a column of numbers with a few words is a fault, not a column of text."""
    return sum(not _NUMBER.fullmatch(field) for field in fields) > len(fields) / 2


def _split(line: str, delimiter: str) -> list[str]:
    line = line.rstrip("\r")
    if delimiter == " ":
        return [field.strip('"') for field in line.split()]
    return next(csv.reader([line], delimiter=delimiter), [""])


def _likeness(names: Sequence[str]) -> float:
    """Return how much names are like those of genes, 0 to 1: Ensembl ids, or names of many different stems."""
    shown = [name for name in names[: 20 * _LOOKED_AT : max(1, len(names) // _LOOKED_AT)] if name]
    if not shown:
        return 0.0
    ensembl = sum(bool(_ENSEMBL.search(name)) for name in shown) / len(shown)
    others = [name for name in shown if not _BARCODE.fullmatch(name) and not name.isdigit()]
    stems = {re.sub(r"[\d_.:-]+", "", name).lower() for name in others}
    return max(ensembl, len(stems) / len(shown))
