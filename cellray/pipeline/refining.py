"""Refinement of one dataset inside a run: scores from its parts, counts from its file, settings from the order.

Contract: cells without scores (rejected ones) take no part; the result has one row a scored cell, in row order. Counts
are read block by block, as often as the refinement passes over them. What refinement does is in ``cellray.refine``.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from scipy import sparse

from cellray import schema
from cellray.errors import RefineError, boundary
from cellray.ingest import DatasetPlan, read_coordinates, read_graph, read_obs_text, read_rows
from cellray.labels.candidates import Label
from cellray.manifest import ShardRecord
from cellray.pipeline.given import known_labels
from cellray.pipeline.order import WorkOrder
from cellray.refine.grit import Given, Options, Refinement, refine


def refine_dataset(
    order: WorkOrder, plan: DatasetPlan, shards: Sequence[ShardRecord], part_uris: Sequence[str], scored: np.ndarray
) -> Refinement:
    """Refine the scores of the cells ``scored`` (ascending rows) of one dataset.

    Raises
    ------
    RefineError
        If the refinement fails; other dataset errors if something it needs cannot be read.
    """
    p0 = encoder_scores(part_uris, scored, len(order.scoring.labels))

    def blocks() -> Iterator[sparse.csr_matrix]:
        for shard in shards:
            first, last = np.searchsorted(scored, [shard.start, shard.stop])
            if first < last:
                yield read_rows(plan, shard.start, shard.stop).counts[scored[first:last] - shard.start]

    given = given_entries(order, plan, scored)
    with boundary(RefineError, f"dataset {plan.source.dataset_id!r}"):
        return refine(p0, blocks, options(order), given)


def options(order: WorkOrder) -> Options:
    """Return the refinement's own form of the settings."""
    chosen = order.refining
    if chosen.refine == "none":
        msg = "refinement is off"
        raise ValueError(msg)
    weight = np.inf if chosen.anchor_weight is None else chosen.anchor_weight
    return Options(method=chosen.refine, lam=chosen.lam, k=chosen.k, n_pcs=chosen.n_pcs, anchor_weight=weight)


def encoder_scores(part_uris: Sequence[str], scored: np.ndarray, n_labels: int) -> np.ndarray:
    """Return the encoder's probabilities of the cells ``scored``, (n, n_labels) float32, read part by part."""
    from cellray.write import read_part

    p0, at = np.empty((len(scored), n_labels), np.float32), 0
    for uri in part_uris:
        part = read_part(uri, [schema.PROBABILITIES])
        found = pc.list_flatten(part[schema.PROBABILITIES]).to_numpy().reshape(-1, n_labels)
        p0[at : at + len(found)] = found
        at += len(found)
    return p0


def given_entries(order: WorkOrder, plan: DatasetPlan, scored: np.ndarray) -> Given:
    """Return what the dataset brings along for its cells ``scored``, as the settings name it."""
    chosen, source = order.refining, plan.source
    entries: dict[str, Any] = {}
    if chosen.use_rep is not None:
        entries["points"] = read_coordinates(source, chosen.use_rep)[scored]
    if chosen.use_graph is not None:
        entries["graph"] = sparse.csr_matrix(read_graph(source, chosen.use_graph)[scored][:, scored])
    if chosen.graph_batch_key is not None:
        entries["batches"] = np.unique(read_obs_text(source, chosen.graph_batch_key), return_inverse=True)[1][scored]
    if chosen.anchor_key is not None:
        labels = [Label(*named, "") for named in zip(order.scoring.labels, order.label_ids, strict=True)]
        known = read_obs_text(source, chosen.anchor_key)
        entries["anchors"] = known_labels(source, chosen.anchor_key, known, labels)[scored]
    return Given(**entries)
