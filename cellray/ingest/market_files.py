"""Which files of a folder belong together: a Matrix Market matrix and the tables that name its genes and its cells.

Contract: works on file names alone. A table belongs to the matrix with which it shares the longest beginning, a table
that is the only one of its kind to all matrices. It knows the names that Cell Ranger, GEO, STARsolo, kallisto-bustools,
alevin-fry, Parse, EBI and the portals use; which axis of a matrix is cells is not asked here.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from cellray.ingest import tree

_CELLS = re.compile(r"(barcode|cell|bc_wells|obs(_names)?$|samples?$|\.mtx_cols$|quants_mat_rows)", re.IGNORECASE)
_GENES = re.compile(r"(feature|gene|var(_names)?$|\.mtx_rows$|quants_mat_cols)", re.IGNORECASE)
_NAMES = re.compile(r"genes?[._]names?", re.IGNORECASE)
_TABLE = re.compile(r"\.(tsv|txt|csv|tab|mtx_rows|mtx_cols)$", re.IGNORECASE)
_SHARED_OUT = re.compile(r"UniqueAndMult", re.IGNORECASE)
_PREFERRED = ("matrix", "cells_x_genes", "cells_x_genes.total", "cells_x_genes.cell", "total", "counts")
_MOST_SHOWN = 6


@dataclass(frozen=True)
class MarketFiles:
    """Names of the files of one dataset; ``gene_names`` holds symbols where ``genes`` has ids alone, else None."""

    prefix: str
    matrix: str
    cells: str
    genes: str
    gene_names: str | None = None

    def roles(self) -> list[tuple[str, str]]:
        """Return (role, file name) of all files, as ``MarketReader`` takes them."""
        named = [] if self.gene_names is None else [("gene_names", self.gene_names)]
        return [("matrix", self.matrix), ("cells", self.cells), ("genes", self.genes), *named]


def find_markets(names: Sequence[str], matrix: str | None = None) -> list[MarketFiles]:
    """Group the file names of a folder into datasets, in the order of their names.

    Parameters
    ----------
    names
        All files of the folder.
    matrix
        The one matrix to find the tables of; None: all.

    Raises
    ------
    RefusedError
        If a matrix has no table of genes or of cells, or several matrices share all their tables and none is the one
        with all counts.
    """
    matrices = sorted(name for name in names if _plain(name).lower().endswith(".mtx"))
    if matrix is None and not all(_SHARED_OUT.search(name) for name in matrices):
        matrices = [name for name in matrices if not _SHARED_OUT.search(name)]
    tables = sorted(name for name in names if _TABLE.search(_plain(name)))
    symbols = [name for name in tables if _NAMES.search(name)]
    genes = [name for name in tables if _is_genes(name) and name not in symbols]
    if not genes:
        genes, symbols = symbols, []
    cells = [name for name in tables if name not in genes and name not in symbols and _is_cells(name)]
    found: list[MarketFiles] = []
    for one in matrices if matrix is None else [matrix]:
        own_cells = _table_of(one, cells, matrices)
        own_genes = _table_of(one, genes, matrices)
        if own_cells is None or own_genes is None:
            missing = "barcodes (barcodes.tsv)" if own_cells is None else "genes (features.tsv or genes.tsv)"
            there = ", ".join(sorted(names)[:_MOST_SHOWN]) + (", ..." if len(names) > _MOST_SHOWN else "")
            msg = f"there is no table of {missing} for {one} (the folder has: {there}); put it beside the matrix"
            raise tree.RefusedError(msg)
        prefix = _cut(_shared(one, own_cells))
        found.append(MarketFiles(prefix, one, own_cells, own_genes, _table_of(one, symbols, matrices)))
    return found if matrix is not None else _one_a_table(found)


def _one_a_table(found: list[MarketFiles]) -> list[MarketFiles]:
    """Keep one of the matrices that share all their tables: the one with all counts."""
    groups: defaultdict[tuple[str, str], list[MarketFiles]] = defaultdict(list)
    for one in found:
        groups[one.cells, one.genes].append(one)
    kept = []
    for group in groups.values():
        stems = {_plain(one.matrix).lower().removesuffix(".mtx"): one for one in group}
        chosen = next((stems[name] for name in _PREFERRED if name in stems), group[0] if len(group) == 1 else None)
        if chosen is None:
            listed = ", ".join(one.matrix for one in group)
            msg = f"several matrices have the same cells and genes ({listed}); give the file of one of them"
            raise tree.RefusedError(msg)
        kept.append(chosen)
    return kept


def _table_of(matrix: str, tables: Sequence[str], matrices: Sequence[str]) -> str | None:
    """Return the table of ``tables`` that belongs to ``matrix``."""
    if len(tables) == 1:
        return tables[0]

    def shared(table: str, other: str) -> int:
        return len(_shared(table, other))

    own = [table for table in tables if shared(table, matrix) == max(shared(table, other) for other in matrices)]
    # Of tables as like, the shortest name is the plain one: genes.tsv beside genes_of_interest.tsv.
    return min(own, key=lambda table: (-shared(table, matrix), len(table), table), default=None)


def _is_cells(name: str) -> bool:
    return _CELLS.search(_stem(name)) is not None


def _is_genes(name: str) -> bool:
    # The file name's end says what a table is: cells_x_genes.barcodes.txt, all_genes.csv.
    stem = _stem(name)
    cells, genes = ([match.end() for match in pattern.finditer(stem)] for pattern in (_CELLS, _GENES))
    return bool(genes) and max(genes) > max(cells, default=0)


def _stem(name: str) -> str:
    plain = _plain(name)
    return plain if plain.lower().endswith((".mtx_rows", ".mtx_cols")) else _TABLE.sub("", plain)


def _plain(name: str) -> str:
    return name[:-3] if name.lower().endswith(".gz") else name


def _shared(one: str, other: str) -> str:
    """Return the beginning that two names share."""
    same = (left == right for left, right in zip(one, other, strict=False))
    return one[: sum(takewhile(bool, same))]


def _cut(prefix: str) -> str:
    """Return a beginning up to its last joint."""
    return re.sub(r"[^_.\- ]*$", "", prefix)
