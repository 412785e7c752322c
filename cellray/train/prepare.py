"""Labelled ``.h5ad`` files to a training corpus, with the gene table and medians that the model will carry.

Contract: genes, medians and labels come from training cells alone; held-out cells are only tokenised. Training sets
are read into memory one at a time (unlike annotation, which streams): a set for pre-training fits. It expects raw
counts in ``X``, Ensembl ids in ``var["ensembl_id"]`` and Cell Ontology ids in the obs column that the configuration
names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from cellray import schema
from cellray.errors import SettingError
from cellray.tokenize import rank_tokens
from cellray.train.config import PretrainConfig, TrainingSet
from cellray.train.corpus import FIRST_GENE, Corpus, held_out

_TARGET_SUM = 1e4
_LONGEST = 2048


@dataclass(frozen=True)
class Cells:
    """One dataset in memory: counts (n x distinct Ensembl ids), ids and symbols; labels, names and held-out flags."""

    counts: sparse.csr_matrix
    genes: np.ndarray
    symbols: pd.DataFrame
    n_counts: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """The corpus, the model's gene and symbol tables, and the label ids in the corpus's order."""

    corpus: Corpus
    genes: pa.Table
    symbols: pa.Table
    labels: list[str]


def prepare(config: PretrainConfig, folder: Path, usable: Callable[[str], bool]) -> Prepared:
    """Read every training set of ``config`` under ``folder``; ``usable`` says which label ids the ontology knows."""
    sets = [read_cells(folder, entry) for entry in config.sets]
    genes = gene_table(sets, config.min_gene_cells)
    slots = {gene: slot for slot, gene in enumerate(genes[schema.ENSEMBL_ID].to_pylist())}
    training = np.concatenate([cells.labels[~cells.held_out] for cells in sets])
    labels = sorted(label for label in np.unique(training) if label and usable(label))
    number = {label: index for index, label in enumerate(labels)}
    parts = []
    for index, cells in enumerate(sets):
        flat, offsets = tokenise(cells, slots, genes)
        label = np.array([number.get(name, -1) for name in cells.labels], np.int32)
        parts.append((flat, np.diff(offsets), label, np.full(len(label), index, np.int32), cells.held_out))
    flat, lengths, label, dataset, held = (np.concatenate(column) for column in zip(*parts, strict=True))
    corpus = Corpus(flat, np.concatenate([[0], np.cumsum(lengths)]), label, dataset, held)
    return Prepared(
        corpus, genes, symbol_table(sets, set(slots), folder / config.symbols if config.symbols else None), labels
    )


def read_cells(folder: Path, entry: TrainingSet) -> Cells:
    """Read one set; a missing file or column is a ``SettingError``."""
    import anndata

    path = folder / entry.file
    if not path.is_file():
        msg = f"training set {str(path)!r} is not there; give the folder of the data with --data"
        raise SettingError(msg)
    data = anndata.read_h5ad(path)
    for frame, key in ((data.var, schema.ENSEMBL_ID), (data.obs, entry.label_key), (data.obs, entry.hold_out.key)):
        if key is not None and key not in frame:
            msg = f"{path}: column {key!r} is missing (has: {', '.join(map(str, frame.columns))})"
            raise SettingError(msg)
    ids = data.var[schema.ENSEMBL_ID].astype(str).to_numpy()
    genes, column = np.unique(ids, return_inverse=True)
    merge = sparse.csr_matrix((np.ones(len(ids), np.float32), (np.arange(len(ids)), column)), (len(ids), len(genes)))
    counts = sparse.csr_matrix(data.X, dtype=np.float32)
    known = np.flatnonzero(genes != "")
    merged = sparse.csr_matrix((counts @ merge)[:, known])
    merged.sort_indices()
    names = [
        data.var_names.astype(str),
        *(data.var[key].astype(str) for key in data.var if "symbol" in str(key).lower()),
    ]
    symbols = pd.concat([pd.DataFrame({schema.SYMBOL: list(name), schema.ENSEMBL_ID: ids}) for name in names])
    groups: Any = data.obs[entry.hold_out.key].astype(str) if entry.hold_out.key else None
    return Cells(
        merged,
        genes[known],
        symbols,
        np.asarray(counts.sum(1), np.float32).ravel(),
        np.full(data.n_obs, "", object)
        if entry.label_key is None
        else data.obs[entry.label_key].astype(str).to_numpy(),
        np.array(data.obs_names.astype(str)),
        held_out(entry.hold_out, list(data.obs_names.astype(str)), groups),
    )


def gene_table(sets: list[Cells], min_cells: int) -> pa.Table:
    """Genes of at least ``min_cells`` training cells, with the median of their non-zero counts per ten thousand."""
    values: dict[str, list[np.ndarray]] = {}
    for cells in sets:
        training = cells.counts[~cells.held_out]
        scale = sparse.diags_array(_TARGET_SUM / cells.n_counts[~cells.held_out])
        by_gene = sparse.csc_matrix(scale @ training)
        for index, gene in enumerate(cells.genes):
            values.setdefault(str(gene), []).append(by_gene.data[by_gene.indptr[index] : by_gene.indptr[index + 1]])
    medians = {gene: np.concatenate(parts) for gene, parts in values.items()}
    kept = sorted(gene for gene, found in medians.items() if len(found) >= min_cells)
    tokens = np.arange(FIRST_GENE, FIRST_GENE + len(kept), dtype=np.int32)
    return pa.table([kept, tokens, [float(np.median(medians[gene])) for gene in kept]], schema=schema.genes())


def symbol_table(sets: list[Cells], genes: set[str], reference: Path | None) -> pa.Table:
    """Symbols of the genes in the table: the data's own first, then those of a ``reference`` table (Parquet)."""
    frames = [cells.symbols for cells in sets]
    if reference is not None:
        frames.append(pq.read_table(reference, columns=[schema.SYMBOL, schema.ENSEMBL_ID]).to_pandas())
    rows = pd.concat(frames)[[schema.SYMBOL, schema.ENSEMBL_ID]].astype(str)
    rows = rows[rows[schema.ENSEMBL_ID].isin(genes) & ~rows[schema.SYMBOL].str.startswith("ENSG")]
    return pa.Table.from_pandas(rows.drop_duplicates(schema.SYMBOL), schema=schema.symbols(), preserve_index=False)


def tokenise(cells: Cells, slots: dict[str, int], genes: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Rank tokens of all cells of a set; see ``cellray.tokenize.rank_tokens``."""
    columns = np.array([index for index, gene in enumerate(cells.genes) if gene in slots], np.int64)
    rows = np.array([slots[gene] for gene in cells.genes[columns]], np.int64)
    tokens, medians = genes[schema.TOKEN].to_numpy()[rows], genes[schema.MEDIAN].to_numpy()[rows]
    return rank_tokens(sparse.csr_matrix(cells.counts[:, columns]), cells.n_counts, tokens, medians, _LONGEST)
