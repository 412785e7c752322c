"""Cells to the plugins of their tissues in one pass over a mixed batch; in the pipeline an encoder like any other.

Contract: a tissue that the user names is obeyed for every cell; otherwise the tissue-assignment plugin chooses for each
cell, and a cell of a tissue without a plugin gets no label. Which versions take part is fixed in ``Chosen`` and never
looked up again. A cell's numbers do not depend on the plugins of others in its batch, beyond rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional as F

from cellray import schema
from cellray.encode.encoder import Encoder, Numbers
from cellray.errors import ModelError, PluginError, TissueError, boundary
from cellray.models.moe_lora import Mixed, Plugin
from cellray.models.packed import Segments
from cellray.models.scgpt import packed_inputs
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.plugins.registry import TISSUES, Registry, tissue_name
from cellray.plugins.version import PluginCheckpoint
from cellray.tokenize import token_batches
from cellray.train.thinned import CLS_VALUE

NONE = -1


@dataclass(frozen=True)
class Chosen:
    """Versions that take part: ``versions`` are (tissue, digest), ``assigner`` the tissue plugin's digest or None."""

    registry: str
    versions: tuple[tuple[str, str], ...]
    assigner: str | None

    @classmethod
    def of(cls, uri: str, tissue: str | None = None) -> Self:
        """Look up what is promoted: of ``tissue``, or of all tissues with the tissue-assignment plugin.

        Raises
        ------
        TissueError
            If there is no plugin of ``tissue``.
        PluginError
            If there is none at all, or none to choose by.
        """
        registry = Registry(uri)
        if tissue is not None:
            name = tissue_name(tissue)
            digest = registry.promoted(name)
            if digest is None or name == TISSUES:
                raise no_plugin(tissue, registry.tissues())
            return cls(registry.uri, ((name, digest),), None)
        there = registry.promotions()
        assigner = there.pop(TISSUES, None)
        versions = tuple(there.items())
        if not versions:
            msg = f"registry {uri!r} has no promoted plugin; train one with `python -m jobs.train_plugin`"
            raise PluginError(msg)
        if assigner is None:
            has = ", ".join(name for name, _ in versions)
            msg = f"registry {uri!r} has no tissue-assignment plugin; name the tissue (one of {has}) with --tissue"
            raise PluginError(msg)
        return cls(registry.uri, versions, assigner)

    @property
    def digests(self) -> tuple[str | None, ...]:
        """Digests of everything that takes part."""
        return (*(f"{tissue}:{digest}" for tissue, digest in self.versions), self.assigner)

    def load(self, base: ScGPTCheckpoint) -> tuple[list[PluginCheckpoint], PluginCheckpoint | None]:
        """Read the plugins in their order, and the assigner; all must belong to ``base``."""
        registry = Registry(self.registry)
        with boundary(PluginError, f"registry {self.registry}", ValueError):
            plugins = [registry.get(tissue, digest).on(base) for tissue, digest in self.versions]
            return plugins, registry.get(TISSUES, self.assigner).on(base) if self.assigner else None


def no_plugin(tissue: str, there: Sequence[str]) -> TissueError:
    """Return the error that names the tissues there are."""
    has = ", ".join(name for name in there if name != TISSUES) or "none"
    return TissueError(f"there is no plugin of tissue {tissue[:64]!r} (there is: {has})")


def scgpt_base(checkpoint: Any, name: str) -> ScGPTCheckpoint:
    """Return ``checkpoint`` if it is scGPT's; otherwise a ``ModelError``."""
    if not isinstance(checkpoint, ScGPTCheckpoint):
        msg = f"model {name!r} is {checkpoint.FORMAT!r}; plugins are of scGPT ({ScGPTCheckpoint.FORMAT!r})"
        raise ModelError(msg)
    return checkpoint


def open_plugins(checkpoint: Any, chosen: Chosen, **more: Any) -> "PluginEncoder":
    """Read the chosen versions and return their encoder; ``more`` as in ``Encoder``."""
    base = scgpt_base(checkpoint, checkpoint.name)
    return PluginEncoder(base, *chosen.load(base), **more)


