"""Rank-value tokens of Geneformer and LangCell: a cell is its genes, ordered by count over the gene's corpus median.

Contract: the tokens of a cell are a pure function of its own row. It adds no CLS or padding token (the encoder does)
and it does not select genes: columns of the matrix are the model's genes, in the order of ``tokens`` and ``medians``.

Deviations from the LangCell repository:

1. Exact ties (equal count, equal median) keep column order; upstream's order of ties is undefined.
2. A cell without counts gives no tokens; upstream divides zero by zero and emits every gene.
"""

import numpy as np
from numba import njit
from scipy import sparse

_BINS = 4096


def rank_tokens(
    counts: sparse.csr_matrix,
    n_counts: np.ndarray,
    tokens: np.ndarray,
    medians: np.ndarray,
    max_genes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Order each cell's genes by ``count / n_counts * 1e4 / median``, highest first.

    Parameters
    ----------
    counts
        (n, g) float32 raw counts, one column a model gene.
    n_counts
        (n,) float32 total counts of each cell over all genes, those outside the model included.
    tokens
        (g,) token id of each column, below 65,536.
    medians
        (g,) float64 non-zero median of each gene in the model's corpus.
    max_genes
        Genes kept of each cell.

    Returns
    -------
    flat, offsets
        uint16 tokens of all cells, and (n + 1,) int64 offsets into them.

    Notes
    -----
    Precision follows upstream, so that near-ties fall the same way: the two operations before the division by the
    float64 median are float32. Positive floats order as their bit patterns do, so one counting pass over the leading
    bits followed by an insertion sort within the few cells of a bin replaces a comparison sort.
    """
    lengths = np.minimum(np.diff(counts.indptr), max_genes)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    flat = np.empty(int(offsets[-1]), np.uint16)
    filled = _rank_rows(
        counts.indptr.astype(np.int64),
        counts.indices.astype(np.int32, copy=False),
        counts.data.astype(np.float32, copy=False),
        n_counts.astype(np.float32, copy=False),
        tokens.astype(np.uint16),
        medians.astype(np.float64, copy=False),
        offsets,
        flat,
    )
    if (filled == lengths).all():
        return flat, offsets
    # Stored zeros are no genes: close the gaps that they left.
    keep = np.arange(len(flat)) - np.repeat(offsets[:-1], lengths) < np.repeat(filled, lengths)
    return flat[keep], np.concatenate([[0], np.cumsum(filled)])


@njit(cache=True, nogil=True)
def _rank_rows(indptr, indices, data, n_counts, tokens, medians, offsets, flat):
    n_rows = len(indptr) - 1
    widest = 0
    for row in range(n_rows):
        widest = max(widest, indptr[row + 1] - indptr[row])
    value = np.empty(widest, np.float64)
    bits = value.view(np.int64)
    source = np.empty(widest, np.int32)
    sorted_value = np.empty(widest, np.float64)
    sorted_gene = np.empty(widest, np.int32)
    starts = np.empty(_BINS + 1, np.int32)
    filled = np.zeros(n_rows, np.int64)
    for row in range(n_rows):
        scale = np.float32(10000.0)
        total = n_counts[row]
        n = 0
        for at in range(indptr[row], indptr[row + 1]):
            if data[at] != 0:
                gene = indices[at]
                value[n] = np.float64(np.float32(np.float32(data[at] / total) * scale)) / medians[gene]
                source[n] = gene
                n += 1
        if n == 0:
            continue
        low, high = bits[0], bits[0]
        for i in range(1, n):
            low = min(low, bits[i])
            high = max(high, bits[i])
        shift = 0
        while (high - low) >> shift >= _BINS:
            shift += 1
        n_bins = ((high - low) >> shift) + 1
        starts[: n_bins + 1] = 0
        for i in range(n):
            starts[((high - bits[i]) >> shift) + 1] += 1
        wanted = min(n, offsets[row + 1] - offsets[row])
        needed = 0
        for b in range(n_bins):
            starts[b + 1] += starts[b]
            if needed < wanted:
                needed = starts[b + 1]
        for i in range(n):
            b = (high - bits[i]) >> shift
            at_bin = starts[b]
            starts[b] += 1
            sorted_value[at_bin] = value[i]
            sorted_gene[at_bin] = source[i]
        for i in range(1, needed):
            v, gene, j = sorted_value[i], sorted_gene[i], i
            while j > 0 and sorted_value[j - 1] < v:
                sorted_value[j] = sorted_value[j - 1]
                sorted_gene[j] = sorted_gene[j - 1]
                j -= 1
            sorted_value[j] = v
            sorted_gene[j] = gene
        for i in range(wanted):
            flat[offsets[row] + i] = tokens[sorted_gene[i]]
        filled[row] = wanted
    return filled
