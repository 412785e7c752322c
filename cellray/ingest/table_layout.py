"""How a count table is laid out, told by its first lines: what parts its fields, where names and numbers are.

Contract: genes are rows or columns, which is told by their names (``cellray.ingest.name_shapes``); where these say
nothing genes are rows, as GEO has it. A heading may lack the field above the names, as R writes it; rows may be
numbered before they are named; all lines may end with a delimiter; the two lines before the heading of a GCT file are
passed over. Columns of text are told from columns of numbers. Columns of numbers that are no counts (gene lengths; of
cells, what Seurat and scanpy compute of them) are told by their headings. Values are not judged here.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

import numpy as np

from cellray.ingest.name_shapes import gene_likeness
from cellray.ingest.name_table import lines_of

_NUMBER = re.compile(r"\s*([+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?|nan|na|inf|-inf)?\s*", re.IGNORECASE)

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
_DELIMITERS: Final = "\t,; "
_LOOKED_AT = 100
_LEAST_LOOKED_AT = 10
_LOOKED_AT_BYTES = 1 << 20
_MIN_FIELDS_OF_CUT_HEADING = 20
_GCT = "#1."
_NO_CELLS = re.compile(
    r"(gene_?)?length|start|end|strand|chr(omosome)?|(gene_?)?(bio)?type|description|entrez.*|exon.*|gc(_?content)?",
    re.IGNORECASE,
)
_NO_GENES = re.compile(
    r"n[_.]?(count|feature|gene|umi|molecule|read)s?([_.](rna|sct|adt|by[_.]counts|umi))?|(log1p_)?total_(counts|umis?)"
    r"(_\w+)?|(log1p_)?n_genes_by_counts|(pct|percent|fraction|frac)[._](\w|[._])*|seurat[_.]clusters?|\w+_snn_res\.[\d.]+"
    r"|leiden\S*|louvain\S*|clusters?|cluster_?ids?|(s|g2m)[._]score|doublet_?scores?|(x_?)?(umap|t-?sne|pca?)[_.-]?\d+"
    r"|size_?factors?|batch|age|library_?size",
    re.IGNORECASE,
)
_NUMBERING = ("", "x", "index", "unnamed: 0")


@dataclass(frozen=True)
class TableLayout:
    """Where things are in the lines of a table.

    Attributes
    ----------
    delimiter, decimal
        What parts fields, and the decimals of a number from the rest.
    n_before
        Lines up to and with the heading.
    heading
        The heading, a field for each of a row's.
    names_at, text_at, values_at
        Numbers of the column of row names, of the other columns of text, and of the columns of counts.
    left_out
        Headings of columns of numbers that are no counts.
    genes_in_columns
        Whether rows are cells.
    """

    delimiter: str
    decimal: str
    n_before: int
    heading: tuple[str, ...]
    names_at: int
    text_at: tuple[int, ...]
    values_at: tuple[int, ...]
    left_out: tuple[str, ...]
    genes_in_columns: bool


def table_dialect(head: bytes) -> str | None:
    """Return what parts the fields of a table whose unpacked content begins with ``head``; None if it is no table."""
    *lines, last = head.decode("utf-8", "replace").removeprefix("\ufeff").split("\n")
    whole = [line for _, line in _without_preface(lines)]
    for delimiter in _DELIMITERS:
        fields = [split_line(line, delimiter) for line in whole[:20]]
        if not fields:
            # The heading is longer than what was looked at.
            if not lines and len(split_line(last, delimiter)) >= _MIN_FIELDS_OF_CUT_HEADING:
                return delimiter
            continue
        if len(fields) == 1:
            # The first row is: its fields can be looked at, but not counted.
            cut = split_line(last, delimiter)[:-1]
            if len(cut) > 1 and len(cut) <= len(fields[0]) + 1 and _are_numbers([cut]):
                return delimiter
        elif len(fields[1]) > 1:
            widths = {len(row) for row in fields[1:]}
            if len(widths) == 1 and len(fields[0]) - widths.pop() in (0, -1) and _are_numbers(fields[1:]):
                return delimiter
    return None


def read_layout(file: IO[bytes]) -> TableLayout:
    """Read the first lines of an unpacked table and return its layout.

    Raises
    ------
    ValueError
        If they are no table of numbers with a heading and names.
    """
    n_before, lines = _first_lines(file)
    delimiter = table_dialect("\n".join([*lines[:20], ""]).encode())
    if delimiter is None:
        msg = "its first lines are no table of counts with a heading and names"
        raise ValueError(msg)
    heading, *rows = [split_line(line, delimiter) for line in lines]
    width = len(rows[0])
    rows = [row for row in rows if len(row) == width]
    if len(heading) == width - 1:
        # Rows that end with a delimiter, else R's heading without a field above the names.
        heading = [*heading, ""] if all(not row[-1].strip() for row in rows) else ["", *heading]
    text = [at for at in range(width) if _is_text([row[at] for row in rows])]
    numbered = bool(text) and text[0] > 0 and heading[0].strip().lower() in _NUMBERING
    names_at = text[0] if numbered or 0 in text else 0
    empty = [at for at in range(width) if not heading[at].strip() and all(not row[at].strip() for row in rows)]
    values = [at for at in range(names_at + 1, width) if at not in text and at not in empty]
    row_names = [row[names_at] for row in rows]
    in_columns = gene_likeness([heading[at] for at in values]) > gene_likeness(row_names)
    no_counts = _NO_GENES if in_columns else _NO_CELLS
    left_out = [at for at in values if no_counts.fullmatch(heading[at].strip())]
    values = [at for at in values if at not in set(left_out)]
    if not values:
        msg = "there is no column of counts"
        raise ValueError(msg)
    return TableLayout(
        delimiter=delimiter,
        decimal="," if any(_DECIMAL_COMMA.fullmatch(row[at]) for row in rows for at in values) else ".",
        n_before=n_before,
        heading=tuple(heading),
        names_at=names_at,
        text_at=tuple(at for at in text if at != names_at),
        values_at=tuple(values),
        left_out=tuple(heading[at] for at in left_out),
        genes_in_columns=in_columns,
    )


def split_line(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line without their quotes."""
    line, blank = line.rstrip("\r\n"), delimiter == " "
    if '"' in line:
        # Quotes that make no sense, in a file of another kind or a damaged one, are taken as they are.
        with suppress(csv.Error):
            reader = csv.reader([line.strip() if blank else line], delimiter=delimiter, skipinitialspace=blank)
            return next(reader, [""])
    return line.split() if blank else line.split(delimiter)