def union_labels(plugins: Sequence[PluginCheckpoint]) -> list[dict[str, str]]:
    """Return the labels of all plugins, each name once, with the first ontology id that a plugin has for it."""
    found: dict[str, str] = {}
    for plugin in plugins:
        for label in plugin.labels:
            found[label["name"]] = found.get(label["name"]) or label["term_id"]
    return [{"name": name, "term_id": term, "text": ""} for name, term in found.items()]


class PluginEncoder(Encoder):
    """A base with plugins.

    Parameters
    ----------
    base
        The model folder's content.
    plugins, assigner
        In the order of which cells refer to them; the assigner's classes are tissue names.
    batch_tokens, device, dtype
        As in ``Encoder``.
    """

    def __init__(
        self,
        base: ScGPTCheckpoint,
        plugins: Sequence[PluginCheckpoint] = (),
        assigner: PluginCheckpoint | None = None,
        *,
        batch_tokens: int = 32768,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(batch_tokens=batch_tokens, device=device, dtype=dtype)
        self.model = base.build(self.device, self.weights)
        self.width = base.width
        self._plugins = [plugin.build(self.device, self.weights) for plugin in plugins]
        self._assigner = None if assigner is None else assigner.build(self.device, self.weights)
        names = {tissue_name(plugin.tissue): number for number, plugin in enumerate(plugins)}
        self._plugin_of_tissue = np.array(
            [names.get(tissue_name(name), NONE) for name in assigner.names] if assigner else [0]
        )
        column = {label["name"]: at for at, label in enumerate(union_labels(plugins))}
        self._columns = [torch.tensor([column[name] for name in plugin.names]) for plugin in plugins]
        self.n_labels = len(column)

    def cost(self, n_tokens: np.ndarray) -> np.ndarray:
        """Rows of the cell."""
        return np.minimum(n_tokens, self.model.config.max_tokens - 1) + 1

    def batches(self, n_tokens: np.ndarray) -> Iterator[np.ndarray]:
        """Yield row numbers of cells of ``n_tokens`` (without CLS), as many as the token budget takes."""
        return token_batches(self.cost(n_tokens), self.batch_tokens)

    def encode(self, columns: dict[str, np.ndarray], offsets: np.ndarray, rows: np.ndarray) -> Numbers:
        """Encode one batch; the probabilities of a cell without a plugin are 0."""
        which = self._plugin_of_tissue[self.assigned(columns, offsets, rows)]
        states = self.states(columns, offsets, rows, which, self._plugins)
        probabilities = torch.zeros(len(rows), self.n_labels, device=states.device)
        for number in np.unique(which[which != NONE]):
            own = torch.from_numpy(np.flatnonzero(which == number)).to(states.device)
            found = self._plugins[number].classify(states[own])
            probabilities[own[:, None], self._columns[number].to(states.device)] = found
        return probabilities, F.normalize(states.float(), dim=-1)

    def assigned(self, columns: dict[str, np.ndarray], offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return (m,) number of each cell's tissue among the assigner's classes; 0 everywhere without an assigner."""
        if self._assigner is None:
            return np.zeros(len(rows), np.int64)
        states = self.states(columns, offsets, rows, np.zeros(len(rows), np.int64), [self._assigner])
        return self._assigner.classify(states).argmax(dim=1).cpu().numpy()

    def states(
        self,
        columns: dict[str, np.ndarray],
        offsets: np.ndarray,
        rows: np.ndarray,
        which: np.ndarray,
        plugins: Sequence[Plugin],
    ) -> torch.Tensor:
        """Return the (m, hidden) CLS states of cells ``rows``, each with plugin ``which`` of its, or none (-1)."""
        order = np.argsort(which, kind="stable")
        ids, values, lengths = packed_inputs(
            self.model.config, columns[schema.TOKENS], columns[schema.BINS], offsets, rows[order], CLS_VALUE
        )
        cells = Segments.of(lengths, self.device)
        numbers, sizes = np.unique(which, return_counts=True)
        parts = [
            (None if number == NONE else plugins[number], int(size))
            for number, size in zip(numbers, sizes, strict=True)
        ]
        # One plugin for all needs no copies of rows.
        adapter = parts[0][0] if len(parts) == 1 else Mixed(parts, cells)
        states = self.model.encode_cells(self.on_device(ids), self.on_device(values), cells, adapter)
        back = torch.from_numpy(np.argsort(order, kind="stable")).to(states.device)
        return states[back]
