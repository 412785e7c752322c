"""scGPT as an encoder: class scores of a fine-tuned model, or embeddings.

Contract: that of ``cellray.encode.encoder``. Embeddings have unit length. Upstream gives the CLS row the value of
padding when it embeds and 0 when it classifies; so do we.
"""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from cellray import schema
from cellray.encode.encoder import Encoder, Numbers
from cellray.models.packed import Segments
from cellray.models.scgpt import packed_inputs
from cellray.models.scgpt_folder import ScGPTCheckpoint


class ScGPTEncoder(Encoder):
    """A loaded scGPT model.

    Parameters
    ----------
    checkpoint
        The model folder's content.
    classify
        Whether to score with the classification head; else cells are embedded only.
    max_tokens
        Longest cell, CLS included; None: the model's own.
    batch_tokens, device, dtype
        As in ``Encoder``.
    """

    def __init__(
        self,
        checkpoint: ScGPTCheckpoint,
        *,
        classify: bool,
        max_tokens: int | None = None,
        batch_tokens: int = 32768,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(batch_tokens=batch_tokens, device=device, dtype=dtype)
        self.model = checkpoint.build(self.device, self.weights)
        self.width = checkpoint.width
        self.n_labels = checkpoint.config.n_classes if classify else 0
        self.max_tokens = max_tokens or checkpoint.config.max_tokens
        self.cls_value = 0.0 if classify else checkpoint.config.pad_value

    def cost(self, n_tokens: np.ndarray) -> np.ndarray:
        """Rows of the cell."""
        return np.minimum(n_tokens, self.max_tokens - 1) + 1

    def encode(self, columns: dict[str, np.ndarray], offsets: np.ndarray, rows: np.ndarray) -> Numbers:
        """Encode one batch."""
        config = replace(self.model.config, max_tokens=self.max_tokens)
        ids, values, lengths = packed_inputs(
            config, columns[schema.TOKENS], columns[schema.BINS], offsets, rows, self.cls_value
        )
        cells = Segments.of(lengths, self.device)
        states = self.model.encode_cells(self.on_device(ids), self.on_device(values), cells)
        probabilities = self.model.classify(states) if self.n_labels else None
        return probabilities, F.normalize(states.float(), dim=-1)
