"""Datasets to what an scGPT-architecture base is trained on: chosen genes, binned cells, expression to predict.

Contract: genes, their weights, means, spreads and principal components come from training cells alone; held-out cells
are tokenised and never looked at otherwise. A class is a label of one dataset: authors do not mean the same by the same
word.

A cell keeps the genes of the largest count times weight. The weight is 1 / (mean * sqrt(detection)), which puts rare
genes first, times the share of a gene's variance that the principal components explain, which puts noise last.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from cellray import schema
from cellray.models.scgpt import ScGPTConfig
from cellray.tokenize.tokenizers import BinTokenizer
from cellray.train.config import ScGPTPretrainConfig
from cellray.train.prepare import Cells, read_cells

_TARGET_SUM = 1e4
_CLIP = 10.0
_SMALLEST = 1e-6


@dataclass(frozen=True)
class ScGPTCorpus:
    """Cells and what is predicted of them.

    Attributes
    ----------
    tokens, bins, offsets
        Ragged binned cells, as ``schema.token_shard`` has them.
    expression
        (n, genes) float32 log1p of counts per ten thousand, standardised by gene and clipped.
    scores
        (n, components) float32 of the principal components of the training cells' expression, of unit variance there.
    vectors
        (genes, components) float32: the components' loadings times the square root of their spread.
    dataset, label, held_out
        (n,) number of the set, class or -1, and whether a cell is kept from training.
    classes
        (sets, classes) which classes belong to a set.
    genes
        The model's gene table.
    """

    tokens: np.ndarray
    bins: np.ndarray
    offsets: np.ndarray
    expression: sparse.csr_matrix
    zero: np.ndarray
    scores: np.ndarray
    vectors: np.ndarray
    dataset: np.ndarray
    label: np.ndarray
    held_out: np.ndarray
    classes: np.ndarray
    genes: pa.Table

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """Return the (m, genes) expression of cells ``rows``."""
        return self.expression[rows].toarray() + self.zero


def model_config(config: ScGPTPretrainConfig, n_genes: int) -> ScGPTConfig:
    """Sizes of the model that ``config`` describes; ids after the genes are ``<pad>`` and ``<cls>``."""
    sizes = config.sizes
    return ScGPTConfig(
        vocab_size=n_genes + 2,
        hidden_size=sizes.hidden,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        ffn_size=sizes.ffn,
        cls_token=n_genes + 1,
        pad_value=0.0,
        n_bins=config.n_bins,
        max_tokens=sizes.max_tokens,
        ties="upper",
        gene_choice="weight",
    )


def prepare_scgpt(config: ScGPTPretrainConfig, folder: Path) -> ScGPTCorpus:
    """Read every set of ``config`` under ``folder``."""
    sets = [read_cells(folder, entry) for entry in config.sets]
    genes = choose_genes(sets, config.top_genes)
    slot_of = {gene: slot for slot, gene in enumerate(genes[schema.ENSEMBL_ID].to_pylist())}
    laid = [_laid_out(cells, slot_of) for cells in sets]
    held_out = np.concatenate([cells.held_out for cells in sets])
    dataset = np.repeat(np.arange(len(sets)), [len(cells.labels) for cells in sets])
    expression, zero = _standardised(sparse.vstack([_log1p(*pair) for pair in zip(laid, sets, strict=True)]), held_out)
    known = np.stack([np.isin(list(slot_of), cells.genes) for cells in sets])
    values = (expression.toarray() + zero) * known[dataset]  # a gene that a dataset has not is as in the mean cell
    scores, vectors, explained = components(values, ~held_out, config.components, config.seed)
    weight = pa.array(genes[schema.WEIGHT].to_numpy() * explained)
    genes = genes.set_column(genes.column_names.index(schema.WEIGHT), genes.schema.field(schema.WEIGHT), weight)
    tokenizer = BinTokenizer(
        genes[schema.TOKEN].to_numpy(),
        config.n_bins,
        config.sizes.max_tokens - 1,
        config.seed,
        "none",
        zero_genes=False,
        ties="upper",
        weights=genes[schema.WEIGHT].to_numpy(),
    )
    parts = [
        tokenizer(counts, cells.n_counts, list(cells.names), np.unique(counts.indices))
        for counts, cells in zip(laid, sets, strict=True)
    ]
    names = [
        (number, label)
        for number, cells in enumerate(sets)
        for label in sorted(set(cells.labels[~cells.held_out].tolist()) - {""})
    ]
    class_of = {name: index for index, name in enumerate(names)}
    return ScGPTCorpus(
        tokens=np.concatenate([part[schema.TOKENS].values.to_numpy() for part in parts]),
        bins=np.concatenate([part[schema.BINS].values.to_numpy() for part in parts]),
        offsets=np.concatenate([[0], *(np.diff(part[schema.TOKENS].offsets.to_numpy()) for part in parts)]).cumsum(),
        expression=expression,
        zero=zero,
        scores=scores,
        vectors=vectors,
        dataset=dataset,
        label=np.concatenate(
            [[class_of.get((n, label), -1) for label in cells.labels] for n, cells in enumerate(sets)]
        ).astype(np.int64),
        held_out=held_out,
        classes=np.stack([[number == own for own, _ in names] for number in range(len(sets))]),
        genes=genes,
    )


def choose_genes(sets: Iterable[Cells], n_top: int) -> pa.Table:
    """Return the union of the sets' highly variable genes (flavour "seurat"), with 1 / (mean * sqrt(detection))."""
    import anndata
    import scanpy

    chosen: dict[str, str] = {}
    sums: dict[str, np.ndarray] = {}
    total = 0
    for cells in sets:
        training = cells.counts[~cells.held_out]
        scaled = sparse.csr_matrix(sparse.diags_array(_TARGET_SUM / cells.n_counts[~cells.held_out]) @ training)
        data = anndata.AnnData(scaled.log1p())
        threads = torch.get_num_threads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scanpy.pp.highly_variable_genes(data, n_top_genes=min(n_top, scaled.shape[1]))
        torch.set_num_threads(threads)  # numba, at work in there, sets its own number for all of the process
        symbols = dict(zip(cells.symbols[schema.ENSEMBL_ID], cells.symbols[schema.SYMBOL], strict=True))
        chosen |= {gene: symbols[gene] for gene in cells.genes[data.var["highly_variable"].to_numpy()]}
        total += scaled.shape[0]
        moments = np.stack([np.asarray(scaled.sum(0)).ravel(), np.asarray((scaled > 0).sum(0)).ravel()], axis=1)
        for gene, moment in zip(cells.genes, moments, strict=True):
            sums[gene] = sums.get(gene, 0) + moment
    by_symbol = {symbol: gene for gene, symbol in sorted(chosen.items(), reverse=True) if sums[gene][1] > 0}
    genes = sorted(by_symbol.values())
    symbol_of = {gene: symbol for symbol, gene in by_symbol.items()}
    mean, share = (np.array([sums[gene][at] for gene in genes]) / total for at in (0, 1))
    columns = [[symbol_of[gene] for gene in genes], genes, np.arange(len(genes)), 1 / (mean * np.sqrt(share))]
    return pa.table(columns, schema=schema.weighted_genes())


