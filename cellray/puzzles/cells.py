"""Labelled datasets to what puzzles are made of: top genes, label, donor and context of every cell.

Contract: cells are read by shards and judged as everywhere (``cellray.ingest``); rejected cells and cells without a
label are left out and counted. Genes are named as the dataset names them, cleaned. Counts are not kept.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from scipy import sparse

from cellray import schema
from cellray.ingest import (
    DatasetPlan,
    DatasetSource,
    GeneIndex,
    check_beside,
    inspect_dataset,
    needs_staging,
    read_obs_text,
    read_shard,
    stage,
)
from cellray.ingest.reader import INDEX, X, open_dataset
from cellray.puzzles.context import columns, describe
from cellray.puzzles.puzzle import clean
from cellray.scratch import Scratch

UNINFORMATIVE = re.compile(r"MT-.+|RP[LS](P\d|\d+([AXYL]\d?)*)|RPSA|MALAT1", re.IGNORECASE)
"""Genes that are high in every cell: mitochondrial and ribosomal ones, and MALAT1."""

_SHARD = 4096
_NO_LABEL = "no_label"
_NAMES = "feature_name"


@dataclass(frozen=True)
class Ranking:
    """How cells are read.

    Attributes
    ----------
    label_key, donor_key, batch_key
        ``obs`` columns; without ``donor_key`` all cells are of one donor. A column that is named must be there.
    layer, gene_key
        As in ``inspect_dataset``; by default ``feature_name`` names genes where it is there.
    top_genes
        Genes of a cell, most expressed first; ties in the file's order.
    all_genes
        Whether uninformative genes stay.
    official
        As the release has it: values of ``X`` whatever they are, all genes, and genes of no count where fewer than
        ``top_genes`` have one.
    """

    label_key: str = "cell_type"
    donor_key: str | None = None
    batch_key: str | None = None
    layer: str | None = None
    gene_key: str | None = None
    top_genes: int = 50
    all_genes: bool = False
    official: bool = False


@dataclass
class RankedCells:
    """Cells of one dataset; the lists and (n,) arrays run alike. ``left_out`` counts by code."""

    dataset: str
    cell_ids: list[str] = field(default_factory=list)
    genes: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    donors: list[str] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read_ranked(source: DatasetSource, ranking: Ranking) -> RankedCells:
    """Read one dataset.

    Raises
    ------
    MissingKeyError
        If a column is not there; other dataset errors if it cannot be read.
    """
    keys = {ranking.label_key: "label", ranking.donor_key: "donor", ranking.batch_key: "batch"}
    check_beside(source, {key: "obs" for key in keys if key is not None})
    names, plan = open_by_names(source, ranking)
    obs = {kind: read_obs_text(source, key) for key, kind in keys.items() if key is not None}
    with open_dataset(source) as reader:
        told = columns(reader.keys_beside("obs"))
    metadata = {key: read_obs_text(source, key) for key in told}
    shown = np.array([ranking.all_genes or ranking.official or not UNINFORMATIVE.fullmatch(name) for name in names])
    found = RankedCells(source.dataset_id)
    contexts: dict[tuple[str, ...], str] = {}
    with ExitStack() as stack:
        if needs_staging(plan):
            plan = stage(plan, str(stack.enter_context(Scratch("stage")).path), _SHARD)
        for start in range(0, plan.n_cells, _SHARD):
            stop = min(start + _SHARD, plan.n_cells)
            shard = read_shard(plan, start, stop, min_genes=1, n_slots=len(names))
            ranked = top_genes(shard.counts, names, shown, ranking.top_genes, zeros=ranking.official)
            for at, (row, genes) in enumerate(zip(range(start, stop), ranked, strict=True)):
                label = clean(str(obs["label"][row]))
                code = shard.reject_codes[at] or ("" if label else _NO_LABEL) or ("" if genes else "no_known_gene")
                if code:
                    found.left_out[code] += 1
                    continue
                facts = tuple(str(metadata[key][row]) for key in told)
                if facts not in contexts:
                    contexts[facts] = describe(dict(zip(told, facts, strict=True)))
                found.cell_ids.append(shard.cell_ids[at])
                found.genes.append(genes)
                found.labels.append(label.replace("|", "/"))
                found.donors.append(str(obs["donor"][row]) if "donor" in obs else "")
                found.batches.append(str(obs["batch"][row]) if "batch" in obs else "")
                found.contexts.append(contexts[facts])
    return found


def open_by_names(source: DatasetSource, ranking: Ranking) -> tuple[list[str], DatasetPlan]:
    """Return the clean, distinct gene names of a dataset and a plan whose slots are their numbers."""
    layer = X if ranking.official and ranking.layer is None else ranking.layer
    with open_dataset(source) as reader:
        there = reader.gene_keys(layer or reader.layers()[0])
        key = ranking.gene_key or (_NAMES if _NAMES in there else INDEX)
        raw = {name for one in reader.layers() if key in reader.gene_keys(one) for name in reader.gene_names(one, key)}
    names = sorted(raw)
    table = pa.table({schema.SYMBOL: names, schema.TOKEN: np.arange(len(names), dtype=np.int32)})
    index = GeneIndex(table, pa.table({schema.SYMBOL: [], schema.ENSEMBL_ID: []}))
    plan = inspect_dataset(source, index, layer=layer, gene_key=key, integers=not ranking.official)
    return [clean(name).replace(",", "") for name in names], plan


def top_genes(
    counts: sparse.csr_matrix, names: list[str], shown: np.ndarray, n: int, *, zeros: bool = False
) -> Iterator[tuple[str, ...]]:
    """Yield each row's ``n`` largest columns by name, of those that are ``shown`` (bool); equal ones in their order.

    With ``zeros`` columns without a value fill up what is missing.
    """
    visible = np.flatnonzero(shown)
    for row in range(counts.shape[0]):
        part = slice(counts.indptr[row], counts.indptr[row + 1])
        at, values = counts.indices[part], counts.data[part]
        kept = shown[at] & (values > 0)
        at, values = at[kept], values[kept]
        chosen = at[np.lexsort((at, -values))[:n]]
        if zeros and len(chosen) < n:
            rest = visible[~np.isin(visible, chosen)]
            chosen = np.r_[chosen, rest[: n - len(chosen)]]
        yield tuple(names[slot] for slot in chosen if names[slot])
