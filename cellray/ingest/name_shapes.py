"""How much the names of an axis look like those of genes, for files that do not say which axis is which.

Contract: judges the look of names alone, of any organism; it knows no gene table, and of single names only a handful of
genes that every expressed cell has.
"""

import re
from collections.abc import Sequence
from typing import Final

_LOOKED_AT: Final = 100
_FEW: Final = 30
"""An axis with fewer names is seldom genes: tables of a few samples have names as different as genes have."""

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}")
_BARCODE = re.compile(r"(?:.*[_.:#-])?[ACGTN]{8,}(?:[_.:#-].*)?")
_SYMBOL = re.compile(
    r"[A-Z][A-Z0-9]{1,9}([-.][A-Z0-9]{1,7})*|[A-Z][a-z0-9]{1,9}(-[A-Za-z0-9]{1,6})*|C[0-9XY]+orf\d+|LOC\d+"
    r"|(RP|CT|A[CLP]|LL|KB|XX)[A-Za-z0-9]*-\w+\.\d+"
)
_WELL = re.compile(r"[A-P]\d{1,2}")
_EVERYWHERE = re.compile(
    r"ACTB|ACTG1|B2M|CD74|EEF1A1|EEF2|FTH1|FTL|GAPDH|HSP90AB1|MALAT1|MT-(CO[123]|ND[1-6]|CYB)|NEAT1|PTMA|TMSB10|TMSB4X"
    r"|TPT1|UBA52|VIM|RPL(P0|P1|3|10|13)|RPS(2|3|18|27)",
    re.IGNORECASE,
)


def gene_likeness(names: Sequence[str]) -> float:
    """Return how much names are like those of genes.

    Parameters
    ----------
    names
        Names of one axis, or the first of them.

    Returns
    -------
    float
        2 where genes of every cell are among them; else 0 to 1: the share of Ensembl ids, or of names that are spelled
        like symbols and have many different stems.
    """
    if len({name.upper() for name in names if _EVERYWHERE.fullmatch(name)}) > 1:
        return 2.0
    shown = [name for name in names[: 20 * _LOOKED_AT : max(1, len(names) // _LOOKED_AT)] if name]
    if not shown:
        return 0.0
    ensembl = sum(bool(_ENSEMBL.search(name)) for name in shown) / len(shown)
    symbols = [name for name in shown if _is_symbol(name)]
    stems = {re.sub(r"[\d_.:-]+", "", name).lower() for name in symbols}
    return max(ensembl, len(stems) / len(shown) * min(1.0, len(names) / _FEW))


def _is_symbol(name: str) -> bool:
    return _SYMBOL.fullmatch(name) is not None and not _WELL.fullmatch(name) and not _BARCODE.fullmatch(name)
