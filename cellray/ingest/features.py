"""Which columns of a matrix are gene expression, and what the others are.

Contract: antibodies, guides, peaks, spike-ins and the controls of imaging panels are left out, told by the file's own
column of feature types and, where a name can be nothing else, by the name. Of a file with several genomes the genes of
one are kept. What is left out is counted and said. It knows nothing of models.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cellray.errors import GeneError
from cellray.ingest.genomes import choose_genome, genomes_of_names
from cellray.ingest.reader import INDEX, Reader

_EXPRESSION = {"gene expression", "gene_expression", "gex", "rna", "gene", "genes", "transcriptome", "mrna"}
_KINDS: tuple[tuple[str, str], ...] = (
    (r"antibod|\bproteins?\b(?![ -]?coding)|\badt\b|surface|cite-?seq|abseq", "antibodies"),
    (r"hashtag|\bhto\b|multiplex|cmo|sample tag", "hashtags"),
    (r"crispr|guide|grna|perturb", "guides"),
    (r"peak|chromatin|atac", "peaks"),
    (r"spike", "spike-ins"),
    (r"control|codeword|blank|deprecated", "controls of an imaging panel"),
    (r"unspliced", "columns of unspliced counts"),
    (r"custom|antigen|vdj|barcode", "other features"),
)
_BY_NAME: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(gSpikein_)?ERCC[-_.]?\d{5}"), "spike-ins"),
    (re.compile(r"(chr)?([1-9]|1\d|2[0-2]|[XYM]|MT|[A-Z]{2}\d+\.\d)[:_-]\d+-\d+|chr\w+[:_-]\d+[_-]\d+"), "peaks"),
    (
        re.compile(
            r"(Neg(ative)?[_-]?(Control)?[_-]?(Probe|Codeword|Prb)|Negative|NegPrb|BLANK|Blank|antisense"
            r"|(Unassigned|Deprecated|Blank|Genomic)[_-]?(Control|Codeword)|System[_-]?Control|False[_-]?Code)"
            r"([_-]\w+|\d+)?"
        ),
        "controls of an imaging panel",
    ),
    (
        re.compile(
            r"(AB|ab|prot|anti|ADT|adt)_.+|(ADT|adt|anti)-.+|.+[_.-](TotalSeq[A-D]?|TotalC|TotalB|ADT|AbSeq|pAbO)"
            r"|.+[|].+[|](AB|pAbO|AHS)\S*",
        ),
        "antibodies",
    ),
    (re.compile(r"(HTO|Hashtag|hashtag|CMO|SampleTag)[_ -]?\d+([_-]\S*)?"), "hashtags"),
)


def expression_columns(reader: Reader, layer: str, genome: str | None) -> tuple[np.ndarray | None, list[str]]:
    """Return the columns of a layer that are gene expression, and what was left out in words.

    Parameters
    ----------
    reader, layer
        The open dataset and the matrix.
    genome
        The genome that the user wants of several.

    Returns
    -------
    columns
        Ascending int64 column numbers; None for all.
    notes
        A sentence each.

    Raises
    ------
    GeneError
        If no column is gene expression.
    MissingKeyError
        If the genome to read is not there or must be named.
    """
    names = reader.gene_names(layer, INDEX)
    types = reader.feature_types(layer)
    kinds = _kinds(names, types)
    notes: list[str] = []
    genomes = reader.genomes(layer) or genomes_of_names(names)
    if genomes is not None:
        there = sorted({one for one, kind in zip(genomes, kinds, strict=True) if one and not kind})
        if len(there) > 1 and not any("," in one or ";" in one for one in there):
            chosen, note = choose_genome(there, genome)
            notes.append(note)
            kinds = [
                kind or ("" if one == chosen else "genes of another genome")
                for kind, one in zip(kinds, genomes, strict=True)
            ]
    left_out = Counter(filter(None, kinds))
    if not left_out:
        return None, notes
    if left_out.total() == len(names):
        said = ", ".join(sorted(set(types or []))[:5]) or ", ".join(left_out)
        msg = f"there is no feature of type 'Gene Expression' (types: {said}); give the file with the RNA counts"
        raise GeneError(msg)
    notes.append(f"left out: {', '.join(f'{count:,} {kind}' for kind, count in left_out.most_common())}")
    return np.flatnonzero([not kind for kind in kinds]), notes


def _kinds(names: Sequence[str], types: Sequence[str] | None) -> list[str]:
    """Return for each column what it is if it is no gene expression, else ``""``."""
    kinds = [_kind_of_name(name) for name in names]
    if types is None:
        return kinds
    by_type = {value: _kind_of_type(value) for value in set(types)}
    # Once a file calls some columns expression, the others are none, whatever they are called.
    strict = any(value.strip().lower() in _EXPRESSION for value in by_type)
    for value, kind in by_type.items():
        if strict and not kind and value.strip() and value.strip().lower() not in _EXPRESSION:
            by_type[value] = "other features"
    return [by_type[value] or kind for value, kind in zip(types, kinds, strict=True)]


def _kind_of_type(value: str) -> str:
    text = value.strip().lower()
    if text in _EXPRESSION:
        return ""
    return next((kind for pattern, kind in _KINDS if re.search(pattern, text)), "")


def _kind_of_name(name: str) -> str:
    return next((kind for pattern, kind in _BY_NAME if pattern.fullmatch(name)), "")
