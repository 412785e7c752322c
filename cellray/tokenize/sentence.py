"""Cell sentences: a cell as a line of gene names for a language model, in two forms.

``hvg_rank``   the genes of a fixed ranked list that the cell expresses, in the order of the list (CellReasoner's);
               how much it expresses them is not told
``expr_rank``  the cell's own genes, most expressed first (Cell2Sentence's and Cell-o1's)

Contract: the sentence of a cell is a pure function of its own row. A gene whose value is above 0 is expressed. It
neither normalises nor chooses the genes of a list.

Deviations from the CellReasoner repository, none of which shows in raw counts:

1. Values below 0 are no expression; there anything but 0 and NaN counts, so that scaled values list most genes.
2. Columns of the same gene are summed before (``cellray.ingest``).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from scipy import sparse

Form = Literal["hvg_rank", "expr_rank"]
FORMS: tuple[Form, ...] = get_args(Form)


def cell_sentences(
    counts: sparse.csr_matrix, names: Sequence[str], n: int, *, places: np.ndarray | None = None
) -> list[str]:
    """Write each cell's sentence, names set apart by a comma and a space; ``""`` for a cell that expresses none.

    Parameters
    ----------
    counts
        (cells, genes) float32; duplicates summed.
    names
        Of the genes; one without a name is left out.
    n
        Genes of a sentence at most.
    places
        (genes,) int, the place of each gene in the ranked list, -1 for none (``list_places``): form ``hvg_rank``.
        None: form ``expr_rank``; equal values in the order of the columns.
    """
    genes, offsets = sentence_genes(counts, n, named=np.array([bool(name) for name in names], bool), places=places)
    words = np.array(names, dtype=object)[genes]
    return [", ".join(words[start:stop]) for start, stop in pairwise(offsets.tolist())]


def sentence_genes(
    counts: sparse.csr_matrix, n: int, *, named: np.ndarray | None = None, places: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose and order each cell's genes; returns int64 columns of all cells and (cells + 1,) int64 offsets into them.

    ``named``, (genes,) bool, says which may be told.
    """
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    columns, values = counts.indices.astype(np.int64), counts.data
    kept = values > 0
    if named is not None:
        kept &= named[columns]
    if places is not None:
        kept &= places[columns] >= 0
    rows, columns, values = rows[kept], columns[kept], values[kept]
    order = np.lexsort((columns, -values, rows) if places is None else (places[columns], rows))
    rows, columns = rows[order], columns[order]
    lengths = np.bincount(rows, minlength=counts.shape[0])
    within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    offsets = np.zeros(counts.shape[0] + 1, np.int64)
    np.cumsum(np.minimum(lengths, n), out=offsets[1:])
    return columns[within < n], offsets


def list_places(names: Sequence[str], ranked: Sequence[str]) -> np.ndarray:
    """Return the place of each name in the ``ranked`` list, int32, -1 for none; of a name listed twice the first."""
    place = {name: at for at, name in reversed(list(enumerate(ranked)))}
    return np.fromiter((place.get(name, -1) for name in names), np.int32, len(names))
