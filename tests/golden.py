"""The official LangCell outputs, and our inputs to them, read through the public surfaces."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cellray import schema
from cellray.ingest import DatasetPlan, GeneIndex, find_sources, inspect_dataset, read_shard
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.models.official import read_official
from cellray.tokenize import rank_tokens


@dataclass(frozen=True)
class Golden:
    """``folder`` holds the official checkpoint and outputs, ``cells`` is the input."""

    folder: Path
    cells: Path

    @cached_property
    def checkpoint(self) -> LangCellCheckpoint:
        """The official checkpoint, converted."""
        return read_official(self.folder / "ckpt", self.folder / "tokenizer", self.folder / "geneformer")

    @cached_property
    def texts(self) -> list[str]:
        """Prompts in the official column order."""
        import json

        prompts = json.loads((self.folder / "type2text.json").read_text())
        return [prompts[str(name)] for name in np.load(self.folder / "expected" / "text.npz")["types"]]

    @cached_property
    def plan(self) -> DatasetPlan:
        """How the input is read."""
        genes = GeneIndex(self.checkpoint.genes, self.checkpoint.symbols)
        return inspect_dataset(find_sources([str(self.cells)])[0], genes)

    def tokens(self, max_genes: int) -> tuple[np.ndarray, np.ndarray]:
        """Rank tokens of all cells, one detected gene being enough."""
        genes = self.checkpoint.genes
        shard = read_shard(self.plan, 0, self.plan.n_cells, min_genes=1, n_slots=genes.num_rows)
        tokens, medians = genes[schema.TOKEN].to_numpy(), genes[schema.MEDIAN].to_numpy()
        return rank_tokens(shard.counts, shard.n_counts, tokens, medians, max_genes)
