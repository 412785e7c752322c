"""Training of a MoE-LoRA plugin on a frozen base: experts and head together, cross-entropy, Adam with cosine decay.

Contract: cells in tokens in, a plugin out; the base does not change. Deviations from scAgent: those of
``cellray.models.moe_lora``, and the reserved classes of the head take no part (their logits are left out). With
``below`` the loss knows which classes are kinds of others. Datasets, registries and gates are not its business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.models.moe_lora import MoELoRAConfig, Plugin
from cellray.models.packed import Segments
from cellray.models.scgpt import Adapter, ScGPT, packed_inputs
from cellray.tokenize.cells import Cells
from cellray.train.corpus import draws
from cellray.train.loop import Alone, OnRay, Plan, fit, shuffled
from cellray.train.losses import hierarchical
from cellray.train.thinned import CLS_VALUE, thinned

_PREDICTED = 256


@dataclass(frozen=True)
class PluginSettings:
    """How a plugin is made; sizes as in ``MoELoRAConfig``, ``patience`` in epochs of the validation accuracy.

    ``drops`` are shares of a cell's genes that are left out while training; ``average_decay`` as in ``Plan``.
    """

    n_experts: int = 5
    rank: int = 8
    alpha: float = 8.0
    n_classes: int = 200
    epochs: int = 8
    patience: int = 3
    batch_cells: int = 32
    learning_rate: float = 5e-4
    drops: tuple[float, ...] = (0.15, 0.4, 0.6)
    average_decay: float = 0.98
    seed: int = 0

    @property
    def plan(self) -> Plan:
        """How long and how fast."""
        return Plan(self.epochs, self.seed, patience=self.patience, average_decay=self.average_decay)


@dataclass(frozen=True)
class PluginInput:
    """What every worker needs: a base, cells to learn from and to stop by, and the classes in their order.

    ``below`` (classes, classes) is whether the column's class is the row's or a kind of it; None: plain cross-entropy.
    """

    base: ScGPT
    training: Cells
    validation: Cells
    classes: Sequence[str]
    settings: PluginSettings
    below: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """Packed cells and the number of each one's class."""

    ids: Tensor
    values: Tensor
    cells: Segments
    target: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return it on a device."""
        ids, values, target = (one.to(device) for one in (self.ids, self.values, self.target))
        return Batch(ids, values, self.cells.to(device), target)


def training_batches(
    base: ScGPT, cells: Cells, number: dict[str, int], settings: PluginSettings, epoch: int, rank: int, world: int
) -> list[Batch]:
    """Return a worker's batches of an epoch: cells shuffled, with genes left out."""
    rng = np.random.default_rng([settings.seed, epoch, rank, 1])
    found = []
    for rows in shuffled(len(cells), settings.batch_cells, settings.seed, epoch, rank, world):
        ids, values, cell = thinned(base.config, (cells.tokens, cells.bins, cells.offsets), rows, rng, settings.drops)
        segments = Segments.of(np.bincount(cell, minlength=len(rows)).tolist())
        target = torch.tensor([number.get(label, -1) for label in cells.labels[rows].tolist()])
        found.append(Batch(torch.from_numpy(ids), torch.from_numpy(values), segments, target))
    return found


def states_of(base: ScGPT, cells: Cells, adapter: Adapter | None) -> Tensor:
    """Return the (n, hidden) CLS states of all cells, on the base's device."""
    device = base.device
    found = [torch.empty(0, base.config.hidden_size, device=device)]
    with torch.inference_mode():
        for start in range(0, len(cells), _PREDICTED):
            rows = np.arange(start, min(start + _PREDICTED, len(cells)))
            ids, values, lengths = packed_inputs(base.config, cells.tokens, cells.bins, cells.offsets, rows, CLS_VALUE)
            packed = (
                torch.from_numpy(ids).to(device),
                torch.from_numpy(values).to(device),
                Segments.of(lengths, device),
            )
            found.append(base.encode_cells(*packed, adapter))
    return torch.cat(found)


