"""Judged cells to a token shard, the table that encoders take.

Contract: one row a cell in the same order; a rejected cell has its code and no tokens. It does not read or judge.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa
from scipy import sparse

from cellray import schema
from cellray.tokenize.tokenizers import Tokenizer


class Judged(Protocol):
    """Cells as ``cellray.ingest`` judges them."""

    @property
    def row0(self) -> int: ...  # noqa: D102
    @property
    def cell_ids(self) -> list[str]: ...  # noqa: D102
    @property
    def n_counts(self) -> np.ndarray: ...  # noqa: D102
    @property
    def n_genes(self) -> np.ndarray: ...  # noqa: D102
    @property
    def reject_codes(self) -> list[str | None]: ...  # noqa: D102
    @property
    def counts(self) -> sparse.csr_matrix: ...  # noqa: D102


def token_table(cells: Judged, tokenizer: Tokenizer, slots: np.ndarray) -> pa.Table:
    """Tokenise ``cells``; returns ``schema.token_shard()``. ``slots`` are those of all columns of their dataset."""
    present = np.unique(slots[slots >= 0])
    tokens = tokenizer(cells.counts, cells.n_counts, cells.cell_ids, present)
    columns = [
        pa.array(np.arange(cells.row0, cells.row0 + len(cells.cell_ids))),
        pa.array(cells.cell_ids, pa.string()),
        pa.array(cells.n_counts),
        pa.array(cells.n_genes),
        pa.array(cells.reject_codes, pa.string()),
        *tokens.values(),
    ]
    return pa.table(columns, schema=schema.token_shard(binned=tokenizer.binned))
