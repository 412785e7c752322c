"""A LangCell model folder: what it holds besides ``config.json``, weights and labels, and when that is wrong.

::

    genes.parquet        Ensembl id, token, median            (schema.genes)
    symbols.parquet      symbol -> Ensembl id                 (schema.symbols)
    tokenizer.json       the text tokenizer
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from cellray import schema
from cellray.models import folders
from cellray.models.bert import BertConfig
from cellray.models.langcell import LangCell, LangCellConfig
from cellray.models.state import State, check_state, loaded, read_table


@dataclass(frozen=True)
class LangCellCheckpoint:
    """A loaded LangCell model. ``labels`` are dicts with ``name``, ``term_id`` and ``text``."""

    name: str
    digest: str
    config: LangCellConfig
    state: State
    genes: pa.Table
    symbols: pa.Table
    tokenizer: Tokenizer
    labels: list[dict[str, str]]

    FORMAT: ClassVar[str] = folders.LANGCELL
    EMBEDDING_KEY: ClassVar[str] = schema.OBSM_LANGCELL

    @classmethod
    def read(cls, folder: Path, raw: dict[str, Any], labels: list[dict[str, str]], digest: str) -> Self:
        """Read and check ``folder``, whose ``config.json`` holds ``raw``; what is wrong is a ``ValueError``."""
        own = {field.name for field in fields(LangCellConfig)} - {"cell", "text"}
        cell, text = BertConfig.from_dict(raw["cell"]), BertConfig.from_dict(raw["text"])
        config = LangCellConfig(cell=cell, text=text, **{name: raw[name] for name in own})
        state = load_file(folder / "model.safetensors")
        check(state, config)
        genes = read_table(folder / "genes.parquet", schema.genes())
        _check_genes(genes, config)
        symbols = read_table(folder / "symbols.parquet", schema.symbols())
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(str(raw["name"]), digest, config, state, genes, symbols, tokenizer, labels)

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return schema.EMBEDDING_DIM

    def write_tables(self, folder: Path) -> None:
        """Write what only this kind of folder has."""
        pq.write_table(self.genes.cast(schema.genes()), folder / "genes.parquet", compression="zstd")
        pq.write_table(self.symbols.cast(schema.symbols()), folder / "symbols.parquet", compression="zstd")
        self.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    def build(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LangCell:
        """Return the model in evaluation mode on ``device``, all but its last steps in ``dtype``."""
        return cast("LangCell", loaded(lambda: LangCell(self.config), self.state, device, dtype))

    def text_ids(self, texts: list[str]) -> torch.Tensor:
        """Tokenise texts as the official code does (``[CLS] ... [SEP]``, cut to 512): (k, t) int64, padded."""
        longest = min(512, self.config.text.max_position_embeddings)
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        ids = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in ids]
        padded = torch.full((len(ids), max(map(len, ids))), self.config.text.pad_token_id, dtype=torch.int64)
        for at, row in enumerate(ids):
            padded[at, : len(row)] = torch.tensor(row)
        return padded


def check(state: State, config: LangCellConfig) -> None:
    """Raise ``ValueError`` if ``state`` does not fit ``config``, or ``config`` itself."""
    if config.max_tokens > config.cell.max_position_embeddings:
        msg = (
            f"max_tokens {config.max_tokens} is more than the {config.cell.max_position_embeddings} positions there are"
        )
        raise ValueError(msg)
    plain = not any("crossattention" in name for name in state)
    hint = "; a text encoder saved as a plain Hugging Face BertModel is not LangCell's" if plain else ""
    check_state(state, lambda: LangCell(config), hint)


def _check_genes(genes: pa.Table, config: LangCellConfig) -> None:
    tokens = genes[schema.TOKEN].to_numpy()
    medians = genes[schema.MEDIAN].to_numpy()
    if len(tokens) == 0 or tokens.min() < 0 or tokens.max() >= min(config.cell.vocab_size, 1 << 16):
        msg = f"genes.parquet: tokens must lie in 0..{min(config.cell.vocab_size, 1 << 16) - 1}"
        raise ValueError(msg)
    if not ((medians > 0) & (medians < float("inf"))).all():
        msg = "genes.parquet: medians must be positive and finite"
        raise ValueError(msg)
