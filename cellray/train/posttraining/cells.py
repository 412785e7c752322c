"""Labelled datasets as single-cell fine-tuning reads them, and a ranked list of genes made from them.

Contract: cells are read by shards and judged as everywhere; rejected cells, cells without a label and held-out ones are
left out and counted. A ranked list is made from the cells that are trained on alone.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from cellray.errors import InputError
from cellray.ingest import DatasetSource, check_beside, needs_staging, read_obs_text, stage
from cellray.puzzles.puzzle import clean
from cellray.reasoner.cells import NamedCells
from cellray.reasoner.form import SentenceForm
from cellray.scratch import Scratch
from cellray.train.config import HoldOut
from cellray.train.corpus import held_out

_SHARD = 4096
_TARGET_SUM = 1e4


@dataclass(frozen=True)
class LabelledReading:
    """How labelled datasets are read."""

    label_key: str = "cell_type"
    layer: str | None = None
    gene_key: str | None = None
    min_genes: int = 20
    hold_out: HoldOut = field(default_factory=HoldOut)


@dataclass(frozen=True)
class LabelledShard:
    """Cells that are trained on: sentences, labels, and ``counts`` (cells, genes) float32 of genes ``names``."""

    sentences: list[str]
    labels: list[str]
    counts: sparse.csr_matrix
    names: list[str]


@dataclass
class LabelledCells:
    """One dataset. ``left_out`` counts by reason while shards are read."""

    source: DatasetSource
    reading: LabelledReading
    left_out: Counter[str] = field(default_factory=Counter)

    def shards(self, form: SentenceForm) -> Iterator[LabelledShard]:
        """Read the dataset.

        Raises
        ------
        MissingKeyError
            If a column is not there; other dataset errors if it cannot be read.
        """
        given, rule = self.reading, self.reading.hold_out
        check_beside(self.source, dict.fromkeys(filter(None, (given.label_key, rule.key)), "obs"))
        cells = NamedCells.of(self.source, form, layer=given.layer, gene_key=given.gene_key)
        labels = [clean(label) for label in read_obs_text(self.source, given.label_key)]
        groups = None if rule.key is None else read_obs_text(self.source, rule.key).tolist()
        with ExitStack() as stack:
            if needs_staging(cells.plan):
                folder = str(stack.enter_context(Scratch("stage")).path)
                cells = cells.staged(stage(cells.plan, folder, _SHARD))
            for start in range(0, cells.plan.n_cells, _SHARD):
                own = slice(start, min(start + _SHARD, cells.plan.n_cells))
                shard, sentences = cells.read(own.start, own.stop, given.min_genes)
                held = held_out(rule, shard.cell_ids, None if groups is None else groups[own])
                rows = []
                for at, (label, sentence) in enumerate(zip(labels[own], sentences, strict=True)):
                    code = (
                        shard.reject_codes[at] or ("" if label else "no_label") or ("" if sentence else "no_known_gene")
                    )
                    code = code or ("held_out" if held[at] else "")
                    if code:
                        self.left_out[code] += 1
                    else:
                        rows.append(at)
                yield LabelledShard(
                    [sentences[at] for at in rows],
                    [labels[own][at] for at in rows],
                    shard.counts[rows],
                    cells.names,
                )


def rank_genes(datasets: Sequence[LabelledCells], n: int) -> tuple[str, ...]:
    """Return the ``n`` genes that vary most, by normalised dispersion: those of most datasets first, then by rank.

    Raises
    ------
    InputError
        If no gene varies.
    """
    from cellray.refine.genes import by_dispersion, moments

    places: dict[str, list[int]] = {}
    for dataset in datasets:
        names: list[str] = []

        def counts(dataset: LabelledCells = dataset, names: list[str] = names) -> Iterator[sparse.csr_matrix]:
            for shard in dataset.shards(SentenceForm()):
                names[:] = shard.names
                yield shard.counts

        order = by_dispersion(moments(counts(), _TARGET_SUM))
        named = [names[gene] for gene in order.tolist() if names[gene]]
        for place, name in enumerate(dict.fromkeys(named[:n])):
            places.setdefault(name, []).append(place)
    if not places:
        msg = "no gene of the training cells varies; name a list with ranked_genes, or use form expr_rank"
        raise InputError(msg)
    return tuple(sorted(places, key=lambda name: (-len(places[name]), float(np.median(places[name])), name))[:n])
