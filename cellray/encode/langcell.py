"""LangCell as an encoder: zero-shot label scores, or embeddings alone.

Contract: that of ``cellray.encode.encoder``; without texts it embeds and does not score.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cellray import schema
from cellray.encode.encoder import Encoder, Numbers
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.models.packed import Segments, places


class LangCellEncoder(Encoder):
    """A loaded LangCell model and one label set.

    Parameters
    ----------
    checkpoint
        The model folder's content.
    texts
        One prompt per label, in column order; none to embed only.
    alpha
        Weight of the similarity branch in [0, 1].
    ctm_top_k
        Labels that are matched, the most similar ones; None: all. An approximation.
    batch_tokens, device, dtype
        As in ``Encoder``.
    """

    def __init__(
        self,
        checkpoint: LangCellCheckpoint,
        texts: Sequence[str] = (),
        *,
        alpha: float = 0.2,
        ctm_top_k: int | None = None,
        batch_tokens: int = 32768,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(batch_tokens=batch_tokens, device=device, dtype=dtype)
        self.alpha, self.ctm_top_k = alpha, ctm_top_k
        self.width, self.n_labels = checkpoint.width, len(texts)
        self.model = checkpoint.build(self.device, self.weights)
        if texts:
            with torch.inference_mode():
                self.texts = self.model.encode_texts(checkpoint.text_ids(list(texts)).to(self.device))

    def cost(self, n_tokens: np.ndarray) -> np.ndarray:
        """Rows of the cell, and of the texts that it is matched with."""
        own = np.minimum(n_tokens, self.model.config.max_tokens - 1) + 1
        if self.n_labels == 0 or self.alpha == 1:
            return own
        return own + min(self.n_labels, self.ctm_top_k or self.n_labels) * self.texts.mask.shape[1]

    def encode(self, columns: dict[str, np.ndarray], offsets: np.ndarray, rows: np.ndarray) -> Numbers:
        """Encode one batch."""
        config = self.model.config
        index, lengths = places(offsets, rows, config.max_tokens)
        flat = columns[schema.TOKENS]
        ids = np.full(len(index), config.cls_token, np.int64)
        ids[index >= 0] = flat[index[index >= 0]]
        cells = Segments.of(lengths, self.device)
        if self.n_labels == 0:
            return None, self.model.embed_cells(self.on_device(ids), cells)
        return self.model.scores(self.on_device(ids), cells, self.texts, self.alpha, self.ctm_top_k)
