"""LangCell: a cell and a text encoder that meet in 256 dimensions, and a cross-attention head that judges pairs.

Contract: the numbers of the official code (Zhao et al. 2024, repository PharMolix/LangCell) in float32. It works on
token ids; it knows neither genes, counts, labels nor files, and it does not batch.

Beyond the official code, with the same numbers:

1. Keys and values of a cell are computed once and shared by all texts; texts go through cross-attention side by side.
2. What precedes a text's first cross-attention (embedding, self-attention of layer 0) is computed once per text.
3. The last text layer is computed for the CLS row alone, the only one that is read; without matching, so is that of
   the cell encoder.
4. Cells are packed: there is no padding to compute.

``top_k`` of ``scores`` is an approximation: only so many labels, the most similar ones, are matched, and the softmax of
matching is over these.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.models.bert import Bert, BertConfig
from cellray.models.packed import Segments, exact
from cellray.schema import EMBEDDING_DIM


@dataclass(frozen=True)
class LangCellConfig:
    """Both encoders' sizes, the softmax temperature, the longest cell (CLS included) and the id of the CLS token."""

    cell: BertConfig
    text: BertConfig
    max_tokens: int
    cls_token: int
    temperature: float = 0.05


@dataclass(frozen=True)
class Texts:
    """Label texts ready for matching: ids and mask (k, t), embeddings (k, 256), and layer-0 states (k, t, hidden)."""

    mask: Tensor
    embeddings: Tensor
    states: Tensor


class LangCell(nn.Module):
    """The five official modules under their official names."""

    LAST = ("cell_proj", "text_proj", "ctm_head")

    def __init__(self, config: LangCellConfig) -> None:
        super().__init__()
        self.config = config
        self.cell_bert = Bert(config.cell)
        self.cell_proj = nn.Linear(config.cell.hidden_size, EMBEDDING_DIM)
        self.text_bert = Bert(config.text)
        self.text_proj = nn.Linear(config.text.hidden_size, EMBEDDING_DIM)
        self.ctm_head = nn.Linear(config.text.hidden_size, 2)

    def encode_cells(self, ids: Tensor, cells: Segments) -> tuple[Tensor, Tensor]:
        """Encode packed cells.

        Parameters
        ----------
        ids
            (t,) int64, CLS first in every cell.
        cells
            The n cells.

        Returns
        -------
        embeddings, states
            (n, 256) of unit length, and (t, hidden).
        """
        states = self.cell_bert(ids, cells)
        return self._embedded(states[cells.first]), states

    def embed_cells(self, ids: Tensor, cells: Segments) -> Tensor:
        """Return the embeddings of ``encode_cells`` alone, for less work."""
        return self._embedded(self.cell_bert(ids, cells, first_only=True))

    def _embedded(self, first: Tensor) -> Tensor:
        with exact(first):
            return F.normalize(self.cell_proj(first.float()), dim=-1)

    def encode_texts(self, ids: Tensor) -> Texts:
        """Encode (k, t) int64 text ids, each ``[CLS] ... [SEP]`` and padded."""
        mask = ids != self.config.text.pad_token_id
        first, *_ = self.text_bert.layers
        states = first.attend(self.text_bert.embeddings(ids), mask)
        final = first.feed_forward(states)
        for layer in self.text_bert.layers[1:]:
            final = layer.feed_forward(layer.attend(final, mask))
        with exact(final):
            return Texts(mask, F.normalize(self.text_proj(final[:, 0].float()), dim=-1), states)

    def match(self, states: Tensor, cells: Segments, text_states: Tensor, text_mask: Tensor) -> Tensor:
        """Cell-text matching: the two logits (no match, match) of every pair.

        Parameters
        ----------
        states, cells
            Packed states of ``encode_cells``, and the n cells.
        text_states, text_mask
            (n, k, l, text hidden) layer-0 states and (n, k, l) mask: the k texts that each cell is paired with.

        Returns
        -------
        Tensor
            (n, k, 2) logits.
        """
        n, k, length, width = text_states.shape
        mask = text_mask.reshape(n * k, length)
        mixed = text_states.reshape(n * k, length, width)
        last = len(self.text_bert.layers) - 1
        for depth, layer in enumerate(self.text_bert.layers):
            read = slice(1) if depth == last else slice(None)
            mixed = layer.attend(mixed, mask, read) if depth else mixed[:, read]
            # Texts do not see each other in cross-attention, so the k texts of a cell are one long query.
            queries = Segments.of([k * mixed.shape[1]] * n, mixed.device)
            crossed = layer.crossattention.packed(mixed.reshape(-1, width), states, queries, cells)
            mixed = layer.feed_forward(crossed).reshape(n * k, -1, width)
        with exact(mixed):
            return self.ctm_head(mixed[:, 0].float()).reshape(n, k, 2)

    def scores(
        self, ids: Tensor, cells: Segments, texts: Texts, alpha: float, top_k: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Label probabilities of cells: ``alpha * P_sim + (1 - alpha) * P_ctm``.

        ``P_sim`` is the softmax over labels of cosine / temperature; ``P_ctm`` the softmax over labels (with ``top_k``:
        over the most similar ones) of the match *probabilities*, as the official code has it. ``alpha = 1`` skips
        matching.

        Returns
        -------
        probabilities, embeddings
            (n, k) and (n, 256).
        """
        if alpha == 1:
            embeddings = self.embed_cells(ids, cells)
            return self._similarity(embeddings, texts).softmax(-1), embeddings
        embeddings, states = self.encode_cells(ids, cells)
        similarity = self._similarity(embeddings, texts)
        n_labels = similarity.shape[1]
        if top_k is None or top_k >= n_labels:
            pairs = torch.arange(n_labels, device=similarity.device).expand(len(similarity), -1)
        else:
            pairs = similarity.topk(top_k).indices
        logits = self.match(states, cells, texts.states[pairs], texts.mask[pairs])
        kept = logits.softmax(-1)[..., 1].softmax(-1)
        matching = torch.zeros_like(similarity).scatter(1, pairs, kept)
        return alpha * similarity.softmax(-1) + (1 - alpha) * matching, embeddings

    def _similarity(self, embeddings: Tensor, texts: Texts) -> Tensor:
        with exact(embeddings):
            return embeddings @ texts.embeddings.T / self.config.temperature