def text_of(line: bytes) -> str:
    """Return a line as text; bad UTF-8 is replaced."""
    return line.decode("utf-8", "replace").rstrip("\r\n")


def _first_lines(file: IO[bytes]) -> tuple[int, list[str]]:
    """Return how many lines there are up to the heading, and the heading and some lines behind it.

    Fewer of a wide table: each reader of a dataset looks at them again.
    """
    n_before, n_bytes, lines = 0, 0, []
    for number, line in _without_preface(text_of(line).removeprefix("\ufeff") for line in lines_of(file)):
        n_before = n_before or number
        n_bytes += len(line)
        lines.append(line)
        if len(lines) > _LOOKED_AT or (n_bytes > _LOOKED_AT_BYTES and len(lines) > _LEAST_LOOKED_AT):
            break
    return n_before, lines


def _without_preface(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines from the heading on that are not blank, with their numbers from 1."""
    begun = gct = False
    for number, line in enumerate(lines, 1):
        if gct:
            gct = False  # the sizes, behind the line with the version
        elif not begun and line.startswith("#"):
            gct = line.startswith(_GCT)
        elif line.strip():
            begun = True
            yield number, line


def _are_numbers(rows: Sequence[Sequence[str]]) -> bool:
    """Whether most fields behind the first are numbers."""
    return bool(np.mean([bool(_NUMBER.fullmatch(field)) for row in rows for field in row[1:]] or [False]) > 0.5)


def _is_text(fields: Sequence[str]) -> bool:
    """Whether most fields are no numbers; a column of numbers with a few words is a fault, not a column of text."""
    return sum(not _NUMBER.fullmatch(field) for field in fields) > len(fields) / 2