def components(
    values: np.ndarray, training: np.ndarray, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores and vectors as in ``ScGPTCorpus``, and the share of each gene's variance they explain, (genes,)."""
    from sklearn.utils.extmath import randomized_svd

    own = values[training]
    _, spread, loadings = randomized_svd(own, min(n, *own.shape), n_iter=3, random_state=seed)
    spread = np.maximum(spread / np.sqrt(len(own)), _SMALLEST)
    explained = ((loadings * spread[:, None]) ** 2).sum(0)
    scores, vectors = values @ (loadings / spread[:, None]).T, (loadings * np.sqrt(spread)[:, None]).T
    return scores.astype(np.float32), vectors.astype(np.float32), np.maximum(explained, _SMALLEST)


def _laid_out(cells: Cells, slot_of: dict[str, int]) -> sparse.csr_matrix:
    slots = np.array([slot_of.get(gene, -1) for gene in cells.genes])
    kept = np.flatnonzero(slots >= 0)
    move = sparse.csr_matrix((np.ones(len(kept), np.float32), (kept, slots[kept])), (len(slots), len(slot_of)))
    counts = sparse.csr_matrix(cells.counts @ move)
    counts.sort_indices()
    return counts


def _log1p(counts: sparse.csr_matrix, cells: Cells) -> sparse.csr_matrix:
    return sparse.csr_matrix(sparse.diags_array((_TARGET_SUM / cells.n_counts).astype(np.float32)) @ counts).log1p()


def _standardised(values: sparse.csr_matrix, held_out: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return standardised values less that of a zero, which keeps them sparse, and the values of zeros."""
    values = sparse.csr_matrix(values, dtype=np.float32)
    training = values[~held_out]
    mean = np.asarray(training.mean(0)).ravel()
    spread = np.sqrt(np.maximum(np.asarray(training.multiply(training).mean(0)).ravel() - mean**2, 1e-4))
    zero = (-mean / spread).astype(np.float32)
    values.data = (np.minimum((values.data - mean[values.indices]) / spread[values.indices], _CLIP)).astype(
        np.float32
    ) - zero[values.indices]
    return values, zero
