"""Tables that name the genes or cells of a matrix: one column or several, with a heading or without, gzipped or not.

Contract: a table is read line by line and never held whole unless asked for; its number of lines is counted, its first
line is taken for a heading only if there is one line more than the matrix has names and it reads like one. Fields are
parted by what parts all of the first lines alike: tabs, else commas or semicolons, and between an Ensembl id and what
follows blanks. Quotes around fields go, so does a column that numbers the rows, as R writes it. It does not know what
the names mean.
"""

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from typing import IO, cast

from cellray import storage
from cellray.ingest.matrix import MAX_COLUMNS

MAX_LINE = 1 << 28

_GZIP = b"\x1f\x8b"
_LOOKED_AT = 20
_HEADING = re.compile(
    r"(|0|#.*|x|v\d+|id|ids|index|unnamed.*|row[._]?names?|.*[._ ]id|.*[._ ]?names?|names?"
    r"|(cell|gene|feature)(s|[._ ]?names?|[._ ]?ids?|[._ ]?key|[._ ]?symbols?|[._ ]?barcodes?)?"
    r"|(.*[._ ])?barcodes?|bc_wells|symbols?|ensembl([._ ]?(gene[._ ]?)?ids?)?)",
    re.IGNORECASE,
)
_NUMBERING = re.compile(r"|x|#|index|row|unnamed.*", re.IGNORECASE)
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?")
_BARCODE = re.compile(r"[ACGTN]{8,}([_.-]\w+)?")


@contextmanager
def open_text(uri: str) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacking it if its content is gzip, whatever it is called."""
    with storage.open_read(uri) as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if packed:
            with gzip.open(file, "rb") as plain:
                yield cast("IO[bytes]", plain)
        else:
            yield file


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file; one that is longer than any table's is an error, not read to its end."""
    readline = file.readline  # bound once: fsspec's files look it up anew for each line
    while line := readline(MAX_LINE):
        if len(line) == MAX_LINE:
            msg = f"a line is longer than {MAX_LINE:,} bytes"
            raise ValueError(msg)
        yield line


class NameTable:
    """One table at ``uri``, for a matrix axis of a length that is known when ``fit`` is called."""

    def __init__(self, uri: str) -> None:
        self.uri, self.name = uri, uri.rsplit("/", 1)[-1]
        self.heading: list[str] | None = None
        self._numbered = False

    @cached_property
    def n_lines(self) -> int:
        """Lines of the file that are not empty at its end."""
        with open_text(self.uri) as file:
            return sum(1 for line in lines_of(file) if line.strip())

    def fits(self, length: int) -> bool:
        """Whether the table can name an axis of ``length``."""
        return self.n_lines == length or (self.n_lines == length + 1 and self._first_is_heading())

    def fit(self, length: int) -> None:
        """Note whether the first line is a heading; ``fits`` must hold."""
        heading = self._first[0] if self.n_lines == length + 1 else None
        rows = self._first[int(heading is not None) :]
        if heading is not None and rows and len(heading) == len(rows[0]) - 1:
            heading = ["", *heading]
        self._numbered = _are_numbered(rows) and (heading is None or _NUMBERING.fullmatch(heading[0]) is not None)
        self.heading = heading[int(self._numbered) :] if heading is not None else None

    def rows(self, start: int, stop: int | None) -> list[list[str]]:
        """Return the fields of rows ``start`` to ``stop``."""
        skip = int(self.heading is not None)
        with open_text(self.uri) as file:
            lines = (line for line in lines_of(file) if line.strip())
            rows = [self._split(line) for line in islice(lines, start + skip, None if stop is None else stop + skip)]
        return [row[1:] for row in rows] if self._numbered else rows

    def columns(self) -> list[list[str]]:
        """Return all columns, of a table of at most four million rows; short rows are filled with empty text.

        Raises
        ------
        ValueError
            If there are more rows.
        """
        if self.n_lines > MAX_COLUMNS:
            msg = f"{self.name} holds {self.n_lines:,} names (at most {MAX_COLUMNS:,})"
            raise ValueError(msg)
        rows = self.rows(0, None)
        width = max([*map(len, rows), len(self.heading or [])], default=0)
        return [[row[at] if at < len(row) else "" for row in rows] for at in range(width)]

    def _first_is_heading(self) -> bool:
        first, *rows = self._first or [[""]]
        if _HEADING.fullmatch(first[0]):
            return True
        return any(
            pattern.fullmatch(first[0]) is None and rows and all(pattern.fullmatch(row[0]) for row in rows)
            for pattern in (_ENSEMBL, _BARCODE)
        )

    @cached_property
    def _first_lines(self) -> list[str]:
        with open_text(self.uri) as file:
            return [_text(line) for line in islice(lines_of(file), _LOOKED_AT)]

    @cached_property
    def _first(self) -> list[list[str]]:
        """The first lines, split."""
        return [self._split(line) for line in self._first_lines if line.strip()]

    @cached_property
    def _delimiter(self) -> str | None:
        lines = [line for line in self._first_lines if line.strip()]
        if any("\t" in line for line in lines):
            return "\t"
        for delimiter in ",;":
            # The heading may be shorter by one field.
            widths = {len(_split(line, delimiter)) for line in lines[1:] or lines}
            if len(widths) == 1 and widths.pop() > 1:
                return delimiter
        with_id = [_ENSEMBL.fullmatch(line.split(" ")[0].strip('"')) is not None for line in lines]
        return " " if with_id and all(with_id[1:] or with_id) and " " in lines[-1].strip() else None

    def _split(self, line: bytes | str) -> list[str]:
        text = line if isinstance(line, str) else _text(line)
        return [text.strip('"')] if self._delimiter is None else _split(text, self._delimiter)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n").removeprefix("\ufeff")


def _split(text: str, delimiter: str) -> list[str]:
    if delimiter != "\t" and '"' in text:
        with suppress(csv.Error):
            return next(csv.reader([text], delimiter=delimiter), [""])
    return [_unquoted(field) for field in text.split(delimiter)]


def _unquoted(field: str) -> str:
    return field[1:-1] if len(field) > 1 and field[0] == field[-1] == '"' else field


def _are_numbered(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first of several columns counts from 0 or 1."""
    first = [row[0] for row in rows if len(row) > 1]
    return bool(rows) and len(first) == len(rows) and first in (_counted(0, len(rows)), _counted(1, len(rows)))


def _counted(start: int, length: int) -> list[str]:
    return [str(number) for number in range(start, start + length)]


def column_like(names: Sequence[str], pattern: str) -> int | None:
    """Return the number of the first column whose heading is like ``pattern``, None if there is none."""
    return next((at for at, name in enumerate(names) if re.fullmatch(pattern, name.strip(), re.IGNORECASE)), None)
