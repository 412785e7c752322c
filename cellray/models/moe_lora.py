"""MoE-LoRA plugins of scGPT: low-rank experts on the queries and values of every layer, and a head of their own.

Contract: a ``Plugin`` is an ``Adapter`` of ``cellray.models.scgpt``; the base stays as it is, shared by any number
of plugins. ``Mixed`` lets every cell of a packed batch use another plugin, or none, which then computes what the base
computes. It knows neither files nor labels.

The layer is that of scAgent (Mi et al. 2025, arXiv 2504.04698, and its repository)::

    delta(x) = alpha / r * sum_i softmax(x W)_i * B_i A_i x        for queries and for values, experts i

Deviations:

1. ``alpha`` is 8 by default, so that alpha / r is 1; the repository's 1 learns several times slower.
2. There is no BatchNorm on the embeddings: it would make a cell's numbers depend on statistics of other cells.
3. The head belongs to the plugin and is trained with it; the repository has one for all tissues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from cellray.models.packed import Segments, exact
from cellray.models.scgpt import ClassHead
from cellray.models.state import State

_QUERIES, _VALUES = 0, 1


@dataclass(frozen=True)
class MoELoRAConfig:
    """Sizes of a plugin; ``hidden_size`` and ``num_layers`` are its base's, ``n_classes`` counts reserved ones too."""

    hidden_size: int
    num_layers: int
    n_experts: int = 5
    rank: int = 8
    alpha: float = 8.0
    n_classes: int = 200
    class_layers: int = 3


class MoELoRA(nn.Module):
    """The experts of one layer: those of queries in the first halves of ``lora_A`` and ``lora_B``, of values second."""

    def __init__(self, config: MoELoRAConfig) -> None:
        super().__init__()
        width, n, rank = config.hidden_size, config.n_experts, config.rank
        self.lora_A = nn.Parameter(torch.empty(n, 2 * rank, width))
        self.lora_B = nn.Parameter(torch.zeros(n, 2 * width, rank))
        self.gate = nn.Parameter(torch.empty(n, width))
        self.scale, self.rank = config.alpha / rank, rank
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)
        nn.init.kaiming_uniform_(self.gate, a=5**0.5)

    def forward(self, states: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what is added to queries (of the rows ``read``, or all) and values; see ``Adapter``."""
        gates = torch.softmax((states @ self.gate.T).float(), dim=-1).to(states.dtype)
        asked = (states, gates) if read is None else (states[read], gates[read])
        return self._delta(_QUERIES, *asked), self._delta(_VALUES, states, gates)

    def _delta(self, part: int, states: Tensor, gates: Tensor) -> Tensor:
        down, up = self.factors(part)
        inner = states @ down.flatten(0, 1).T
        inner = inner.unflatten(1, (*gates.shape[1:], self.rank)) * gates[:, :, None]
        return self.scale * (inner.flatten(1) @ up.transpose(1, 2).flatten(0, 1))

    def factors(self, part: int) -> tuple[Tensor, Tensor]:
        """Return A (n, rank, width) and B (n, width, rank) of queries (0) or values (1)."""
        width = self.lora_A.shape[2]
        rows, columns = slice(part * self.rank, (part + 1) * self.rank), slice(part * width, (part + 1) * width)
        return self.lora_A[:, rows], self.lora_B[:, columns]


class Plugin(nn.Module):
    """Experts for every layer of a base, and a head whose first ``used`` classes have names; the rest is reserved."""

    LAST = ("cls_decoder",)

    def __init__(self, config: MoELoRAConfig, used: int) -> None:
        super().__init__()
        self.config, self.used = config, used
        self.layers = nn.ModuleList(MoELoRA(config) for _ in range(config.num_layers))
        self.cls_decoder = ClassHead(config.hidden_size, config.class_layers, config.n_classes)

    def forward(self, layer: int, states: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adapt a layer; see ``Adapter``."""
        return self.layers[layer](states, read)

    def logits(self, states: Tensor) -> Tensor:
        """Class logits (n, used) of (n, hidden) CLS states; reserved classes are left out."""
        return self.cls_decoder(states)[:, : self.used]

    def classify(self, states: Tensor) -> Tensor:
        """Class probabilities (n, used) of CLS states."""
        with exact(states):
            return torch.softmax(self.logits(states.float()), dim=-1)


class Mixed:
    """An adapter for cells of several plugins: ``parts`` are (plugin or None, number of cells), in the cells' order."""

    def __init__(self, parts: Sequence[tuple[Plugin | None, int]], cells: Segments) -> None:
        self._parts: list[tuple[Plugin | None, slice, slice]] = []
        first = row = 0
        for plugin, n in parts:
            rows = sum(cells.lengths[first : first + n])
            self._parts.append((plugin, slice(row, row + rows), slice(first, first + n)))
            first, row = first + n, row + rows

    def __call__(self, layer: int, states: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adapt a layer; see ``Adapter``."""
        queries = torch.zeros_like(states if read is None else states[read])
        values = torch.zeros_like(states)
        for plugin, rows, cells in self._parts:
            if plugin is not None and rows.stop > rows.start:
                asked = None if read is None else read[cells] - rows.start
                more = plugin(layer, states[rows], asked)
                queries[rows if read is None else cells], values[rows] = more
        return queries, values


def merged(base: State, plugin: Plugin) -> State:
    """Return the weights of ``base`` with the plugin's experts added to its projections.

    Raises
    ------
    ValueError
        If a gate depends on its input: no one matrix then computes what the plugin does.
    """
    state = dict(base)
    for number, module in enumerate(plugin.layers):
        layer = cast("MoELoRA", module)
        spread = float((layer.gate - layer.gate[0]).detach().abs().max())
        if spread > 0:
            msg = (
                f"layer {number}: the gate depends on its input (its rows differ by up to {spread:.2g}); not mergeable"
            )
            raise ValueError(msg)
        name = f"transformer_encoder.layers.{number}.self_attn.in_proj.weight"
        weight, width = state[name].float().clone(), layer.lora_A.shape[2]
        for part, rows in ((_QUERIES, slice(0, width)), (_VALUES, slice(2 * width, 3 * width))):
            down, up = layer.factors(part)
            weight[rows] += layer.scale * (up @ down).mean(0).detach()
        state[name] = weight
    return state
