"""scGPT: a transformer over the binned expression of a cell's genes, in evaluation mode.

Contract: the numbers of the official code (Cui et al. 2024, repository bowang-lab/scGPT, version 0.2.5) in float32. It
works on packed token ids and bin numbers, CLS first in every cell; genes are a set, their order does not matter. It
knows neither gene names, counts, labels nor files, and it neither bins nor batches. The decoders of pre-training are
not here.

Beyond the official code, with the same numbers: cells are packed instead of padded, and the last layer is computed for
the CLS rows alone, the only ones that are read. An ``Adapter`` may add to the queries and values of every layer;
without one not a bit changes.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.models.fused import add_norm
from cellray.models.packed import Segments, attention, exact, places

NORMALISATIONS = ("none", "total", "log1p")
TIES = ("draw", "upper")
GENE_CHOICES = ("draw", "weight")

_MAX_VALUE = 512.0  # the value encoder clamps above, not below: padding's -2 is a value of its own


@dataclass(frozen=True)
class ScGPTConfig:
    """Sizes, special ids and values.

    Attributes
    ----------
    vocab_size, hidden_size, num_layers, num_heads, ffn_size
        ``len(vocab)``, ``embsize``, ``nlayers``, ``nheads`` and ``d_hid`` of the official ``args.json``.
    cls_token
        Id of ``<cls>``.
    pad_value
        Value of padding, and of the CLS row when cells are embedded (upstream's ``embed_data``); when they are
        classified it is 0 (upstream's fine-tuning).
    n_bins
        Bins of expression, that of zeros included.
    max_tokens
        Longest cell, CLS included.
    zero_genes
        Whether genes without counts are tokens (value 0).
    normalise
        What counts go through before binning: ``none``, ``total`` (1e4 a cell) or ``log1p`` (of that).
    n_classes, class_layers
        Width of the classification head, 0 without one, and its linear layers.
    ties
        Which bin a value gets that coincides with several edges: one of them, drawn as upstream does, or the ``upper``.
    gene_choice
        Which genes of a cell longer than ``max_tokens`` are kept: drawn as upstream does, or those of the largest value
        times ``weight``, a column of the gene table.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    cls_token: int
    pad_value: float = -2.0
    n_bins: int = 51
    max_tokens: int = 1200
    zero_genes: bool = False
    normalise: str = "none"
    n_classes: int = 0
    class_layers: int = 3
    ties: str = "draw"
    gene_choice: str = "draw"


def packed_inputs(
    config: ScGPTConfig, tokens: np.ndarray, bins: np.ndarray, offsets: np.ndarray, rows: np.ndarray, cls_value: float
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Lay cells ``rows`` of ragged ``tokens`` and ``bins`` side by side, CLS with ``cls_value`` first in each.

    Returns
    -------
    ids, values, lengths
        (t,) int64 and float32, and the rows of each cell; cells are cut at ``config.max_tokens``.
    """
    index, lengths = places(offsets, rows, config.max_tokens)
    genes = index >= 0
    ids = np.full(len(index), config.cls_token, np.int64)
    values = np.full(len(index), cls_value, np.float32)
    ids[genes], values[genes] = tokens[index[genes]], bins[index[genes]]
    return ids, values, lengths


class Adapter(Protocol):
    """What is added to a layer's queries and values."""

    def __call__(self, layer: int, states: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the (t, hidden) input of layer number ``layer`` to (r, hidden) for queries and (t, hidden) for values.

        ``read`` names the r rows whose queries are wanted; None all of them.
        """


class GeneEncoder(nn.Module):
    """Gene ids to normalised vectors."""

    def __init__(self, config: ScGPTConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.enc_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed (t,) ids to (t, hidden)."""
        return self.enc_norm(self.embedding(ids))


class ValueEncoder(nn.Module):
    """Expression values to normalised vectors."""

    def __init__(self, config: ScGPTConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, config.hidden_size)
        self.linear2 = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, values: Tensor) -> Tensor:
        """Embed (t,) values to (t, hidden); there are few different ones, and each is computed once."""
        different, which = values.unique(return_inverse=True)
        known = different.clamp(max=_MAX_VALUE)[:, None].to(self.linear1.weight.dtype)
        return self.norm(self.linear2(F.relu(self.linear1(known))))[which]


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries, keys and values are one projection."""

    def __init__(self, config: ScGPTConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.heads = config.num_heads

    def forward(
        self, states: Tensor, cells: Segments, read: Tensor | None, more: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Mix (t, hidden) states within cells; ``read`` names the one row of every cell that is wanted, None all.

        ``more`` is added to queries and values.
        """
        width = states.shape[1]
        if read is None:
            query, key, value = self.in_proj(states).split(width, dim=1)
        else:
            weight, bias = self.in_proj.weight, self.in_proj.bias
            query = F.linear(states[read], weight[:width], bias[:width])
            key, value = F.linear(states, weight[width:], bias[width:]).split(width, dim=1)
        if more is not None:
            query, value = query + more[0], value + more[1]
        queries = cells if read is None else cells.of_one()
        return self.out_proj(attention(query, key, value, queries, cells, self.heads))


class Layer(nn.Module):
    """Post-norm transformer layer."""

    def __init__(self, config: ScGPTConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.linear1 = nn.Linear(config.hidden_size, config.ffn_size)
        self.linear2 = nn.Linear(config.ffn_size, config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        states: Tensor,
        cells: Segments,
        read: Tensor | None = None,
        more: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Apply the layer to (t, hidden) states, or to the rows ``read`` of them."""
        mixed = self.self_attn(states, cells, read, more)
        states = add_norm(mixed, states if read is None else states[read], self.norm1)
        return add_norm(self.linear2(F.relu(self.linear1(states))), states, self.norm2)


class ClassHead(nn.Module):
    """Linear, ReLU, LayerNorm, as often as there are layers but one, then a linear map to classes."""

    def __init__(self, width: int, layers: int, n_classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(layers - 1):
            blocks += [nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)]
        self._decoder = nn.ModuleList(blocks)
        self.out_layer = nn.Linear(width, n_classes)

    def features(self, states: Tensor) -> Tensor:
        """Map (b, hidden) CLS states to what the last linear map sees, (b, hidden)."""
        for block in self._decoder:
            states = block(states)
        return states

    def forward(self, states: Tensor) -> Tensor:
        """Map (b, hidden) CLS states to (b, classes) logits."""
        return self.out_layer(self.features(states))


class ScGPT(nn.Module):
    """The modules that inference needs, under their official names but for ``self_attn.in_proj``."""

    LAST = ("cls_decoder",)

    def __init__(self, config: ScGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = GeneEncoder(config)
        self.value_encoder = ValueEncoder(config)
        self.transformer_encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(Layer(config) for _ in range(config.num_layers))}
        )
        if config.n_classes:
            self.cls_decoder = ClassHead(config.hidden_size, config.class_layers, config.n_classes)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and what is encoded must be."""
        return self.encoder.embedding.weight.device

    def encode_cells(self, ids: Tensor, values: Tensor, cells: Segments, adapter: Adapter | None = None) -> Tensor:
        """Encode packed cells.

        Parameters
        ----------
        ids, values
            (t,) int64 gene ids and float32 bins, CLS first in every cell.
        cells
            The n cells.
        adapter
            Adds to queries and values.

        Returns
        -------
        Tensor
            (n, hidden) CLS states, not normalised.
        """
        states = self.encoder(ids) + self.value_encoder(values)
        layers = cast("list[Layer]", self.transformer_encoder["layers"])
        for number, layer in enumerate(layers):
            read = cells.first if number == len(layers) - 1 else None
            states = layer(states, cells, read, adapter(number, states, read) if adapter else None)
        return states

    def encode_genes(self, ids: Tensor, values: Tensor, cells: Segments) -> tuple[Tensor, Tensor]:
        """Encode packed cells as ``encode_cells`` does, without an adapter.

        Returns
        -------
        cls, states
            (n, hidden) of CLS, and (t, hidden) of all rows as the last layer takes them.
        """
        states = self.encoder(ids) + self.value_encoder(values)
        *layers, last = cast("list[Layer]", self.transformer_encoder["layers"])
        for layer in layers:
            states = layer(states, cells)
        return last(states, cells, cells.first), states

    def classify(self, states: Tensor) -> Tensor:
        """Class probabilities (n, classes) of CLS states."""
        with exact(states):
            return torch.softmax(self.cls_decoder(states.float()), dim=-1)
