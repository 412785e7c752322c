"""How each kind of model turns counts into tokens, as plain data that travels to the tasks that read shards.

Contract: a tokenizer is called with cells in the model's gene slots and returns the token columns of
``schema.token_shard``; the tokens of a cell are a pure function of its row, its name and the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse

from cellray import schema
from cellray.tokenize.bins import bin_tokens
from cellray.tokenize.rank import rank_tokens


@dataclass(frozen=True)
class RankTokenizer:
    """LangCell's: genes by rank. ``tokens`` and ``medians`` (g,) belong to slots; ``max_genes`` leaves CLS out."""

    tokens: np.ndarray
    medians: np.ndarray
    max_genes: int

    binned = False

    def __call__(
        self, counts: sparse.csr_matrix, n_counts: np.ndarray, cell_ids: Sequence[str], present: np.ndarray
    ) -> dict[str, pa.Array]:
        """Tokenise (n, g) counts; names and the slots ``present`` in the dataset do not matter here."""
        del cell_ids, present
        flat, offsets = rank_tokens(counts, n_counts, self.tokens, self.medians, self.max_genes)
        return {schema.TOKENS: _lists(offsets, flat)}


@dataclass(frozen=True)
class BinTokenizer:
    """scGPT's: genes with the bin of their value; parameters as in ``bin_tokens``."""

    tokens: np.ndarray
    n_bins: int
    max_genes: int
    seed: int
    normalise: str
    zero_genes: bool
    ties: str = "draw"
    weights: np.ndarray | None = None

    binned = True

    def __call__(
        self, counts: sparse.csr_matrix, n_counts: np.ndarray, cell_ids: Sequence[str], present: np.ndarray
    ) -> dict[str, pa.Array]:
        """Tokenise (n, g) values; with ``zero_genes`` all slots ``present`` in the dataset are tokens."""
        del n_counts
        found = bin_tokens(
            counts,
            cell_ids,
            self.tokens,
            n_bins=self.n_bins,
            max_genes=self.max_genes,
            seed=self.seed,
            normalise=self.normalise,
            zero_genes=present if self.zero_genes else None,
            draw_ties=self.ties == "draw",
            weights=self.weights,
        )
        return {schema.TOKENS: _lists(found.offsets, found.tokens), schema.BINS: _lists(found.offsets, found.bins)}


Tokenizer = RankTokenizer | BinTokenizer


def _lists(offsets: np.ndarray, values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
