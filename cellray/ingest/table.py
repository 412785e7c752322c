"""Dense count tables as text: comma, tab, semicolon or space between fields, gzipped or not.

Contract: what is in which row and column is told by the first lines (``cellray.ingest.table_layout``). The table is
read by blocks of rows, never whole, and from end to end only; every row must have as many fields as the heading, every
field of a count must be a number or empty, and what is not is named by its line. An empty field is a missing value.
Text columns beside the names are kept, as columns of the gene table or of ``obs``.
"""

import csv
import io
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import IO, Final

import numpy as np

from cellray.ingest import matrix as matrices
from cellray.ingest import tree
from cellray.ingest.matrix import Entries, Matrix
from cellray.ingest.name_table import column_like, lines_of, open_text
from cellray.ingest.reader import INDEX, Beside, Reader, X
from cellray.ingest.table_layout import read_layout, split_line, table_dialect, text_of

__all__ = ["TableReader", "table_dialect"]

_BLOCK_VALUES: Final = 1 << 22
_SAMPLED_BLOCKS: Final = 64
_ENOUGH: Final = matrices.SAMPLE_VALUES // 10
_MOST_SHOWN: Final = 5
_MISSING: Final = ("NA", "N/A", "<NA>", "NULL", "NONE")


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
            self._layout = read_layout(file)
        self._columns = [self._layout.heading[at] for at in self._layout.values_at]
        self._genes_in_columns = self._layout.genes_in_columns

    @property
    def n_cells(self) -> int:  # type: ignore[override]
        """Number of cells; of a table with cells in rows its lines are counted once."""
        return self._n_rows if self._genes_in_columns else len(self._columns)

    def layers(self) -> list[str]:
        """``X`` only."""
        return [X]

    def matrix(self, layer: str) -> Matrix:
        """Count the rows and describe the matrix; its values are checked when they are read."""
        n_columns = len(self._columns) if self._genes_in_columns else self._n_rows
        matrices.check_size(self.n_cells, n_columns)
        return Matrix("table", "mtx", self.n_cells, n_columns, self.n_cells * n_columns)

    def notes(self) -> list[str]:
        """Say which axis was taken for cells, and which columns are no counts."""
        cells, genes = ("rows", "columns") if self._genes_in_columns else ("columns", "rows")
        notes = [f"the {cells} of the table are read as cells, its {genes} as genes"]
        if self._layout.left_out:
            *shown, last = self._layout.left_out[:_MOST_SHOWN]
            named = ", ".join([*shown, last if len(self._layout.left_out) <= _MOST_SHOWN else f"{last}, ..."])
            notes.append(f"left out: {len(self._layout.left_out)} columns of the table that are no counts ({named})")
        return notes

    def gene_keys(self, layer: str) -> list[str]:
        """``index`` and, where genes are rows, the other text columns by their headings."""
        return [INDEX] if self._genes_in_columns else [INDEX, *self._beside]

    def gene_names(self, layer: str, key: str) -> list[str]:
        """Names of the genes, or another text column of them."""
        if self._genes_in_columns:
            return self._columns
        matrices.check_size(0, self._n_rows)
        return self._text_column(self._layout.names_at if key == INDEX else self._beside[key])

    def feature_types(self, layer: str) -> list[str] | None:
        """Return the column of feature types, where genes are rows and there is one."""
        at = None if self._genes_in_columns else column_like(list(self._beside), r"feature[_ ]?types?")
        return None if at is None else self._text_column(list(self._beside.values())[at])

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Names of cells ``start`` to ``stop``."""
        if not self._genes_in_columns:
            return self._columns[start:stop]
        return self._text_column(self._layout.names_at, start, stop)

    def keys_beside(self, kind: Beside) -> list[str]:
        """Text columns, and columns of numbers that are no counts, of a table with cells in rows."""
        return list(self._beside) if kind == "obs" and self._genes_in_columns else []

    def obs_column(self, key: str) -> list[str]:
        """One such column."""
        return self._text_column(self._beside[key])

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return the first non-zero values; genes that no cell has may come first, so several blocks are looked at."""
        found = [np.empty(0)]
        for block in islice(self._blocks(self._rows_of(matrices.SAMPLE_VALUES * 4)), _SAMPLED_BLOCKS):
            found.append(block[block != 0])
            if sum(map(len, found)) >= _ENOUGH:
                break
        return matrices.to_float32(np.concatenate(found)[: matrices.SAMPLE_VALUES])

    def entries(self, matrix: Matrix) -> Iterator[Entries]:
        """All values that are not zero."""
        row0 = 0
        for block in self._blocks(self._rows_of(_BLOCK_VALUES)):
            rows, columns = np.nonzero(block)
            values = matrices.to_float32(block[rows, columns])
            rows = rows + row0
            row0 += len(block)
            yield Entries(rows, columns, values) if self._genes_in_columns else Entries(columns, rows, values)

    @cached_property
    def _beside(self) -> dict[str, int]:
        layout = self._layout
        numbers = [at for at, name in enumerate(layout.heading) if self._genes_in_columns and name in layout.left_out]
        return {layout.heading[at] or f"column{at}": at for at in sorted((*layout.text_at, *numbers))}

    @cached_property
    def _n_rows(self) -> int:
        with open_text(self._uri) as file:
            return sum(1 for _ in self._lines(file))

    def _rows_of(self, n_values: int) -> int:
        return max(1, n_values // len(self._layout.heading))

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of rows with their numbers from 1."""
        lines = enumerate(islice(lines_of(file), self._layout.n_before, None), self._layout.n_before + 1)
        return ((number, line) for number, line in lines if line.strip())

    def _text_column(self, at: int, start: int = 0, stop: int | None = None) -> list[str]:
        """Return a column of text; only the part of a line up to it is parsed."""
        delimiter = self._layout.delimiter
        found = []
        with open_text(self._uri) as file:
            for _, line in islice(self._lines(file), start, stop):
                text = text_of(line)
                parted = None if delimiter == " " else delimiter
                fields = split_line(text, delimiter) if '"' in text else text.split(parted, at + 1)
                found.append(fields[at].strip() if at < len(fields) else "")
        return found

    def _blocks(self, n_rows: int) -> Iterator[np.ndarray]:
        """Yield the values of ``n_rows`` rows at a time, float64."""
        with open_text(self._uri) as file:
            lines = self._lines(file)
            while block := list(islice(lines, n_rows)):
                yield self._values(block)

    def _values(self, block: list[tuple[int, bytes]]) -> np.ndarray:
        """Return the numbers of some lines."""
        import pandas as pd

        # One field a line: pandas is ten times slower on a table of tens of thousands of columns.
        fields = b"".join(self._fields(number, line) for number, line in block)
        try:
            values = pd.read_csv(
                io.BytesIO(fields),
                sep="\x1f",
                header=None,
                names=[0],
                dtype=np.float64,
                decimal=self._layout.decimal,
                skipinitialspace=True,
                skip_blank_lines=False,
                index_col=False,
                quoting=csv.QUOTE_NONE,
                encoding_errors="replace",
            )[0].to_numpy()
        except ValueError as error:
            raise self._no_number(block, error) from error
        if len(values) != len(block) * len(self._columns):
            msg = f"lines {block[0][0]} to {block[-1][0]} of the table are parted within a field"
            raise ValueError(msg)
        return values.reshape(len(block), len(self._columns))

    def _fields(self, number: int, line: bytes) -> bytes:
        """Return the fields of counts of a line, a line each; check how many fields there are."""
        layout, line = self._layout, line.rstrip(b"\r\n")
        delimiter, width = layout.delimiter.encode(), len(layout.heading)
        parted = None if delimiter == b" " else delimiter
        end = line.rfind(b'"') + 1
        if end:
            # Only names are quoted in most tables; what follows them is split as fast as without.
            parts = [field.encode() for field in split_line(text_of(line[:end]), layout.delimiter)]
            parts += line[end:].split(parted)[parted is not None :]
        else:
            parts = line.split(parted)
        if len(parts) != width:
            msg = f"line {number} of the table has {len(parts)} fields, but its first row has {width}"
            raise ValueError(msg)
        return b"\n".join([*(parts[at] for at in layout.values_at), b""])

    def _no_number(self, block: list[tuple[int, bytes]], error: Exception) -> ValueError:
        """Return the error that names the first field which is no number."""
        for number, line in block:
            fields = split_line(text_of(line), self._layout.delimiter)
            for at in self._layout.values_at:
                if not _is_number(fields[at], self._layout.decimal):
                    where = f"line {number}, column {self._layout.heading[at]!r}"
                    msg = f"{where} holds {fields[at][:40]!r}; every field but the names must be a count"
                    return tree.RefusedError(msg)
        return ValueError(f"lines {block[0][0]} to {block[-1][0]} are no rows of numbers ({error})")


def _is_number(field: str, decimal: str) -> bool:
    """Whether a field is a number or says that there is none."""
    text = field.strip()
    try:
        float(text.replace(decimal, ".") or "nan")
    except ValueError:
        return text.upper() in _MISSING
    return True
