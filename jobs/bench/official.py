"""The official procedures of LangCell and scGPT, re-implemented to be measured against: padded, eager, repeated.

Contract: the same weights and the same numbers as our encoders, with the work that upstream does: cells padded to the
longest of their batch, attention that holds the whole matrix of weights (LangCell), a text encoded anew for every cell
and label. Only benchmarks and tests use it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.models.bert import Attention, Layer
from cellray.models.langcell import LangCell
from cellray.models.scgpt import ScGPT


def padded(cells: list[Tensor], fill: float) -> Tensor:
    """Stack 1-d tensors to (n, longest)."""
    return nn.utils.rnn.pad_sequence(cells, batch_first=True, padding_value=fill)


def langcell_cells(model: LangCell, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encode (n, l) padded cells; returns embeddings, states and the mask of tokens."""
    mask = ids != model.config.cell.pad_token_id
    states = model.cell_bert.embeddings(ids)
    for layer in model.cell_bert.layers:
        states = layer.feed_forward(_eager(layer.attention, states, states, mask))
    return F.normalize(model.cell_proj(states[:, 0]), dim=-1), states, mask


def langcell_text(model: LangCell, ids: Tensor) -> Tensor:
    """Encode (k, t) texts to embeddings."""
    mask = ids != model.config.text.pad_token_id
    states = model.text_bert.embeddings(ids)
    for layer in model.text_bert.layers:
        states = layer.feed_forward(_eager(layer.attention, states, states, mask))
    return F.normalize(model.text_proj(states[:, 0]), dim=-1)


def langcell_match(model: LangCell, states: Tensor, mask: Tensor, text: Tensor) -> Tensor:
    """Match every cell with one (t,) text; returns the (n,) probabilities of a match."""
    ids = text.expand(len(states), -1)
    text_mask = ids != model.config.text.pad_token_id
    mixed = model.text_bert.embeddings(ids)
    for layer in model.text_bert.layers:
        mixed = _multimodal(layer, mixed, text_mask, states, mask)
    return model.ctm_head(mixed[:, 0]).softmax(-1)[:, 1]


def scgpt_embed(model: ScGPT, ids: Tensor, values: Tensor, pad_token: int) -> Tensor:
    """Embed (n, l) padded cells through PyTorch's own transformer, every row of every layer."""
    mask = ids == pad_token
    known = values.clamp(max=512.0)[..., None]
    encoder = model.value_encoder
    states = model.encoder(ids) + encoder.norm(encoder.linear2(F.relu(encoder.linear1(known))))
    return F.normalize(scgpt_transformer(model)(states, src_key_padding_mask=mask)[:, 0], dim=-1)


def scgpt_transformer(model: ScGPT) -> nn.TransformerEncoder:
    """Return PyTorch's transformer encoder with the weights of ``model``."""
    config = model.config
    layer = nn.TransformerEncoderLayer(
        config.hidden_size, config.num_heads, config.ffn_size, dropout=0.0, batch_first=True
    )
    found = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
    state = {
        name.removeprefix("transformer_encoder.").replace("in_proj.", "in_proj_"): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("transformer_encoder.")
    }
    found.load_state_dict(state)
    return found.eval()


def _multimodal(layer: Layer, mixed: Tensor, text_mask: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    mixed = _eager(layer.attention, mixed, mixed, text_mask)
    return layer.feed_forward(_eager(layer.crossattention, mixed, states, mask))


def _eager(block: Attention, states: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Attention with its whole matrix of weights in memory."""
    query, key, value = (
        part.unflatten(-1, (block.heads, -1)).transpose(1, 2)
        for part in (block.self.query(states), block.self.key(source), block.self.value(source))
    )
    weights = query @ key.transpose(-1, -2)
    weights /= query.shape[-1] ** 0.5  # in place: at full length this is gigabytes
    weights += torch.where(mask, 0.0, torch.finfo(weights.dtype).min)[:, None, None]
    weights = weights.softmax(-1)
    return block.output((weights @ value).transpose(1, 2).flatten(2), states)
