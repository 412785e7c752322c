"""Cells to label scores and embeddings, without Ray: one interface, one file a kind of model."""

from cellray.encode.encoder import Encoder
from cellray.encode.open import open_encoder, tokenizer_of

__all__ = ["Encoder", "open_encoder", "tokenizer_of"]
