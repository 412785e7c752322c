"""A class added to a plugin from tens of new cells, without losing what it knew.

Contract: the base does not change, the new class takes the first reserved row of the head, and only known cells that
travel with the plugin are replayed. Two recipes:

``imprint`` (default)
    The new row points from the mean of the replayed cells' features to that of the new ones, as long as known rows are;
    then experts and that row are trained on new and equally many replayed cells of each class, with distillation of the
    old plugin's logits on the replay.
``paper``
    scAgent's: no imprint, the whole head frozen, experts alone at a higher rate that decays by a tenth each epoch.

Deviation from scAgent in both: reserved classes are left out of the softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.models.moe_lora import Plugin
from cellray.models.scgpt import ScGPT
from cellray.tokenize.cells import Cells
from cellray.train.loop import Alone, OnRay, Plan, fit
from cellray.train.losses import distillation
from cellray.train.plugins import Batch, PluginSettings, states_of, training_batches

_TEMPERATURE = 2.0
_DECAY = 0.9


@dataclass(frozen=True)
class UpdateSettings:
    """How a class is added."""

    recipe: Literal["imprint", "paper"] = "imprint"
    epochs: int = 10
    batch_cells: int = 32
    learning_rate: float | None = None
    distilled: float = 1.0
    seed: int = 0

    @property
    def rate(self) -> float:
        """The learning rate: 2e-3, or the paper's 1e-2."""
        return self.learning_rate or (2e-3 if self.recipe == "imprint" else 1e-2)


@dataclass(frozen=True)
class UpdateInput:
    """What every worker needs: base and plugin, its classes in order, cells to replay, and cells of the new class."""

    base: ScGPT
    plugin: Plugin
    classes: Sequence[str]
    replay: Cells
    new: Cells
    label: str
    settings: UpdateSettings


class Updater(nn.Module):
    """The loss of an update."""

    def __init__(self, base: ScGPT, plugin: Plugin, teacher: Plugin | None, weight: float) -> None:
        super().__init__()
        self.base, self.plugin, self.weight = base.requires_grad_(requires_grad=False), plugin, weight
        self.teacher = None if teacher is None else teacher.requires_grad_(requires_grad=False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts."""
        batch = batch.to(self.base.device)
        logits = self.plugin.logits(self.base.encode_cells(batch.ids, batch.values, batch.cells, self.plugin))
        parts = {"classes": F.cross_entropy(logits, batch.target)}
        known = batch.target < self.plugin.used - 1
        if self.teacher is not None and bool(known.any()):
            with torch.no_grad():
                states = self.base.encode_cells(batch.ids, batch.values, batch.cells, self.teacher)
                wanted = self.teacher.logits(states)[known]
            parts["distilled"] = self.weight * distillation(logits[known, :-1], wanted, _TEMPERATURE)
        total = torch.stack(list(parts.values())).sum()
        return total, {name: value.detach() for name, value in parts.items()}


def balanced(cells: Cells, most: int, seed: int) -> Cells:
    """Draw at most ``most`` cells of each label."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(cells.labels == label))[:most] for label in np.unique(cells.labels)]
    return cells.take(np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64))


def update(given: UpdateInput, workers: Alone | None = None) -> tuple[Plugin, dict[str, float]]:
    """Return a plugin with one class more, and what the loop says of itself.

    Base and plugins are on the workers' device afterwards.
    """
    workers = workers or Alone()
    settings, base, old = given.settings, given.base.to(workers.device), given.plugin.to(workers.device)
    torch.manual_seed(settings.seed)
    replay = balanced(given.replay, len(given.new), settings.seed)
    plugin = extended(old).to(workers.device)
    imprinted = settings.recipe == "imprint"
    if imprinted:
        imprint(base, plugin, replay, given.new, [*given.classes, given.label])
    plugin.cls_decoder.requires_grad_(requires_grad=False)
    if imprinted:
        only_row(plugin)
    cells = Cells.concatenated([replay, given.new.relabelled(given.label)])
    number = {name: index for index, name in enumerate([*given.classes, given.label])}
    batches = PluginSettings(batch_cells=settings.batch_cells, seed=settings.seed)
    facts = fit(
        Updater(base, plugin, old if imprinted and settings.distilled else None, settings.distilled),
        plugin,
        torch.optim.Adam([one for one in plugin.parameters() if one.requires_grad], settings.rate),
        lambda *where: training_batches(base, cells, number, batches, *where),
        Plan(settings.epochs, settings.seed)
        if imprinted
        else Plan(settings.epochs, settings.seed, lambda share: _DECAY ** int(share * settings.epochs)),
        workers=workers,
    )
    return plugin.requires_grad_(requires_grad=True), facts


def extended(old: Plugin) -> Plugin:
    """Return a copy of the plugin that uses one class more, whose weights are those of the reserved row.

    Raises
    ------
    ValueError
        If no class is reserved any more.
    """
    if old.used >= old.config.n_classes:
        msg = f"all {old.config.n_classes} classes of the head are in use; train the plugin anew with more"
        raise ValueError(msg)
    plugin = Plugin(replace(old.config), old.used + 1)
    plugin.load_state_dict(old.state_dict())
    return plugin


def imprint(base: ScGPT, plugin: Plugin, replay: Cells, new: Cells, classes: Sequence[str]) -> None:
    """Set the row of the last class in use from features of the cells; its mean logit is that of known cells."""
    head, last = plugin.cls_decoder, plugin.used - 1
    number = {name: index for index, name in enumerate(classes)}
    with torch.no_grad():
        known, fresh = (head.features(states_of(base, cells, plugin)) for cells in (replay, new))
        away = fresh.mean(0) - known.mean(0)
        rows = head.out_layer.weight[:last]
        head.out_layer.weight[last] = away * (rows.norm(dim=1).mean() / away.norm().clamp(min=1e-12))
        own = torch.tensor([number[label] for label in replay.labels.tolist()], device=base.device)
        wanted = head.out_layer(known)[torch.arange(len(own), device=base.device), own].mean()
        head.out_layer.bias[last] = 0
        head.out_layer.bias[last] = wanted - head.out_layer(fresh)[:, last].mean()


def only_row(plugin: Plugin) -> None:
    """Train no other row of the head than that of the last class in use."""
    for parameter in (plugin.cls_decoder.out_layer.weight, plugin.cls_decoder.out_layer.bias):
        parameter.requires_grad = True
        mask = torch.zeros_like(parameter)
        mask[plugin.used - 1] = 1
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def update_worker(loop: dict[str, UpdateInput]) -> None:
    """Run ``update`` on one Ray Train worker."""
    update(loop["given"], OnRay())
