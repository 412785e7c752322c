"""The two stages that score a shard, as plain functions: cells to tokens, and what turns tokens into scores.

Contract: the same on Ray, where ``stream`` runs them, as in this process. This module neither imports Ray nor writes
files, and it sets no number of threads.
"""

from typing import TYPE_CHECKING

from cellray.ingest import DatasetPlan, read_shard
from cellray.pipeline.order import Scoring
from cellray.tokenize.shards import token_table
from cellray.tokenize.tokenizers import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

    from cellray.encode import Encoder


def token_shard(plan: DatasetPlan, start: int, stop: int, *, tokenizer: Tokenizer, min_genes: int) -> "pa.Table":
    """Read, judge and tokenise cells ``start`` to ``stop``; returns ``schema.token_shard()``."""
    shard = read_shard(plan, start, stop, min_genes=min_genes, n_slots=len(tokenizer.tokens))
    return token_table(shard, tokenizer, plan.slots)


def open_scorer(scoring: Scoring) -> "Encoder":
    """Load the model, or the plugins on it, that ``scoring`` names."""
    import torch

    from cellray import encode
    from cellray.models import checkpoints
    from cellray.plugins.router import open_plugins

    checkpoint = checkpoints.load(scoring.model)
    dtype = None if scoring.precision == "auto" else getattr(torch, scoring.precision)
    if scoring.plugins is not None:
        return open_plugins(checkpoint, scoring.plugins, batch_tokens=scoring.batch_tokens, dtype=dtype)
    return encode.open_encoder(
        checkpoint,
        scoring.texts,
        scoring=bool(scoring.labels),
        alpha=scoring.alpha,
        ctm_top_k=scoring.ctm_top_k,
        max_tokens=scoring.max_tokens,
        batch_tokens=scoring.batch_tokens,
        dtype=dtype,
    )
