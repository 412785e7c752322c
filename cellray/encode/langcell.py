"""Zero-shot label scores of LangCell for shards of tokenised cells.

Contract: ``LangCellScorer.score`` maps a token shard (``schema.token_shard``) to a score table (``schema.scores``),
row for row in the same order; rejected cells pass through with null scores. A cell's numbers do not depend on its
shard beyond float32 rounding. It loads a model once and keeps it. It reads no counts, writes no file and knows no
Ray.
"""

import numpy as np
import pyarrow as pa
import torch

from cellray import schema
from cellray.models.checkpoints import Checkpoint
from cellray.models.langcell import pad_cells
from cellray.tokenize import token_batches


class LangCellScorer:
    """A loaded LangCell model and one label set.

    Parameters
    ----------
    checkpoint
        The model folder's content.
    texts
        One prompt per label, in column order.
    alpha
        Weight of the similarity branch in [0, 1].
    batch_tokens
        Token budget of one forward pass, padding included.
    device
        ``"cuda"``, ``"cpu"`` or None for a GPU when there is one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: list[str],
        *,
        alpha: float,
        batch_tokens: int = 32768,
        device: str | None = None,
    ) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.alpha = alpha
        self.batch_tokens = batch_tokens
        self.n_labels = len(texts)
        self.model = checkpoint.build(self.device)
        with torch.inference_mode():
            self.texts = self.model.encode_texts(checkpoint.text_ids(texts).to(self.device))

    def score(self, shard: pa.Table) -> pa.Table:
        """Score one token shard; returns ``schema.scores()``."""
        shard = shard.combine_chunks()
        kept = np.flatnonzero(shard[schema.REJECT_CODE].is_null().to_numpy())
        flat, offsets = _ragged(shard[schema.TOKENS])
        probabilities, embeddings = self.score_tokens(flat, offsets, kept)
        rejected = np.ones(len(shard), bool)
        rejected[kept] = False
        columns = [
            shard[name] for name in (schema.ROW, schema.CELL_ID, schema.N_COUNTS, schema.N_GENES, schema.REJECT_CODE)
        ]
        columns.append(_lists(probabilities, rejected))
        columns.append(_fixed_lists(embeddings.astype(np.float16), kept, len(shard)))
        return pa.table(columns, schema=schema.scores())

    def score_tokens(self, flat: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score cells ``rows`` of a ragged token array.

        Parameters
        ----------
        flat, offsets
            uint16 tokens without CLS, and (n + 1,) int64 offsets.
        rows
            (m,) cells to score.

        Returns
        -------
        probabilities, embeddings
            float32 (m, k) and (m, 256), in the order of ``rows``.
        """
        probabilities = np.empty((len(rows), self.n_labels), np.float32)
        embeddings = np.empty((len(rows), schema.EMBEDDING_DIM), np.float32)
        config = self.model.config
        tokens, ends, wanted = (
            torch.from_numpy(flat.astype(np.int32)),
            torch.from_numpy(offsets),
            torch.from_numpy(rows),
        )
        lengths = np.minimum(offsets[rows + 1] - offsets[rows], config.max_tokens - 1) + 1
        with torch.inference_mode():
            for batch in token_batches(lengths, self.batch_tokens):
                ids = pad_cells(tokens, ends, wanted[batch], config).to(self.device)
                p, e = self.model.scores(ids, self.texts, self.alpha)
                probabilities[batch], embeddings[batch] = p.cpu().numpy(), e.cpu().numpy()
        return probabilities, embeddings


def _ragged(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and int64 offsets of a list column."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    offsets = array.offsets.to_numpy().astype(np.int64)
    return array.values.to_numpy(), offsets


def _lists(values: np.ndarray, rejected: np.ndarray) -> pa.Array:
    """Rows of ``values`` as a list column, null where rejected."""
    width = values.shape[1]
    offsets = np.concatenate([[0], np.cumsum(np.where(rejected, 0, width))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()), mask=pa.array(rejected))


def _fixed_lists(values: np.ndarray, kept: np.ndarray, n: int) -> pa.Array:
    """Rows of ``values`` at positions ``kept`` of a fixed-size list column of ``n`` rows, the others null."""
    full = np.zeros((n, values.shape[1]), values.dtype)
    full[kept] = values
    mask = np.ones(n, bool)
    mask[kept] = False
    return pa.FixedSizeListArray.from_arrays(pa.array(full.ravel()), values.shape[1], mask=pa.array(mask))
