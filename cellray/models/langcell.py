"""LangCell: a cell and a text encoder that meet in 256 dimensions, and a cross-attention head that judges pairs.

Contract: the numbers of the official code (Zhao et al. 2024, repository PharMolix/LangCell) in float32. It works on
token ids; it knows neither genes, counts, labels nor files, and it does not batch.

Beyond the official code, with the same numbers:

1. Keys and values of a cell are computed once and shared by all texts; texts go through cross-attention side by side.
2. What precedes a text's first cross-attention (embedding, self-attention of layer 0) is computed once per text.
3. The last text layer is computed for the CLS row alone, the only one that is read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.models.bert import Bert, BertConfig, padding_mask
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

    def __init__(self, config: LangCellConfig) -> None:
        super().__init__()
        self.config = config
        self.cell_bert = Bert(config.cell)
        self.cell_proj = nn.Linear(config.cell.hidden_size, EMBEDDING_DIM)
        self.text_bert = Bert(config.text)
        self.text_proj = nn.Linear(config.text.hidden_size, EMBEDDING_DIM)
        self.ctm_head = nn.Linear(config.text.hidden_size, 2)

    def encode_cells(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encode cells.

        Parameters
        ----------
        ids
            (b, l) int64, CLS first, padded with the pad id.

        Returns
        -------
        embeddings, states, mask
            (b, 256) of unit length, (b, l, hidden) and (b, l) or None.
        """
        mask = padding_mask(ids, self.config.cell.pad_token_id)
        states = self.cell_bert(ids, mask)
        return F.normalize(self.cell_proj(states[:, 0]), dim=-1), states, mask

    def encode_texts(self, ids: Tensor) -> Texts:
        """Encode (k, t) int64 text ids, each ``[CLS] ... [SEP]`` and padded."""
        mask = ids != self.config.text.pad_token_id
        first, *_ = self.text_bert.layers
        states = first.attend(self.text_bert.embeddings(ids), mask)
        final = first.feed_forward(states)
        for layer in self.text_bert.layers[1:]:
            final = layer.feed_forward(layer.attend(final, mask))
        return Texts(mask, F.normalize(self.text_proj(final[:, 0]), dim=-1), states)

    def match(self, cells: Tensor, cell_mask: Tensor | None, text_states: Tensor, text_mask: Tensor) -> Tensor:
        """Cell-text matching: the two logits (no match, match) of every pair.

        Parameters
        ----------
        cells, cell_mask
            (b, l, cell hidden) states and (b, l) mask of ``encode_cells``.
        text_states, text_mask
            (b, k, t, text hidden) layer-0 states and (b, k, t) mask: the k texts that each cell is paired with.

        Returns
        -------
        Tensor
            (b, k, 2) logits.
        """
        b, k, t, width = text_states.shape
        mask = text_mask.reshape(b * k, t)
        states = text_states.reshape(b * k, t, width)
        last = len(self.text_bert.layers) - 1
        for depth, layer in enumerate(self.text_bert.layers):
            read = slice(1) if depth == last else slice(None)
            states = layer.attend(states, mask, read) if depth else states[:, read]
            # Texts do not see each other in cross-attention, so the k texts of a cell are one long query.
            keys_values = layer.crossattention.keys_values(cells)
            states = layer.crossattention(states.reshape(b, -1, width), keys_values, cell_mask)
            states = layer.feed_forward(states).reshape(b * k, -1, width)
        return self.ctm_head(states[:, 0]).reshape(b, k, 2)

    def scores(self, cell_ids: Tensor, texts: Texts, alpha: float) -> tuple[Tensor, Tensor]:
        """Label probabilities of cells: ``alpha * P_sim + (1 - alpha) * P_ctm``.

        ``P_sim`` is the softmax over labels of cosine / temperature; ``P_ctm`` the softmax over labels of the match
        *probabilities*, as the official code has it. ``alpha = 1`` skips matching.

        Returns
        -------
        probabilities, embeddings
            (b, k) and (b, 256).
        """
        embeddings, states, mask = self.encode_cells(cell_ids)
        similarity = (embeddings @ texts.embeddings.T / self.config.temperature).softmax(-1)
        if alpha == 1:
            return similarity, embeddings
        b = len(cell_ids)
        logits = self.match(states, mask, texts.states.expand(b, -1, -1, -1), texts.mask.expand(b, -1, -1))
        matching = logits.softmax(-1)[..., 1].softmax(-1)
        return alpha * similarity + (1 - alpha) * matching, embeddings


def pad_cells(flat: Tensor, offsets: Tensor, rows: Tensor, config: LangCellConfig) -> Tensor:
    """Stack cells as (b, l) int64 ids: CLS, the cell's tokens cut to ``max_tokens - 1``, padding.

    Parameters
    ----------
    flat, offsets
        Tokens of all cells, and (n + 1,) int64 offsets.
    rows
        (b,) the cells of this batch.
    """
    starts, lengths = offsets[rows], (offsets[rows + 1] - offsets[rows]).clamp(max=config.max_tokens - 1)
    width = int(lengths.max()) if len(rows) else 0
    columns = torch.arange(width)
    inside = columns < lengths[:, None]
    ids = torch.full((len(rows), width + 1), config.cell.pad_token_id, dtype=torch.int64)
    ids[:, 0] = config.cls_token
    gathered = flat[(starts[:, None] + columns).clamp(max=max(len(flat) - 1, 0))].to(torch.int64)
    ids[:, 1:] = torch.where(inside, gathered, ids[:, 1:])
    return ids
