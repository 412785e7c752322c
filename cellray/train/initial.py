"""Where training starts from: gene vectors that already tell cell types apart, and weights scaled to the layer's width.

Contract: a pure function of the training cells and the seed; held-out cells are not looked at. Without it a model this
small spends most of its steps on finding out which genes go together.
"""

import numpy as np
import torch
from scipy import sparse
from torch import nn

from cellray.train.corpus import FIRST_GENE, Corpus

_SPREAD = 0.05  # of the gene vectors; positions start smaller, so that a gene counts before its rank does
_POSITION_SPREAD = 0.02
_RANK_SCALE = 16
_LEAST_VARIANCE = 1e-4


def gene_vectors(corpus: Corpus, n_tokens: int, width: int, seed: int) -> np.ndarray:
    """Right singular vectors of the matrix of cells and genes, classes weighing alike; (n_tokens, width) float32.

    A gene's entry in a cell falls with its rank as 1 / log2(2 + rank / 16), in units of the gene's standard deviation.
    """
    lengths = np.diff(corpus.offsets)
    rank = np.arange(len(corpus.flat)) - np.repeat(corpus.offsets[:-1], lengths)
    weight = (1 / np.log2(2 + rank / _RANK_SCALE)).astype(np.float32)
    entries = (weight, corpus.flat.astype(np.int64), corpus.offsets)
    training = np.flatnonzero(~corpus.held_out)
    cells = sparse.csr_matrix(entries, shape=(len(lengths), n_tokens))[training]
    _, label, sizes = np.unique(corpus.label[training], return_inverse=True, return_counts=True)
    found = loadings(cells, width, seed, least_variance=_LEAST_VARIANCE, weights=1 / np.sqrt(sizes[label]))
    vectors = np.zeros((n_tokens, width), np.float32)
    vectors[FIRST_GENE:, : found.shape[1]] = found[FIRST_GENE:] * (_SPREAD / found.std())
    return vectors


def loadings(
    cells: sparse.csr_matrix, width: int, seed: int, *, least_variance: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Right singular vectors of (n, genes) ``cells`` in units of each gene's spread, times their singular values.

    The first, which is the mean cell, is left out: (genes, fewer than ``width``). ``weights`` (n,) are of the cells.
    """
    from sklearn.decomposition import TruncatedSVD

    mean = np.asarray(cells.mean(0)).ravel()
    variance = np.asarray(cells.multiply(cells).mean(0)).ravel() - mean**2
    weighted = cells if weights is None else sparse.diags_array(weights) @ cells
    scaled = weighted @ sparse.diags_array(1 / np.sqrt(np.maximum(variance, least_variance)))
    svd = TruncatedSVD(min(width, min(scaled.shape) - 1), random_state=seed).fit(scaled)
    return (svd.components_[1:] * svd.singular_values_[1:, None]).T


def initialise(module: nn.Module) -> None:
    """Set one module's starting weights; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=_POSITION_SPREAD)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
