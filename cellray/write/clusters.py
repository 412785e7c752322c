"""One label for each cluster that the user gives: the most frequent one of its annotated cells.

Contract: a tie goes to the label with the higher summed score, then to the first one of the label set. ``shares`` are
of a cluster's annotated cells; a cluster without any has no label and NaN. Clusters are told apart by their text; a
cell with a missing one is in none. It makes no clusters and changes no cell's own label.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cellray import schema
from cellray.schema import Status

_MISSING = ("", "nan")


@dataclass(frozen=True)
class ClusterLabels:
    """The m clusters of n cells.

    Attributes
    ----------
    key
        The ``obs`` column that they come from.
    names
        Of the clusters, sorted.
    members
        (n,) int64 the number of each cell's cluster, -1 for none.
    cell_types
        Of each cluster, None where there is none.
    shares
        (m,) float32.
    n_cells, n_annotated
        (m,) int64.
    """

    key: str
    names: tuple[str, ...]
    members: np.ndarray
    cell_types: tuple[str | None, ...]
    shares: np.ndarray
    n_cells: np.ndarray
    n_annotated: np.ndarray

    def columns(self) -> dict[str, Any]:
        """Return a value a cell, by column: a categorical of labels, and float32 shares."""
        import pandas as pd

        labels = sorted({label for label in self.cell_types if label is not None})
        number = {label: code for code, label in enumerate(labels)}
        # The last entry is that of -1: no cluster.
        codes = np.array([*(-1 if label is None else number[label] for label in self.cell_types), -1], np.int64)
        shares = np.append(self.shares, np.float32(np.nan)).astype(np.float32)
        return {
            schema.CLUSTER_CELL_TYPE: pd.Categorical.from_codes(codes[self.members], categories=labels),
            schema.CLUSTER_SHARE: shares[self.members],
        }

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rows = zip(self.names, self.cell_types, self.shares, self.n_cells, self.n_annotated, strict=True)
        return {
            "key": self.key,
            "clusters": [
                {
                    "cluster": name,
                    schema.CELL_TYPE: label,
                    "share": None if label is None else round(float(share), 6),
                    "n_cells": int(n_cells),
                    "n_annotated": int(n_annotated),
                }
                for name, label, share, n_cells, n_annotated in rows
            ],
        }


def label_clusters(key: str, clusters: np.ndarray, tables: Iterable[pa.Table], labels: Sequence[str]) -> ClusterLabels:
    """Label the clusters of a dataset.

    Parameters
    ----------
    key
        The ``obs`` column that they come from.
    clusters
        (n,) str, the cluster of each cell.
    tables
        ``schema.annotations()`` of the n cells, part by part.
    labels
        Names of the c labels.
    """
    names, members = np.unique(clusters, return_inverse=True)
    members = members.reshape(-1).astype(np.int64)
    there = ~np.isin(names, _MISSING)
    names, members = names[there], np.where(there, np.cumsum(there) - 1, -1)[members]
    counts = np.zeros((len(names), len(labels)), np.int64)
    scores = np.zeros((len(names), len(labels)))
    known = pa.array(labels, pa.string())
    at = 0
    for table in tables:
        mine = members[at : at + len(table)]
        label = pc.fill_null(pc.index_in(table[schema.CELL_TYPE], value_set=known), -1).to_numpy()
        taken = (table[schema.STATUS].to_numpy() == Status.ANNOTATED.value) & (mine >= 0) & (label >= 0)
        score = np.nan_to_num(table[schema.SCORE].to_numpy().astype(np.float64))
        np.add.at(counts, (mine[taken], label[taken]), 1)
        np.add.at(scores, (mine[taken], label[taken]), score[taken])
        at += len(table)
    found, winners = [], np.zeros(len(names), np.int64)
    for number, (count, score) in enumerate(zip(counts, scores, strict=True)):
        winners[number] = np.lexsort((np.arange(len(labels)), -score, -count))[0]
        found.append(labels[winners[number]] if count.any() else None)
    annotated = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares = (counts[np.arange(len(names)), winners] / annotated).astype(np.float32)
    sizes = np.bincount(members[members >= 0], minlength=len(names)).astype(np.int64)
    return ClusterLabels(key, tuple(names.tolist()), members, tuple(found), shares, sizes, annotated)
