"""One interface for all encoders: token shards in, scores or embeddings out.

Contract: ``Encoder.score`` maps a token shard (``schema.token_shard``) to a table of scores (``schema.scores``) or, for
a model that only embeds, of embeddings (``schema.embeddings``), row for row in the same order; rejected cells pass
through with nulls. A cell's numbers do not depend on its shard or batch beyond rounding. Batches are filled to a token
budget from cells of similar length; a GPU that runs out of memory halves the budget and goes on. It reads no counts,
writes no file and knows no Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from cellray import schema
from cellray.errors import EncodeError
from cellray.tokenize import token_batches

Numbers = tuple[torch.Tensor | None, torch.Tensor]


class Encoder(ABC):
    """A loaded model.

    Attributes
    ----------
    device, dtype
        Where it computes, and in which precision all but the last steps are, which stay in float32. On a GPU float16
        unless told otherwise. In bfloat16 weights and sums stay in float32 too and only products of large matrices are
        in it: it is slower for that, and still changes one label in a thousand; float16 two in ten thousand at most.
    batch_tokens
        Token budget of one forward pass.
    width
        Of its embeddings.
    n_labels
        Of its scores; 0 when it only embeds.
    """

    width: int
    n_labels: int

    def __init__(self, *, batch_tokens: int, device: str | None, dtype: torch.dtype | None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or (torch.float16 if self.device.startswith("cuda") else torch.float32)
        self.batch_tokens = batch_tokens

    @property
    def weights(self) -> torch.dtype:
        """What the model's weights are to be in."""
        return torch.float16 if self.dtype == torch.float16 else torch.float32

    @abstractmethod
    def cost(self, n_tokens: np.ndarray) -> np.ndarray:
        """Rows that cells of ``n_tokens`` (without CLS) take in a batch."""

    @abstractmethod
    def encode(self, columns: dict[str, np.ndarray], offsets: np.ndarray, rows: np.ndarray) -> Numbers:
        """Encode one batch.

        Parameters
        ----------
        columns
            Ragged token columns by name.
        offsets
            (n + 1,) int64 offsets into each of them.
        rows
            (m,) the cells of this batch.

        Returns
        -------
        probabilities, embeddings
            (m, n_labels) or None, and (m, width), on the device.
        """

    def score(self, shard: pa.Table) -> pa.Table:
        """Score one token shard."""
        shard = shard.combine_chunks()
        kept = np.flatnonzero(shard[schema.REJECT_CODE].is_null().to_numpy())
        columns, offsets = {}, np.zeros(1, np.int64)
        for name in (schema.TOKENS, schema.BINS):
            if name in shard.column_names:
                columns[name], offsets = _ragged(shard[name])
        probabilities, embeddings = self.score_tokens(columns, offsets, kept)
        identity = (schema.ROW, schema.CELL_ID, schema.N_COUNTS, schema.N_GENES, schema.REJECT_CODE)
        found: list[pa.Array | pa.ChunkedArray] = [shard[name] for name in identity]
        if self.n_labels == 0:
            found.append(_fixed_lists(embeddings, kept, len(shard)))
            return pa.table(found, schema=schema.embeddings(self.width))
        rejected = np.ones(len(shard), bool)
        rejected[kept] = False
        found += [_lists(probabilities, rejected), _fixed_lists(embeddings.astype(np.float16), kept, len(shard))]
        return pa.table(found, schema=schema.scores(self.width))

    def score_tokens(
        self, columns: dict[str, np.ndarray], offsets: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score cells ``rows`` of ragged token columns.

        Returns
        -------
        probabilities, embeddings
            float32 (m, n_labels) and (m, width), in the order of ``rows``.
        """
        probabilities = np.empty((len(rows), self.n_labels), np.float32)
        embeddings = np.empty((len(rows), self.width), np.float32)
        waiting: list[tuple[np.ndarray, Numbers]] = []

        def fetch() -> None:
            batch, (p, e) = waiting.pop(0)
            if p is not None:
                probabilities[batch] = p.float().cpu().numpy()
            embeddings[batch] = e.float().cpu().numpy()

        with torch.inference_mode():
            for batch, numbers in self._batches(columns, offsets, rows):
                waiting.append((batch, numbers))
                # On a GPU the batch before is fetched while this one is computed.
                if len(waiting) > 1:
                    fetch()
            while waiting:
                fetch()
        return probabilities, embeddings

    def _batches(
        self, columns: dict[str, np.ndarray], offsets: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Numbers]]:
        cost = self.cost(offsets[rows + 1] - offsets[rows])
        left = np.arange(len(rows))
        while len(left):
            batch = left[next(token_batches(cost[left], self.batch_tokens))]
            try:
                with torch.autocast(self.device.split(":")[0], self.dtype, enabled=self.dtype != self.weights):
                    numbers = self.encode(columns, offsets, rows[batch])
            except torch.cuda.OutOfMemoryError as error:
                if len(batch) == 1:
                    msg = f"one cell of {cost[batch[0]]:,} tokens does not fit into the GPU's memory"
                    raise EncodeError(msg) from error
                self.batch_tokens = max(1, min(self.batch_tokens, int(cost[batch].max()) * len(batch)) // 2)
                torch.cuda.empty_cache()
                continue
            yield batch, numbers
            done = np.zeros(len(rows), bool)
            done[batch] = True
            left = left[~done[left]]

    def on_device(self, values: np.ndarray) -> torch.Tensor:
        """Move numbers to the device without waiting for it."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.startswith("cuda") else tensor


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
