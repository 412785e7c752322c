"""Which matrix of a dataset holds the counts, and what must be done to its values.

Contract: the matrix is the one that the user names, else ``layers/counts``, ``raw.X``, ``X``, or the only other layer
of whole numbers, in this order. Whole numbers are told by a sample: 99 % of the positive finite values, to within 1e-3.
Where no matrix holds any, counts are computed back from log-normalised values if that is exact; where it is not,
and the user allows it, proportions are taken. Whatever is decided is said. Scaled values are refused: nothing can be
made of them. Cells are judged as they are read, not here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy import sparse

from cellray.errors import CountsError, MissingKeyError
from cellray.ingest.matrix import Matrix, canonical
from cellray.ingest.reader import COUNTS, LAYERS, RAW, Reader, X
from cellray.ingest.values import Conversion, near_integer, recovered

MIN_INTEGERS: Final = 0.99
_TRIED_CELLS = 64
_MOST_CELLS = 0.95  # a bad cell among them is rejected when it is read
_LARGEST_LOG = 16.0  # log1p of a million counts is 13.8
_SAID = {COUNTS: "layers['counts']"}


@dataclass(frozen=True)
class Layer:
    """The matrix to read, why, what is done to its values, and whether a cell with decimals is bad."""

    name: str
    matrix: Matrix
    reason: str
    conversion: Conversion = Conversion.NONE
    integers: bool = True
    notes: tuple[str, ...] = ()
    missing: float = 0.0
    """Share of the sampled values that are no numbers."""


@dataclass(frozen=True)
class _Values:
    """What a sample of a matrix says: its size, shares of whole, nearly whole and negative values, the largest one."""

    n: int
    whole: float
    near: float
    negative: float
    missing: float
    largest: float

    @classmethod
    def of(cls, values: np.ndarray) -> "_Values":
        finite = values[np.isfinite(values)]
        positive = finite[finite > 0]
        if not len(values):
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        missing, negative = 1 - len(finite) / len(values), float(np.mean(finite < 0)) if len(finite) else 0.0
        if not len(positive):
            return cls(0, 0.0, 0.0, negative, missing, 0.0)
        whole = float(np.mean(positive == np.rint(positive)))
        near = float(np.mean(near_integer(positive)))
        return cls(len(positive), whole, near, negative, missing, float(positive.max()))

    @property
    def counts(self) -> bool:
        return self.near >= MIN_INTEGERS

    @property
    def scaled(self) -> bool:
        return self.negative > 1 - MIN_INTEGERS

    @property
    def logs(self) -> bool:
        return self.n > 0 and not self.scaled and self.largest < _LARGEST_LOG

    @property
    def verdict(self) -> str:
        if not self.n and not self.negative:
            return "is empty"
        looks = "scaled: it has negative values" if self.scaled else "normalised"
        return f"holds {int(100 * self.whole)} % integers (looks {looks})"


def choose_layer(
    reader: Reader,
    uri: str,
    wanted: str | None,
    *,
    integers: bool = True,
    round_values: bool = False,
    allow_normalised: bool = False,
) -> Layer:
    """Choose the matrix with the counts.

    Parameters
    ----------
    reader, uri
        The open dataset, and what messages call it.
    wanted
        ``X``, ``raw`` or ``raw.X``, a layer's name or ``layers/<name>``; None to find it.
    integers
        Whether values must be counts; without, a named layer is taken as it is.
    round_values
        Whether the decimals of a named layer are rounded.
    allow_normalised
        Whether proportions are taken where counts cannot be had.

    Raises
    ------
    CountsError
        If there are no counts.
    MissingKeyError
        If ``wanted`` is not there.
    """
    present = reader.layers()
    if wanted is None:
        return _found(reader, uri, present, allow_normalised=allow_normalised)
    name = next((name for name in _spellings(wanted) if name in present), None)
    if name is None:
        msg = f"{uri}: no layer {wanted!r} (has: {', '.join(present) or 'none'}); pass one of these to --layer"
        raise MissingKeyError(msg)
    matrix = reader.matrix(name)
    if not integers:
        return Layer(name, matrix, f"{name}: as asked; values taken as they are", integers=False)
    values = _Values.of(reader.sample(matrix))
    if values.counts:
        return _counts(name, matrix, values, "as asked; ")
    if round_values and not values.scaled and values.n:
        note = f"decimals of {name} are rounded to whole counts, as asked"
        return Layer(name, matrix, f"{name}: as asked; rounded", Conversion.ROUND, notes=(note,))
    made = _made(reader, [(name, matrix, values)], allow_normalised=allow_normalised)
    if made is not None:
        return made
    has = ", ".join(present)
    way = _way_out(values, wanted)
    msg = f"{uri}: layer {wanted!r} {values.verdict}; {way}pass --layer with raw counts (has: {has})"
    raise CountsError(msg)


def _found(reader: Reader, uri: str, present: list[str], *, allow_normalised: bool) -> Layer:
    failed: list[str] = []
    seen: list[tuple[str, Matrix, _Values]] = []
    for name in (COUNTS, RAW, X):
        if name not in present:
            failed.append(f"no {_SAID.get(name, name)}")
            continue
        matrix = reader.matrix(name)
        values = _Values.of(reader.sample(matrix))
        if values.counts:
            return _counts(name, matrix, values)
        failed.append(f"{name} {values.verdict}")
        seen.append((name, matrix, values))
    others, decimals = [], ""
    for name in present:
        if name not in (COUNTS, RAW, X):
            matrix = reader.matrix(name)
            values = _Values.of(reader.sample(matrix))
            if values.counts:
                others.append((name, matrix, values))
            elif values.n and not values.scaled and values.largest >= _LARGEST_LOG:
                decimals = name.removeprefix(LAYERS)
    if len(others) == 1:
        name, matrix, values = others[0]
        note = f"{name} is taken: the only matrix of whole numbers ({_evidence(values)})"
        found = _counts(name, matrix, values)
        return replace(found, notes=(note, *found.notes))
    looked = ", ".join(reversed(failed))
    if others:
        names = ", ".join(name for name, _, _ in others)
        msg = (
            f"{uri}: no raw counts: {looked}; several layers hold whole numbers ({names}): pass one of them to --layer"
        )
        raise CountsError(msg)
    made = _made(reader, seen, allow_normalised=allow_normalised)
    if made is not None:
        return made
    rest = [name for name in present if name not in (COUNTS, RAW, X)]
    also = f" (there is also {', '.join(rest)})" if rest else ""
    if decimals:
        way = f"if the decimals of {decimals} are corrected counts, pass --layer {decimals} --round"
    elif any(values.logs for _, _, values in seen):
        way = (
            "counts cannot be computed back from it exactly: pass --layer with the name of the raw counts, give the "
            "file with the counts, or take proportions with --allow-normalised"
        )
    elif any(values.scaled for _, _, values in seen):
        way = (
            "nothing can be made of scaled values: pass --layer with the name of the raw counts, or give the file from "
            "before scaling"
        )
    else:
        way = "pass --layer with the name of the raw counts"
    msg = f"{uri}: no raw counts: {looked}{also}; {way}"
    raise CountsError(msg)


def _made(reader: Reader, seen: list[tuple[str, Matrix, _Values]], *, allow_normalised: bool) -> Layer | None:
    """Return a matrix that counts, or else proportions, can be made of; None if there is none."""
    for name, matrix, values in seen:
        if values.logs and np.mean(recovered(first_cells(reader, matrix, _TRIED_CELLS))[1]) >= _MOST_CELLS:
            note = (
                f"{name} is log-normalised; its counts are computed back from the smallest step of each cell "
                "(deviation below 1e-3)"
            )
            return Layer(name, matrix, f"{name}: counts computed back from log values", Conversion.LOG1P, notes=(note,))
    if not allow_normalised:
        return None
    for name, matrix, values in seen:
        if values.n and not values.scaled:
            conversion = Conversion.EXPM1 if values.logs else Conversion.NONE
            how = "exp(x) - 1 of log-normalised values" if values.logs else "normalised values"
            note = f"{name} holds no counts; {how} are taken as proportions, as allowed"
            return Layer(name, matrix, f"{name}: {how}", conversion, integers=False, notes=(note,))
    return None


def first_cells(reader: Reader, matrix: Matrix, n: int) -> sparse.csr_matrix:
    """Return the first ``n`` cells of a matrix in any layout; what is stored by gene is looked through once."""
    n = min(n, matrix.n_cells)
    if not n:
        return sparse.csr_matrix((0, matrix.n_columns), dtype=np.float32)
    if matrix.layout in ("csr", "dense"):
        return reader.rows(matrix, 0, n)
    cells, columns, values = [], [], []
    for entries in reader.entries(matrix):
        kept = entries.cells < n
        cells.append(entries.cells[kept])
        columns.append(entries.columns[kept])
        values.append(entries.values[kept])
    parts = (np.concatenate(values), (np.concatenate(cells), np.concatenate(columns)))
    return canonical(sparse.coo_matrix(parts, shape=(n, matrix.n_columns)).tocsr())


def _way_out(values: _Values, wanted: str) -> str:
    if values.scaled:
        return "nothing can be made of scaled values; "
    if values.logs:
        return "take proportions with --allow-normalised, or "
    return f"if these are corrected counts, add --round to --layer {wanted}, or "


def _spellings(wanted: str) -> Iterator[str]:
    yield RAW if wanted == "raw" else wanted
    yield f"{LAYERS}{wanted}"


def _evidence(values: _Values) -> str:
    share = values.near if values.whole < MIN_INTEGERS else values.whole
    return f"{100 * share:.4g} % of {values.n:,} sampled values are integers"


def _counts(name: str, matrix: Matrix, values: _Values, why: str = "") -> Layer:
    """Return a matrix of whole numbers, or of nearly whole ones, which is said."""
    near = values.whole < MIN_INTEGERS
    notes = (f"values of {name} are whole numbers to within 1e-3 and are rounded",) if near else ()
    return Layer(name, matrix, f"{name}: {why}{_evidence(values)}", notes=notes, missing=values.missing)
