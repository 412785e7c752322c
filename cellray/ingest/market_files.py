"""Which files of a folder belong together: a Matrix Market matrix and the tables that name its genes and its cells.

Contract: works on file names alone. Names are compared by their words, those for the role of a file (``barcodes``,
``matrix``) left out: what remains is the sample, be it in front of the role or behind it. A table with no sample in its
name belongs to all matrices, any other to those it is most like. It knows the names that Cell Ranger, GEO, STARsolo,
kallisto-bustools, alevin-fry, Parse, EBI and the portals use; which axis of a matrix is cells is not asked here.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from cellray.ingest import tree

_CELLS = re.compile(r"(barcode|cell|bc_wells|obs(_names)?$|samples?$|\.mtx_cols$|quants_mat_rows)", re.IGNORECASE)
_GENES = re.compile(r"(feature|gene|var(_names)?$|\.mtx_rows$|quants_mat_cols)", re.IGNORECASE)
_NAMES = re.compile(r"genes?[._]names?", re.IGNORECASE)
_TABLE = re.compile(r"\.(tsv|txt|csv|tab|mtx_rows|mtx_cols)$", re.IGNORECASE)
_NO_TABLE = re.compile(r"read_?me|licen[cs]e|filelist|md5|checksum|summary|stats|metrics|version", re.IGNORECASE)
_COLUMNS = re.compile(r"col", re.IGNORECASE)
_ROLE = re.compile(
    r"barcodes?|bcs?|wells?|cells?|cell_?names?|genes?|gene_?names?|all|features?|matri(x|ces)|mat|mtx|counts?|dge"
    r"|expression|exprs?|names?|ids?|list|info|tables?|meta|metadata|annotations?|rows?|cols?|(row|col)names?|obs|var"
    r"|quants|x",
    re.IGNORECASE,
)
_SHARED_OUT = re.compile(r"UniqueAndMult", re.IGNORECASE)
_SPLICED = ("mature", "spliced")
_UNSPLICED = ("nascent", "unspliced", "ambiguous", "nucleus", "spanning")
_RANKS = {"matrix": 0, "counts": 1, "total": 2, "cell": 3} | dict.fromkeys(_SPLICED, 4) | dict.fromkeys(_UNSPLICED, 5)
_PARTS = (*_SPLICED, *_UNSPLICED)
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
    names = _without_copies(names, matrix)
    matrices = sorted(name for name in names if _plain(name).lower().endswith(".mtx"))
    if matrix is None and not all(_SHARED_OUT.search(name) for name in matrices):
        matrices = [name for name in matrices if not _SHARED_OUT.search(name)]
    tables = sorted(name for name in names if _TABLE.search(_plain(name)) and not _NO_TABLE.search(name))
    symbols = [name for name in tables if _NAMES.search(name)]
    genes = [name for name in tables if _is_genes(name) and name not in symbols]
    if not genes:
        genes, symbols = symbols, []
    cells = [name for name in tables if name not in genes and name not in symbols and _is_cells(name)]
    others = [name for name in tables if name not in genes and name not in symbols and name not in cells]
    found: list[MarketFiles] = []
    for one in matrices if matrix is None else [matrix]:
        own_cells = _table_of(one, cells, matrices)
        own_genes = _table_of(one, genes, matrices, shared=len(genes) == 1)
        own_cells, own_genes = _with_unnamed(one, own_cells, own_genes, _tables_of(one, others, matrices))
        if own_cells is None or own_genes is None:
            raise tree.RefusedError(_missing(one, own_cells, names))
        prefix = _cut(_shared(one, own_cells)) or (_sample(one) if len(matrices) > 1 else "")
        prefix = "" if prefix.rstrip("._- ").lower() in _PARTS else prefix
        own_symbols = _table_of(one, symbols, matrices, shared=len(symbols) == 1)
        found.append(MarketFiles(prefix, one, own_cells, own_genes, own_symbols))
    return found if matrix is not None else _one_a_table(_without_parts(found))


def says_role(name: str) -> bool:
    """Whether the name of a table says what it names, genes or cells."""
    return _is_cells(name) or _is_genes(name) or _NAMES.search(name) is not None


def part_of_counts(matrix: str) -> str | None:
    """Return which part of all counts a matrix holds by its name: ``spliced``, ``total``, ...; None if it has none."""
    last = re.split(r"[_.\- /]", _plain(matrix).lower().removesuffix(".mtx"))[-1]
    return last if last in (*_PARTS, "total") else None


def _missing(matrix: str, cells: str | None, names: Sequence[str]) -> str:
    there = ", ".join(sorted(names)[:_MOST_SHOWN]) + (", ..." if len(names) > _MOST_SHOWN else "")
    if cells is not None and any(_plain(name).lower().endswith("peaks.bed") for name in names):
        return f"{matrix} counts peaks, not genes (the folder has: {there}); give the matrix of the gene expression"
    missing = "barcodes (barcodes.tsv)" if cells is None else "genes (features.tsv or genes.tsv)"
    return f"there is no table of {missing} for {matrix} (the folder has: {there}); put it beside the matrix"


def _without_copies(names: Sequence[str], matrix: str | None) -> list[str]:
    """Leave out hidden files, and a packed file beside the same one unpacked."""
    there = set(names)
    return [
        name
        for name in names
        if name == matrix or not (name.startswith(".") or (name != _plain(name) and _plain(name) in there - {matrix}))
    ]


def _with_unnamed(
    matrix: str, cells: str | None, genes: str | None, others: Sequence[str]
) -> tuple[str | None, str | None]:
    """Take tables whose names say nothing for the missing ones; ``MarketReader`` looks into them."""
    if cells is None and genes is None and len(others) == 2:
        genes, cells = sorted(others, key=lambda name: (_COLUMNS.search(name) is not None, name))
    elif len(others) == 1:
        cells, genes = cells or others[0], genes or others[0]
        if cells == genes:
            return None, None
    return cells, genes


def _without_parts(found: list[MarketFiles]) -> list[MarketFiles]:
    """Leave out unspliced counts with tables of their own beside spliced ones (``kb count --workflow lamanno``)."""
    groups: defaultdict[str, list[MarketFiles]] = defaultdict(list)
    for one in found:
        part = part_of_counts(one.matrix)
        groups[_plain(one.matrix).lower().removesuffix(".mtx").removesuffix(part or "")].append(one)
    kept = []
    for group in groups.values():
        if len({(one.cells, one.genes) for one in group}) == len(group) > 1:
            kept += [one for one in group if part_of_counts(one.matrix) in _SPLICED][:1] or group
        else:
            kept += group
    return [one for one in found if one in kept]


def _one_a_table(found: list[MarketFiles]) -> list[MarketFiles]:
    """Keep one of the matrices that share all their tables: the one with all counts, else the spliced ones."""
    groups: defaultdict[tuple[str, str], list[MarketFiles]] = defaultdict(list)
    for one in found:
        groups[one.cells, one.genes].append(one)
    kept = []
    for group in groups.values():
        chosen = group[0] if len(group) == 1 else min(group, key=lambda one: (_rank(one.matrix), one.matrix))
        if len(group) > 1 and [_rank(one.matrix) for one in group].count(_rank(chosen.matrix)) > 1:
            listed = ", ".join(one.matrix for one in group)
            msg = f"several matrices have the same cells and genes ({listed}); give the file of one of them"
            raise tree.RefusedError(msg)
        # The matrices of one sample differ in their parts only, which is no name for it.
        kept.append(chosen if len(group) == 1 else replace(chosen, prefix=_cut(_shared(chosen.matrix, chosen.cells))))
    return kept


def _rank(matrix: str) -> int:
    """Return how far a matrix is from being the one with all counts, among several of the same cells and genes."""
    last = (_words(matrix) or [""])[-1].lower()
    if last in _RANKS:
        return _RANKS[last]
    # A name that says nothing may be all counts as well as something else: as good as the spliced ones, so no choice.
    return _RANKS["counts"] if _ROLE.fullmatch(last) else _RANKS["spliced"]


def _table_of(matrix: str, tables: Sequence[str], matrices: Sequence[str], *, shared: bool = False) -> str | None:
    """Return the table of ``tables`` that belongs to ``matrix``; a ``shared`` one belongs to all."""
    own = tables if shared else _tables_of(matrix, tables, matrices)
    sample = _sample(matrix).lower()

    def order(table: str) -> tuple[bool, int, int, int, int, str]:
        words, start = _alike(table, matrix)
        barcodes_first = "barcode" not in table.lower()
        return _sample(table).lower() != sample, -words, -start, barcodes_first, len(table), table

    # Of tables as like, the shortest name is the plain one: genes.tsv beside genes_of_interest.tsv.
    return min(own, key=order, default=None)


def _tables_of(matrix: str, tables: Sequence[str], matrices: Sequence[str]) -> list[str]:
    """Return the tables that are not more like another matrix."""
    return [
        table
        for table in tables
        if not _sample(table) or _alike(table, matrix) == max(_alike(table, other) for other in {matrix, *matrices})
    ]


def _alike(one: str, other: str) -> tuple[int, int]:
    """Return how many words of the sample two names share, and how many letters of its beginning."""
    left, right = _sample(one).lower(), _sample(other).lower()
    return len({*left.split("_")} & {*right.split("_")} - {""}), len(_shared(left, right))


def _sample(name: str) -> str:
    """Return the words of a name that say nothing of its role, joined by ``_``."""
    return "_".join(word for word in _words(name) if not _ROLE.fullmatch(word))


def _words(name: str) -> list[str]:
    stem = re.sub(r"\.mtx(_rows|_cols)?$", "", _TABLE.sub("", _plain(name)), flags=re.IGNORECASE)
    return [word for word in re.split(r"[_.\- ]+", stem) if word]


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
