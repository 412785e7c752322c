"""The post-norm BERT blocks that LangCell's two encoders share, with the official parameter names.

Contract: a module's ``state_dict`` has the keys of the official checkpoint, nothing more or less, so that loading is
strict. Cells are packed (``cellray.models.packed``), texts are padded, and padding is invisible: a row's result does
not depend on how far its batch is padded. No pooler, no language-model head, no file access.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self, cast

from torch import Tensor, nn
from torch.nn import functional as F

from cellray.models.fused import add_norm
from cellray.models.packed import Segments, attention

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
_ALL = slice(None)


@dataclass(frozen=True)
class BertConfig:
    """Sizes of one encoder, under the names of a Hugging Face ``config.json``.

    ``token_types`` adds the token-type row to the embedding (cell encoder); ``encoder_width`` gives every layer a
    cross-attention over states of that width (text encoder).
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.0
    token_types: bool = True
    encoder_width: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """Take the known fields of a ``config.json``; a missing one or an unknown activation is a ``ValueError``."""
        known = {field.name for field in fields(cls)}
        try:
            config = cls(**{**{key: value for key, value in values.items() if key in known}, **overrides})
        except TypeError as error:
            raise ValueError(str(error).replace("BertConfig.__init__() ", "")) from error
        if config.hidden_act not in _ACTIVATIONS:
            msg = f"hidden_act {config.hidden_act!r} is not one of {sorted(_ACTIVATIONS)}"
            raise ValueError(msg)
        if config.hidden_size % config.num_attention_heads:
            msg = f"num_attention_heads {config.num_attention_heads} does not divide hidden_size {config.hidden_size}"
            raise ValueError(msg)
        return config


class Embeddings(nn.Module):
    """Word + position (+ token type 0), normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.token_types:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob
        self.token_types = config.token_types

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed (..., l) int64 ids to (..., l, hidden); positions count along the last axis unless given."""
        where = slice(ids.shape[-1]) if positions is None else positions
        states = self.word_embeddings(ids) + self.position_embeddings.weight[where]
        if self.token_types:
            states = states + self.token_type_embeddings.weight[0]
        return F.dropout(self.LayerNorm(states), self.dropout, self.training)


class Projections(nn.Module):
    """Query, key and value maps; keys and values may be of another width than queries."""

    def __init__(self, config: BertConfig, source_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(source_width, config.hidden_size)
        self.value = nn.Linear(source_width, config.hidden_size)


class Residual(nn.Module):
    """Linear map, then addition to what went in, then normalisation."""

    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, update: Tensor, states: Tensor) -> Tensor:
        """Return ``LayerNorm(states + dense(update))``."""
        return add_norm(F.dropout(self.dense(update), self.dropout, self.training), states, self.LayerNorm)


class Attention(nn.Module):
    """Multi-head attention with its output block. Key-value pairs can be computed once and used for many queries."""

    def __init__(self, config: BertConfig, source_width: int | None = None) -> None:
        super().__init__()
        self.self = Projections(config, source_width or config.hidden_size)
        self.output = Residual(config, config.hidden_size)
        self.heads = config.num_attention_heads

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project (b, l, width) states to keys and values of shape (b, heads, l, hidden / heads)."""
        return self._split(self.self.key(source)), self._split(self.self.value(source))

    def forward(self, states: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Attend from (b, q, hidden) states; ``mask`` (b, l) is true where a key may be seen, None when all may."""
        query = self._split(self.self.query(states))
        seen = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, *keys_values, attn_mask=seen)
        return self.output(mixed.transpose(1, 2).flatten(2), states)

    def packed(self, states: Tensor, source: Tensor, queries: Segments, sources: Segments) -> Tensor:
        """Attend from packed (tq, hidden) states to packed (ts, width) ones, each segment to its counterpart."""
        query, key, value = self.self.query(states), self.self.key(source), self.self.value(source)
        return self.output(attention(query, key, value, queries, sources, self.heads), states)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Self-attention, optional cross-attention, feed-forward."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        if config.encoder_width is not None:
            self.crossattention = Attention(config, config.encoder_width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = Residual(config, config.intermediate_size)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def attend(self, states: Tensor, mask: Tensor | None, rows: slice = _ALL) -> Tensor:
        """Apply the self-attention block to (b, l, hidden); ``rows`` names the positions whose result is wanted."""
        return self.attention(states[:, rows], self.attention.keys_values(states), mask)

    def feed_forward(self, states: Tensor) -> Tensor:
        """Apply the feed-forward block."""
        return self.output(self.activation(self.intermediate["dense"](states)), states)


class Bert(nn.Module):
    """Embeddings and layers, without cross-attention at work."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})

    @property
    def layers(self) -> list[Layer]:
        """The layers in order."""
        return cast("list[Layer]", self.encoder["layer"])

    def forward(self, ids: Tensor, cells: Segments, *, first_only: bool = False) -> Tensor:
        """Encode packed (t,) int64 ids to (t, hidden) states, or to (n, hidden) of the first row of every segment."""
        states = self.embeddings(ids, cells.positions)
        *layers, last = self.layers
        for layer in layers:
            states = layer.feed_forward(layer.attention.packed(states, states, cells, cells))
        if not first_only:
            return last.feed_forward(last.attention.packed(states, states, cells, cells))
        first = last.attention.packed(states[cells.first], states, cells.of_one(), cells)
        return last.feed_forward(first)
