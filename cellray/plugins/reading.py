"""Labelled datasets to cells in a base's tokens, the same as the pipeline would give the encoder.

Contract: cells are read by shards and judged as everywhere (``cellray.ingest``); rejected cells and cells without a
label are left out and counted. It holds tokens, not counts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cellray.encode.open import tokenizer_of
from cellray.errors import SettingError
from cellray.ingest import (
    GeneIndex,
    check_beside,
    find_sources,
    inspect_dataset,
    needs_staging,
    read_obs_text,
    read_shard,
)
from cellray.labels.ontology import Ontology
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.tokenize.cells import Cells
from cellray.tokenize.shards import token_table

_SHARD = 4096
NO_LABEL = "no_label"


@dataclass(frozen=True)
class Reading:
    """How labelled datasets are read.

    Attributes
    ----------
    label_key, id_key, group_key
        ``obs`` columns of labels, of their Cell Ontology ids (None: looked up by name) and of groups such as donors
        (None: every cell is its own).
    layer, gene_key
        As in ``inspect_dataset``.
    min_genes
        A cell with fewer known genes is left out.
    seed
        Of the tokenizer's draws.
    """

    label_key: str = "cell_type"
    id_key: str | None = None
    group_key: str | None = None
    layer: str | None = None
    gene_key: str | None = None
    min_genes: int = 5
    seed: int = 0


@dataclass
class Found:
    """The cells, the ontology id of every label ("" where there is none), and how many were left out by code."""

    cells: Cells = field(default_factory=Cells.none)
    term_ids: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def read_labelled(inputs: Sequence[str], base: ScGPTCheckpoint, reading: Reading, *, label: str | None = None) -> Found:
    """Read datasets for ``base``; ``label`` stands for what ``label_key`` says, which then is not read.

    Raises
    ------
    SettingError
        If an input or column is not there, or no cell is left.
    GeneError
        If the genes are not those of the base.
    """
    ontology = Ontology()
    genes, tokenizer = GeneIndex(base.genes, base.symbols), tokenizer_of(base, seed=reading.seed)
    parts: list[Cells] = []
    found = Found()
    for source in find_sources(inputs):
        keys = [reading.group_key, *([] if label is not None else [reading.label_key, reading.id_key])]
        check_beside(source, {key: "obs" for key in keys if key is not None})
        plan = inspect_dataset(source, genes, layer=reading.layer, gene_key=reading.gene_key)
        if needs_staging(plan):
            msg = f"{source.uri}: stored by gene ({plan.layout}); write it by cell (CSR) to train on it"
            raise SettingError(msg)
        labels = np.full(plan.n_cells, label) if label is not None else read_obs_text(source, reading.label_key)
        ids = read_obs_text(source, reading.id_key) if reading.id_key and label is None else np.full(len(labels), "")
        found.term_ids |= {
            name: ontology.find(term or name) or ""
            for name, term in set(zip(labels.tolist(), ids.tolist(), strict=True))
            if name
        }
        groups = read_obs_text(source, reading.group_key) if reading.group_key else None
        for start in range(0, plan.n_cells, _SHARD):
            rows = slice(start, min(start + _SHARD, plan.n_cells))
            shard = read_shard(plan, rows.start, rows.stop, min_genes=reading.min_genes, n_slots=genes.n_genes)
            names = np.array(shard.cell_ids)
            own = (labels[rows], names if groups is None else groups[rows])
            codes = np.array([code or "" for code in shard.reject_codes], dtype=object)
            codes[(codes == "") & (labels[rows] == "")] = NO_LABEL
            found.left_out.update(codes[codes != ""].tolist())
            table = token_table(shard, tokenizer, plan.slots)
            parts.append(Cells.of_columns(names, *own, table).take(codes == ""))
    found.cells = Cells.concatenated(parts)
    if not len(found.cells):
        msg = f"{', '.join(inputs)}: no cell can be used (left out: {dict(found.left_out)})"
        raise SettingError(msg)
    return found
