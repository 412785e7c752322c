"""An scGPT model folder: what it holds besides ``config.json``, weights and labels, and when that is wrong.

::

    genes.parquet        symbol, token                        (schema.symbol_tokens)
                         and weight and Ensembl id where genes are chosen by weight (schema.weighted_genes)

Labels are those of the classification head, in the order of its classes; without a head there are none.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from cellray import schema
from cellray.models import folders
from cellray.models.scgpt import GENE_CHOICES, NORMALISATIONS, TIES, ScGPT, ScGPTConfig
from cellray.models.state import State, check_state, loaded, read_table


@dataclass(frozen=True)
class ScGPTCheckpoint:
    """A loaded scGPT model. ``labels`` are dicts with ``name`` and ``term_id``, and ``text``, which is empty."""

    name: str
    digest: str
    config: ScGPTConfig
    state: State
    genes: pa.Table
    labels: list[dict[str, str]]

    FORMAT: ClassVar[str] = folders.SCGPT
    EMBEDDING_KEY: ClassVar[str] = schema.OBSM_SCGPT

    @classmethod
    def read(cls, folder: Path, raw: dict[str, Any], labels: list[dict[str, str]], digest: str) -> Self:
        """Read and check ``folder``, whose ``config.json`` holds ``raw``; what is wrong is a ``ValueError``."""
        config = ScGPTConfig(**{field.name: raw[field.name] for field in fields(ScGPTConfig) if field.name in raw})
        state = load_file(folder / "model.safetensors")
        genes = read_table(folder / "genes.parquet", _genes_schema(config))
        check(state, config, genes, labels)
        return cls(str(raw["name"]), digest, config, state, genes, labels)

    @property
    def symbols(self) -> pa.Table:
        """No further names: what there is stands in the gene table."""
        return schema.symbols().empty_table()

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.config.hidden_size

    def write_tables(self, folder: Path) -> None:
        """Write what only this kind of folder has."""
        pq.write_table(self.genes.cast(_genes_schema(self.config)), folder / "genes.parquet", compression="zstd")

    def build(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ScGPT:
        """Return the model in evaluation mode on ``device``, all but its last steps in ``dtype``."""
        return cast("ScGPT", loaded(lambda: ScGPT(self.config), self.state, device, dtype))


def check(state: State, config: ScGPTConfig, genes: pa.Table, labels: list[dict[str, str]]) -> None:
    """Raise ``ValueError`` if weights, gene table or labels do not fit ``config``."""
    if config.hidden_size % config.num_heads:
        msg = f"num_heads {config.num_heads} does not divide hidden_size {config.hidden_size}"
        raise ValueError(msg)
    if config.n_bins < 3:
        msg = f"n_bins is {config.n_bins}; there must be one for zeros and two others at least"
        raise ValueError(msg)
    for name, allowed in (("normalise", NORMALISATIONS), ("ties", TIES), ("gene_choice", GENE_CHOICES)):
        if getattr(config, name) not in allowed:
            msg = f"{name} {getattr(config, name)!r} is not one of {list(allowed)}"
            raise ValueError(msg)
    check_state(state, lambda: ScGPT(config))
    tokens = genes[schema.TOKEN].to_numpy()
    if len(tokens) == 0 or tokens.min() < 0 or tokens.max() >= min(config.vocab_size, 1 << 16):
        msg = f"genes.parquet: tokens must lie in 0..{min(config.vocab_size, 1 << 16) - 1}"
        raise ValueError(msg)
    if len(labels) != config.n_classes:
        msg = f"{len(labels)} labels for the {config.n_classes} classes of the classification head"
        raise ValueError(msg)


def _genes_schema(config: ScGPTConfig) -> pa.Schema:
    return schema.weighted_genes() if config.gene_choice == "weight" else schema.symbol_tokens()
