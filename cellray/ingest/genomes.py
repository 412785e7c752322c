"""Which genome of a file that holds several is read.

Contract: the one that the user names, else the only human one; what was chosen is said. Genomes are told by the file's
own words, or by the prefix that Cell Ranger puts before the genes of a reference of several species
(``GRCh38_CD3E``). It knows no genes.
"""

import re
from collections.abc import Sequence

from cellray.errors import MissingKeyError

_HUMAN = re.compile(r"grch\d+|hg\d+|human|homo|hsap|t2t|chm13", re.IGNORECASE)
_PREFIXED = re.compile(r"(?:GRCh3[78]|GRCm3[89]|hg19|hg38|mm9|mm10|mm39|human|mouse)(?:-[A-Za-z0-9.]+)?_+(?=\w)")


def choose_genome(names: Sequence[str], wanted: str | None) -> tuple[str, str]:
    """Return one of the genomes ``names`` (at least two) and a sentence on the choice.

    Raises
    ------
    MissingKeyError
        If ``wanted`` is none of them, or none is wanted and not just one of them is human.
    """
    listed = ", ".join(names)
    if wanted is not None:
        chosen = next((name for name in names if name.casefold() == wanted.casefold()), None)
        if chosen is None:
            msg = f"there is no genome {wanted!r} (there are: {listed}); pass one of these to --genome"
            raise MissingKeyError(msg)
        return chosen, f"genome {chosen} of {listed}, as asked"
    human = [name for name in names if _HUMAN.match(name)]
    if len(human) != 1:
        msg = f"the file holds several genomes ({listed}); pass the one to read to --genome"
        raise MissingKeyError(msg)
    return human[0], f"genome {human[0]} of {listed} is read; pass --genome for another"


def without_prefix(name: str) -> str:
    """Return a gene name without the prefix of its genome."""
    return _PREFIXED.sub("", name, count=1) if _PREFIXED.match(name) else name


def genomes_of_names(names: Sequence[str]) -> list[str] | None:
    """Return the genome of each name by its prefix, None unless at least nine tenths of the names have one."""
    found = [match[0].rstrip("_") if (match := _PREFIXED.match(name)) else "" for name in names]
    n_found = sum(map(bool, found))
    return found if names and n_found >= 0.9 * len(names) else None
