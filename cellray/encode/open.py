"""From a model folder to what works with it: its tokenizer and its encoder.

Contract: the only place that tells one kind of model from another on the way from counts to scores.
"""

from collections.abc import Sequence

import torch

from cellray import schema
from cellray.encode.encoder import Encoder
from cellray.encode.langcell import LangCellEncoder
from cellray.encode.scgpt import ScGPTEncoder
from cellray.models.checkpoints import Checkpoint
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.tokenize.tokenizers import BinTokenizer, RankTokenizer, Tokenizer


def tokenizer_of(checkpoint: Checkpoint, *, max_tokens: int | None = None, seed: int = 0) -> Tokenizer:
    """Return the model's tokenizer; ``max_tokens`` (CLS included) overrides the model's, ``seed`` is of its draws."""
    tokens = checkpoint.genes[schema.TOKEN].to_numpy()
    longest = max_tokens or checkpoint.config.max_tokens
    if isinstance(checkpoint, LangCellCheckpoint):
        return RankTokenizer(tokens, checkpoint.genes[schema.MEDIAN].to_numpy(), longest - 1)
    config = checkpoint.config
    weights = checkpoint.genes[schema.WEIGHT].to_numpy() if config.gene_choice == "weight" else None
    return BinTokenizer(
        tokens, config.n_bins, longest - 1, seed, config.normalise, config.zero_genes, config.ties, weights
    )


def open_encoder(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    scoring: bool,
    alpha: float,
    ctm_top_k: int | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 32768,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Encoder:
    """Load the model; without ``scoring`` it only embeds. Parameters as in the encoders."""
    if isinstance(checkpoint, LangCellCheckpoint):
        return LangCellEncoder(
            checkpoint,
            texts if scoring else (),
            alpha=alpha,
            ctm_top_k=ctm_top_k,
            batch_tokens=batch_tokens,
            device=device,
            dtype=dtype,
        )
    return ScGPTEncoder(
        checkpoint, classify=scoring, max_tokens=max_tokens, batch_tokens=batch_tokens, device=device, dtype=dtype
    )
