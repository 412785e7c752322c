"""A model's genes and the columns of a dataset that stand for them.

Contract: a *slot* is a row of the model's gene table. A name is matched exactly: as an Ensembl id, as an Ensembl id
behind which a version (``.7``) was cut off, or as a symbol of the model's own symbol table (case matters). A name that
is not found like this is looked up without the prefix of its genome (``GRCh38_CD3E``) and, where it holds both
(``CD3E_ENSG00000198851``, ``ENSG00000198851|CD3E``), by the id inside it, then by the symbol. Several names may fall on
one slot. It does not choose between columns of a file (``cellray.ingest.plan`` does) and knows no aliases beyond the
model's table.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from cellray import schema
from cellray.errors import ModelError
from cellray.ingest.genomes import without_prefix

UNKNOWN = -1
_ID_INSIDE = re.compile(r"(?:^|[_|:;,/\s-])(ENSG\d{11})(?:\.\d+)?(?=$|[_|:;,/\s-])")
_PSEUDO_AUTOSOMAL = "_PAR_Y"


@dataclass(frozen=True)
class GeneMatch:
    """Names looked up: their kind, ``slots`` int32[len(names)] with -1 for unknown, and how many distinct slots."""

    kind: Literal["ensembl", "symbol"]
    slots: np.ndarray
    n_known: int


class GeneIndex:
    """Look-up from gene names to slots.

    Parameters
    ----------
    genes
        Table of ``schema.genes()`` or ``schema.symbol_tokens()``; slot i is its row i.
    symbols
        Table of ``schema.symbols()``. Of several ids for one symbol the first that the model knows counts.

    Attributes
    ----------
    n_genes
        Number of slots.

    Raises
    ------
    ModelError
        If a name is in the gene table twice.
    """

    def __init__(self, genes: pa.Table, symbols: pa.Table) -> None:
        self.n_genes = genes.num_rows
        self._by_id = _slots(genes, schema.ENSEMBL_ID)
        self._by_symbol = _slots(genes, schema.SYMBOL)
        pairs = zip(symbols[schema.SYMBOL].to_pylist(), symbols[schema.ENSEMBL_ID].to_pylist(), strict=True)
        for symbol, ensembl_id in pairs:
            if ensembl_id in self._by_id:
                self._by_symbol.setdefault(symbol, self._by_id[ensembl_id])

    def match(self, names: Sequence[str]) -> GeneMatch:
        """Look up ``names`` as Ensembl ids and as symbols; the kind that matches more names wins, Ensembl on a tie."""
        by_id = np.fromiter((self._slot_of_id(name) for name in names), np.int32, len(names))
        by_symbol = np.fromiter((self._slot_of_symbol(name) for name in names), np.int32, len(names))
        symbols_win = np.count_nonzero(by_symbol >= 0) > np.count_nonzero(by_id >= 0)
        slots = by_symbol if symbols_win else by_id
        return GeneMatch("symbol" if symbols_win else "ensembl", slots, len(np.unique(slots[slots >= 0])))

    def share_known(self, names: Iterable[str]) -> float:
        """Return the share of ``names`` that are a gene of the model in either kind, as they stand."""
        found = [name in self._by_symbol or name in self._by_id for name in names]
        return sum(found) / len(found) if found else 0.0

    def _slot_of_id(self, name: str) -> int:
        slot = self._by_id.get(name)
        if slot is not None:
            return slot
        stem, dot, version = name.rpartition(".")
        if dot and version.isdigit() and stem in self._by_id:
            return self._by_id[stem]
        if name.endswith(_PSEUDO_AUTOSOMAL):
            return UNKNOWN
        inside = _ID_INSIDE.search(without_prefix(name))
        return self._by_id.get(inside[1], UNKNOWN) if inside else UNKNOWN

    def _slot_of_symbol(self, name: str) -> int:
        slot = self._by_symbol.get(name)
        if slot is not None:
            return slot
        bare = without_prefix(name)
        if inside := _ID_INSIDE.search(bare):
            bare = (bare[: inside.start()] or bare[inside.end() :]).strip("_|:;,/ -")
        return self._by_symbol.get(bare, UNKNOWN) if bare != name else UNKNOWN


def _slots(genes: pa.Table, column: str) -> dict[str, int]:
    """Map the names of a column, if the table has it, to their rows."""
    names = genes[column].to_pylist() if column in genes.column_names else []
    found = {name: slot for slot, name in enumerate(names)}
    if len(found) != len(names):
        twice = next(name for slot, name in enumerate(names) if found[name] != slot)
        msg = f"gene table: {twice!r} is there more than once; each gene needs one row"
        raise ModelError(msg)
    return found
