"""Why the genes of a dataset are not the model's, guessed from their names, with the way out.

Contract: looks at names alone and returns one sentence; it decides nothing. The sentence names what was seen.
"""

import re
from collections.abc import Sequence

from cellray.ingest.genes import GeneIndex

_LOOKED_AT = 2000
_MOST = 0.5
_SOME = 0.3

_ENSEMBL_SPECIES = {
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "rhesus macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSSSCG": "pig",
    "ENSCAFG": "dog",
    "ENSGALG": "chicken",
    "FBgn": "fruit fly",
    "WBGene": "roundworm",
}
_BARCODE = re.compile(r"(?:.*[_:#-])?[ACGTN]{12,}(?:-\d+)?(?:[_:#-].*)?")
_REFSEQ = re.compile(r"[NX][MR]_\d+(\.\d+)?")
_TRANSCRIPT = re.compile(r"ENST\d{11}(\.\d+)?")


def gene_hint(names: Sequence[str], cell_names: Sequence[str], genes: GeneIndex) -> str:
    """Return what the gene names look like and what to do, as one sentence.

    Parameters
    ----------
    names
        The gene names, as in the column that reached most of the model's genes.
    cell_names
        Some names of cells, which are genes where the matrix is transposed.
    genes
        The model's genes.
    """
    shown = _evenly(names)
    if not shown:
        return "there are no gene names"
    if _share(_BARCODE.fullmatch, shown) > _MOST or genes.share_known(_evenly(cell_names)) > _SOME:
        return (
            f"this looks transposed: the columns are called like cells ({_examples(shown)}) and the rows like genes "
            f"({_examples(_evenly(cell_names))}); write it with cells in rows (adata.T)"
        )
    if _share(str.isdigit, shown) > _MOST:
        counted = list(names[:3]) in (["0", "1", "2"], ["1", "2", "3"])
        what = "a converter has lost the gene names" if counted else "they may be Entrez ids"
        return (
            f"the gene names are numbers ({_examples(names)}): {what}; put Ensembl ids or symbols into a column of var"
        )
    for prefix, species in _ENSEMBL_SPECIES.items():
        if _share(lambda name, prefix=prefix: name.startswith(prefix), shown) > _MOST:
            return _foreign(species, shown)
    capitalised = [name for name in shown if name[:1].isupper() and name[1:] and name[1:] == name[1:].lower()]
    if len(capitalised) > _MOST * len(shown) and genes.share_known(name.upper() for name in capitalised) > _SOME:
        return _foreign("mouse (or rat)", capitalised)
    lower = [name for name in shown if name == name.lower()]
    if len(lower) > _MOST * len(shown) and genes.share_known(name.upper() for name in lower) > _SOME:
        return (
            f"the symbols are in lower case ({_examples(lower)}), as those of zebrafish are; if they are human, write "
            "them in upper case (adata.var_names.str.upper())"
        )
    if _share(_TRANSCRIPT.fullmatch, shown) > _MOST:
        return f"the names are transcripts ({_examples(shown)}); sum the counts of each gene's transcripts first"
    if _share(_REFSEQ.fullmatch, shown) > _MOST:
        return f"the names are RefSeq ids ({_examples(shown)}); put Ensembl ids or symbols into a column of var"
    return (
        f"the names are like {_examples(shown)}; pass --gene-key with the column of Ensembl ids or symbols, "
        "if there is one"
    )


def _foreign(species: str, shown: Sequence[str]) -> str:
    return (
        f"this looks like {species} ({_examples(shown)}) and the model is of human genes; replace the genes by their "
        "one-to-one human orthologs (Ensembl BioMart has the table) and try again"
    )


def _evenly(names: Sequence[str]) -> list[str]:
    step = -(-len(names) // _LOOKED_AT) or 1
    return [name for name in names[::step] if name]


def _share(test: object, names: Sequence[str]) -> float:
    return sum(bool(test(name)) for name in names) / len(names)  # type: ignore[operator]


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3])
