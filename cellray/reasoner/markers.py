"""What a reasoning says of genes, held against the cell's own counts.

Contract: a statement is a gene of the data set named in a clause about this cell, with whether the clause says that the
cell expresses it; it holds if the counts say the same. Genes are found by their exact names. General clauses ("typical
markers of B cells include MS4A1", "CD3D would be expected") state nothing of the cell, and a name with ``+`` or ``-``
behind it ("CD8A+ T cell") is part of a cell type's name. Reading is by words, not by grammar: an unusual turn of phrase
can be taken the wrong way. Whether a gene is a marker of the type that was chosen is not judged.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_CLAUSE = re.compile(r"(?:[.;!?](?=\s|$)|\n|,?\s+\b(?:but|however|whereas|while|although|though|yet|instead)\b)")
_WORD = re.compile(r"[A-Za-z0-9]+(?:[-.][A-Za-z0-9]+)*")
_NO_STATEMENT = re.compile(r"\b(?:would|should|expected|expect|if|might be expected)\b", re.IGNORECASE)
_CUE = re.compile(
    r"(?P<after_absent>\b(?:is|are|was|were|be|being)?\s*(?:not\s+(?:been\s+)?(?:expressed|detected|seen|found|present"
    r"|observed|listed|included|there|on\s+the\s+list|in\s+the\s+list)|absent|undetected|undetectable|missing|negative|"
    r"lacking)\b(?!\s+(?:for|of|in)\b))"
    r"|(?P<absent>\b(?:lacks?|lacking|without|absence\s+of|no\s+(?:\w+\s+)?expression\s+of|no\s+(?:sign|evidence)\s+of|"
    r"(?:does|do|did)(?:\s+not|n't)\s+(?:\w+\s+)?(?:express|show|contain|have)|not\s+express(?:ing)?|negative\s+for|"
    r"missing|loss\s+of|neither|nor|no)\b)"
    r"|(?P<general>\b(?:typical(?:ly)?|usual(?:ly)?|general(?:ly)?|common(?:ly)?|classical|canonical|known)\s+(?:\w+\s+)?"
    r"(?:markers?|genes?|express(?:es|ed)?)\b|\bmarkers?\s+(?:of|for|include|are)\b|\bmarked\s+by\b)"
    r"|(?P<present>\b(?:express(?:es|ed|ing)?|expression\s+of|presence\s+of|positive\s+for|shows?|contains?|has|have|high|"
    r"strong|with)\b)",
    re.IGNORECASE,
)
_IN_A_NAME = re.compile(r"[+⁺⁻]|-(?!\w)|[- ]?(?:positive|negative|high|low)\s+\w*\s*(?:cells?|lymphocytes?|monocytes?)")


@dataclass(frozen=True)
class Statement:
    """A gene, whether the reasoning says that the cell expresses it, and its count in the cell."""

    gene: str
    expressed: bool
    count: float

    @property
    def holds(self) -> bool:
        """Whether the cell's counts say the same."""
        return (self.count > 0) == self.expressed


def statements(reasons: str, counts: Mapping[str, float], genes: Mapping[str, int]) -> list[Statement]:
    """Find what ``reasons`` say of the cell's genes, each gene once, by its first statement.

    Parameters
    ----------
    counts
        The cell's counts above 0 by gene.
    genes
        All genes of the data set: one that is not among ``counts`` has no count.
    """
    found: dict[str, bool] = {}
    for clause in _CLAUSE.split(reasons):
        if not _NO_STATEMENT.search(clause):
            for gene, expressed in _read(clause, genes):
                found.setdefault(gene, expressed)
    return [Statement(gene, expressed, float(counts.get(gene, 0.0))) for gene, expressed in found.items()]


def support(made: list[Statement]) -> float | None:
    """Return the share of statements that hold; None of none."""
    return sum(one.holds for one in made) / len(made) if made else None


def _read(clause: str, genes: Mapping[str, int]) -> list[tuple[str, bool]]:
    """Return the genes of a clause and whether it says that they are expressed; none of a general turn."""
    named = [
        (word.start(), word[0])
        for word in _WORD.finditer(clause)
        if word[0] in genes and len(word[0]) > 1 and not _IN_A_NAME.match(clause, word.end())
    ]
    if not named:
        return []
    cues = [(cue.start(), str(cue.lastgroup)) for cue in _CUE.finditer(clause)]
    read: list[tuple[str, bool]] = []
    state: bool | None = True
    pending: list[str] = []
    for _, kind, gene in sorted([(at, "gene", gene) for at, gene in named] + [(at, kind, "") for at, kind in cues]):
        if kind == "gene":
            pending.append(gene)
            continue
        if kind == "after_absent" and pending:
            read += [(one, False) for one in pending]
            pending, state = [], True
            continue
        if state is not None:
            read += [(one, state) for one in pending]
        pending = []
        # "known markers are expressed": a verb behind a general turn does not make it one of this cell.
        if kind == "general":
            state = None
        elif kind in ("absent", "after_absent"):
            state = False
        elif state is not None:
            state = True
    if state is not None:
        read += [(one, state) for one in pending]
    return read
