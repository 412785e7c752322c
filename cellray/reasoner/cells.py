"""A dataset opened for sentences: how it is read, its genes by name, and their places in the ranked list.

Contract: cells are read by row range and judged as everywhere (``cellray.ingest``). The gene column is the one that the
user names, else the one with most names of the ranked list, else ``feature_name`` or the index; names that a language
model cannot know (Ensembl ids) are refused. Small enough to travel to workers.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cellray.errors import GeneError
from cellray.ingest import DatasetPlan, DatasetSource, Shard, read_shard
from cellray.ingest.plan import MIN_OVERLAP
from cellray.ingest.reader import open_dataset
from cellray.puzzles.cells import Ranking, open_by_names
from cellray.reasoner.form import SentenceForm
from cellray.tokenize.sentence import cell_sentences

_ENSEMBL = ("ENSG", "ENSMUSG")


@dataclass(frozen=True)
class NamedCells:
    """Plan, clean gene names in the order of its slots, and their places in the list (None in form ``expr_rank``)."""

    plan: DatasetPlan
    names: list[str]
    places: np.ndarray | None
    length: int

    @classmethod
    def of(
        cls, source: DatasetSource, form: SentenceForm, *, layer: str | None = None, gene_key: str | None = None
    ) -> "NamedCells":
        """Open a dataset.

        Raises
        ------
        GeneError
            If its genes are not those of the list, or Ensembl ids; other dataset errors if it cannot be read.
        """
        key = gene_key or _most_listed(source, form)
        names, plan = open_by_names(source, Ranking(layer=layer, gene_key=key))
        ids = sum(name.startswith(_ENSEMBL) for name in names)
        if 2 * ids > len(names):
            msg = f"{source.uri}: var[{plan.gene_key!r}] holds Ensembl ids; pass --gene-key with the column of symbols"
            raise GeneError(msg)
        places = form.places(names)
        if places is not None:
            listed = int(np.count_nonzero(places >= 0))
            if listed < MIN_OVERLAP * min(len(names), len(form.ranked)):
                msg = (
                    f"{source.uri}: only {listed:,} of the {len(form.ranked):,} ranked genes are among its "
                    f"{len(names):,}; pass --gene-key with the column of symbols, or another --ranked-genes"
                )
                raise GeneError(msg)
        return cls(plan, names, places, form.genes)

    @cached_property
    def genes(self) -> dict[str, int]:
        """Number of each name."""
        return {name: at for at, name in enumerate(self.names) if name}

    def staged(self, plan: DatasetPlan) -> "NamedCells":
        """Return the same, read by another plan."""
        return replace(self, plan=plan)

    def read(self, start: int, stop: int, min_genes: int) -> tuple[Shard, list[str]]:
        """Return cells ``start`` to ``stop``, judged, and their sentences; a rejected cell's is ``""``."""
        shard = read_shard(self.plan, start, stop, min_genes=min_genes, n_slots=len(self.names))
        return shard, cell_sentences(shard.counts, self.names, self.length, places=self.places)

    def expression(self, shard: Shard, at: int) -> dict[str, float]:
        """Return the counts above 0 of a shard's cell by gene."""
        part = slice(shard.counts.indptr[at], shard.counts.indptr[at + 1])
        pairs = zip(shard.counts.indices[part].tolist(), shard.counts.data[part].tolist(), strict=True)
        return {self.names[gene]: value for gene, value in pairs if value > 0}


def _most_listed(source: DatasetSource, form: SentenceForm) -> str | None:
    if not form.ranked:
        return None
    listed = set(form.ranked)
    with open_dataset(source) as reader:
        layers = reader.layers()
        keys = dict.fromkeys(key for layer in layers for key in reader.gene_keys(layer))
        found = {
            key: max(
                len(listed.intersection(reader.gene_names(layer, key)))
                for layer in layers
                if key in reader.gene_keys(layer)
            )
            for key in keys
        }
    return max(found, key=lambda key: found[key], default=None)
