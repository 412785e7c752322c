"""Labelled cells as ragged binned tokens: what plugins are trained on, replayed from and judged by.

Contract: cells in a fixed order, each with a name, a label, a group (its donor, say) and its tokens without CLS. The
table form is what travels with a plugin. It reads no counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from cellray import schema

_EMPTY = pa.array([], pa.list_(pa.uint16()))


@dataclass(frozen=True)
class Cells:
    """n cells.

    Attributes
    ----------
    names, labels, groups
        (n,) str.
    tokens, bins, offsets
        uint16 and int16 values, and (n + 1,) int64 where each cell's begin.
    """

    names: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    tokens: np.ndarray
    bins: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> Self:
        """Return cells ``rows`` (numbers or flags), in that order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        lengths = np.diff(self.offsets)[rows]
        ends = np.cumsum(lengths)
        within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        at = np.repeat(self.offsets[rows], lengths) + within
        offsets = np.concatenate([[0], ends]).astype(np.int64)
        names, labels, groups = self.names[rows], self.labels[rows], self.groups[rows]
        return type(self)(names, labels, groups, self.tokens[at], self.bins[at], offsets)

    def relabelled(self, label: str) -> Self:
        """Return the same cells, all with one label."""
        labels = np.full(len(self), label, dtype=object).astype(str)
        return type(self)(self.names, labels, self.groups, self.tokens, self.bins, self.offsets)

    @classmethod
    def concatenated(cls, parts: Sequence["Cells"]) -> Self:
        """Return the cells of all parts (at least one)."""
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("names", "labels", "groups", "tokens", "bins")
        }
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(**joined, offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def table(self) -> pa.Table:
        """Return the cells as ``schema.labelled_cells()``."""
        offsets = pa.array(self.offsets.astype(np.int32))
        columns = [
            *(pa.array(text.astype(str).tolist(), pa.string()) for text in (self.names, self.labels, self.groups)),
            pa.ListArray.from_arrays(offsets, pa.array(self.tokens.astype(np.uint16))),
            pa.ListArray.from_arrays(offsets, pa.array(self.bins.astype(np.int16))),
        ]
        return pa.table(columns, schema=schema.labelled_cells())

    @classmethod
    def none(cls) -> Self:
        """Return no cells."""
        return cls.of_table(schema.labelled_cells().empty_table())

    @classmethod
    def of_table(cls, table: pa.Table) -> Self:
        """Return the cells of a table as ``table`` made it; tokens and bins of unequal number are a ``ValueError``."""
        names, labels, groups = (
            np.array(table[name].to_pylist(), dtype=str) for name in (schema.CELL_ID, schema.CELL_TYPE, schema.GROUP)
        )
        return cls.of_columns(names, labels, groups, table)

    @classmethod
    def of_columns(cls, names: np.ndarray, labels: np.ndarray, groups: np.ndarray, table: pa.Table) -> Self:
        """Return cells with the tokens and bins of ``table``, a token shard for example."""
        tokens, bins = (pa.concat_arrays(table[name].chunks or [_EMPTY]) for name in (schema.TOKENS, schema.BINS))
        lengths = tokens.value_lengths().fill_null(0).to_numpy()
        if not np.array_equal(lengths, bins.value_lengths().fill_null(0).to_numpy()):
            msg = "a cell has not as many bins as tokens"
            raise ValueError(msg)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(names, labels, groups, tokens.flatten().to_numpy(), bins.flatten().to_numpy(), offsets)
