"""Tables that name the genes or cells of a matrix: one column or several, with a heading or without, gzipped or not.

Contract: a table is read line by line and never held whole unless asked for; its number of lines is counted, its first
line is taken for a heading only if there is one line more than the matrix has names and it reads like one. Fields are
parted by tabs, else by commas; quotes around them go. It does not know what the names mean.
"""

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import IO, cast

from cellray import storage
from cellray.ingest.matrix import MAX_COLUMNS

_GZIP = b"\x1f\x8b"
_HEADING = re.compile(
    r"(|#.*|x|v\d+|id|ids|index|unnamed.*|.*_id|.*_names?|names?|(cell|gene|feature)(s|_?names?|_?ids?|_?key|_?symbols?)?"
    r"|barcodes?|bc_wells|symbols?|ensembl(_?(gene_?)?ids?)?)",
    re.IGNORECASE,
)


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


class NameTable:
    """One table at ``uri``, for a matrix axis of a length that is known when ``fit`` is called."""

    def __init__(self, uri: str) -> None:
        self.uri, self.name = uri, uri.rsplit("/", 1)[-1]
        self.heading: list[str] | None = None

    @cached_property
    def n_lines(self) -> int:
        """Lines of the file that are not empty at its end."""
        with open_text(self.uri) as file:
            return sum(1 for line in file if line.strip())

    def fits(self, length: int) -> bool:
        """Whether the table can name an axis of ``length``."""
        return self.n_lines == length or (self.n_lines == length + 1 and self._first_is_heading())

    def fit(self, length: int) -> None:
        """Note whether the first line is a heading; ``fits`` must hold."""
        self.heading = self._split_first() if self.n_lines == length + 1 else None

    def rows(self, start: int, stop: int | None) -> list[list[str]]:
        """Return the fields of rows ``start`` to ``stop``."""
        skip = int(self.heading is not None)
        with open_text(self.uri) as file:
            lines = islice(file, start + skip, None if stop is None else stop + skip)
            return [self._split(line) for line in lines if stop is not None or line.strip()]

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
        width = max(map(len, rows), default=0)
        return [[row[at] if at < len(row) else "" for row in rows] for at in range(width)]

    def _first_is_heading(self) -> bool:
        return _HEADING.fullmatch((self._split_first() or [""])[0]) is not None

    def _split_first(self) -> list[str]:
        with open_text(self.uri) as file:
            return self._split(next(iter(file), b""))

    def _split(self, line: bytes) -> list[str]:
        text = line.decode("utf-8", "replace").rstrip("\r\n").removeprefix("\ufeff")
        if "\t" not in text and self.name.lower().removesuffix(".gz").endswith(".csv"):
            return next(csv.reader([text]), [""])
        return [_unquoted(field) for field in text.split("\t")]


def _unquoted(field: str) -> str:
    return field[1:-1] if len(field) > 1 and field[0] == field[-1] == '"' else field


def column_like(names: Sequence[str], pattern: str) -> int | None:
    """Return the number of the first column whose heading is like ``pattern``, None if there is none."""
    return next((at for at, name in enumerate(names) if re.fullmatch(pattern, name.strip(), re.IGNORECASE)), None)
