"""Counts to model inputs, in NumPy, Arrow and numba alone; no torch, no Ray, no files."""

from cellray.tokenize.batches import token_batches
from cellray.tokenize.rank import rank_tokens

__all__ = ["rank_tokens", "token_batches"]