def predict(base: ScGPT, plugin: Plugin, cells: Cells) -> np.ndarray:
    """Return the (n, used) class probabilities of all cells."""
    states = states_of(base, cells, plugin)
    with torch.inference_mode():
        return plugin.classify(states).cpu().numpy()


def called(base: ScGPT, plugin: Plugin, cells: Cells, classes: Sequence[str]) -> np.ndarray:
    """Return each cell's most likely class, (n,) str."""
    return np.array(classes, dtype=str)[predict(base, plugin, cells).argmax(1)]


def right(base: ScGPT, plugin: Plugin, cells: Cells, classes: Sequence[str]) -> np.ndarray:
    """Return (n,) bool: whether a cell's most likely class is its label."""
    return called(base, plugin, cells, classes) == cells.labels


def split(cells: Cells, hold_out: float, *, by_group: bool) -> tuple[np.ndarray, np.ndarray]:
    """Choose cells that are not trained on: half of ``hold_out`` to stop by, half to be judged by; two (n,) bool.

    Chosen by hash of the name, or, ``by_group``, whole groups in the order of their hash.
    """
    if not by_group:
        drawn = draws(cells.names.tolist())
    else:
        names, group, sizes = np.unique(cells.groups, return_inverse=True, return_counts=True)
        order = np.argsort(draws(names.tolist()), kind="stable")
        before = np.empty(len(names))
        before[order] = (np.cumsum(sizes[order]) - sizes[order]) / len(cells)
        drawn = before[group]
    return (drawn >= hold_out / 2) & (drawn < hold_out), drawn < hold_out / 2


class PluginTrainer(nn.Module):
    """The loss of a plugin on a frozen base, as one module so that gradients are averaged over workers."""

    def __init__(self, base: ScGPT, plugin: Plugin, below: np.ndarray | None = None) -> None:
        super().__init__()
        self.base, self.plugin = base.requires_grad_(requires_grad=False), plugin
        self.below = None if below is None else torch.from_numpy(below)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and it again by name."""
        batch = batch.to(self.base.device)
        logits = self.plugin.logits(self.base.encode_cells(batch.ids, batch.values, batch.cells, self.plugin))
        loss = (
            F.cross_entropy(logits, batch.target)
            if self.below is None
            else hierarchical(logits, batch.target, self.below.to(logits.device))
        )
        return loss, {"loss": loss.detach()}


def new_plugin(given: PluginInput) -> Plugin:
    """Return an untrained plugin."""
    settings, sizes = given.settings, given.base.config
    config = MoELoRAConfig(
        sizes.hidden_size,
        sizes.num_layers,
        settings.n_experts,
        settings.rank,
        settings.alpha,
        settings.n_classes,
    )
    return Plugin(config, len(given.classes))


def train(given: PluginInput, workers: Alone | None = None) -> tuple[Plugin, dict[str, Any]]:
    """Train a plugin; returns it with the weights of its best epoch, and what the loop says of itself.

    Base and plugin are on the workers' device afterwards.
    """
    workers = workers or Alone()
    settings, base = given.settings, given.base
    torch.manual_seed(settings.seed)
    plugin = new_plugin(given)
    number = {name: index for index, name in enumerate(given.classes)}
    facts = fit(
        PluginTrainer(base, plugin, given.below).to(workers.device),
        plugin,
        torch.optim.Adam(plugin.parameters(), settings.learning_rate),
        lambda *where: training_batches(base, given.training, number, settings, *where),
        settings.plan,
        validate=lambda: float(np.mean(right(base, plugin, given.validation, given.classes))),
        workers=workers,
    )
    return plugin, facts


def train_worker(loop: dict[str, PluginInput]) -> None:
    """Run ``train`` on one Ray Train worker."""
    train(loop["given"], OnRay())
