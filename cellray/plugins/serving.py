"""What a serving replica does with tokenised cells: several requests and plugins in one forward pass.

Contract: plain data in and out, so that it can travel between processes. It knows neither HTTP nor Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch

from cellray.errors import PluginError, boundary
from cellray.models.moe_lora import Plugin
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.plugins.registry import Registry
from cellray.plugins.router import PluginEncoder
from cellray.tokenize.cells import Cells


@dataclass(frozen=True)
class TokenCells:
    """Cells as ragged tokens and bins, without names."""

    tokens: np.ndarray
    bins: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, shard: pa.Table) -> Self:
        """Take them from a token shard."""
        none = np.full(len(shard), "")
        cells = Cells.of_columns(none, none, none, shard)
        return cls(cells.tokens, cells.bins, cells.offsets)

    def take(self, rows: np.ndarray) -> Self:
        """Return cells ``rows``, in that order."""
        none = np.full(len(self.offsets) - 1, "")
        cells = Cells(none, none, none, self.tokens, self.bins, self.offsets).take(rows)
        return type(self)(cells.tokens, cells.bins, cells.offsets)


@dataclass(frozen=True)
class Labelled:
    """Labels of cells: (n,) names, ontology ids, scores, and whether a score is below its class's threshold."""

    labels: list[str]
    term_ids: list[str]
    scores: np.ndarray
    doubtful: np.ndarray

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict a cell."""
        columns = (self.labels, self.term_ids, self.scores.tolist(), self.doubtful.tolist())
        return [
            {"label": label, "ontology_id": term or None, "score": score, "doubtful": doubtful}
            for label, term, score, doubtful in zip(*columns, strict=True)
        ]


@dataclass(frozen=True)
class Loaded:
    """A plugin ready to compute, with the names and thresholds of its classes."""

    plugin: Plugin
    names: list[str]
    term_ids: list[str]
    thresholds: np.ndarray

    @classmethod
    def read(
        cls, registry: Registry, base: ScGPTCheckpoint, tissue: str, digest: str, encoder: PluginEncoder | None = None
    ) -> Self:
        """Read a version, which must belong to ``base`` or it is a ``PluginError``, to where ``encoder`` computes."""
        with boundary(PluginError, f"registry {registry.uri}", ValueError):
            found = registry.get(tissue, digest).on(base)
        terms = [label["term_id"] for label in found.labels]
        plugin = found.build(encoder.device, encoder.weights) if encoder else found.build()
        return cls(plugin, found.names, terms, np.array(found.thresholds))


def label_cells(encoder: PluginEncoder, requests: Sequence[tuple[Loaded, TokenCells]]) -> list[Labelled]:
    """Label the cells of all requests in batches of the encoder's token budget; one result a request."""
    plugins = list({id(loaded.plugin): loaded for loaded, _ in requests}.values())
    number = {id(loaded.plugin): at for at, loaded in enumerate(plugins)}
    sizes = [len(cells.offsets) - 1 for _, cells in requests]
    lengths = np.concatenate([np.diff(cells.offsets) for _, cells in requests])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    columns = {
        "tokens": np.concatenate([cells.tokens for _, cells in requests]),
        "bins": np.concatenate([cells.bins for _, cells in requests]),
    }
    which = np.repeat([number[id(loaded.plugin)] for loaded, _ in requests], sizes)
    winner, score = np.zeros(len(which), np.int64), np.zeros(len(which), np.float32)
    with torch.inference_mode():
        for batch in encoder.batches(lengths):
            states = encoder.states(columns, offsets, batch, which[batch], [loaded.plugin for loaded in plugins])
            for at, loaded in enumerate(plugins):
                own = np.flatnonzero(which[batch] == at)
                if len(own):
                    found = loaded.plugin.classify(states[torch.from_numpy(own)])
                    top = found.max(dim=1)
                    winner[batch[own]], score[batch[own]] = top.indices.cpu().numpy(), top.values.cpu().numpy()
    results, first = [], 0
    for (loaded, _), size in zip(requests, sizes, strict=True):
        own_class, own_score = winner[first : first + size], score[first : first + size]
        results.append(
            Labelled(
                [loaded.names[one] for one in own_class],
                [loaded.term_ids[one] for one in own_class],
                own_score,
                own_score < loaded.thresholds[own_class],
            )
        )
        first += size
    return results
