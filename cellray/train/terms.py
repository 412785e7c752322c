"""Which label texts a cell may be paired with during training, from the Cell Ontology's is-a relation.

A cell is trained against its own term and, now and then, against an ancestor of it, so that coarse label sets work
too. A text that is true of a cell without being the chosen one (an ancestor, or a descendant that it might be) is no
negative and is left out; only another *training label* that is an ancestor counts against the cell's own, finer one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TARGET, MASKED, NEGATIVE = np.int8(1), np.int8(0), np.int8(-1)


@dataclass(frozen=True)
class Terms:
    """The universe of terms: the training labels first, then their informative ancestors.

    Attributes
    ----------
    ids
        Cell Ontology ids, (u,).
    n_labels
        How many of them are training labels.
    parents
        For each label, indices of its ancestors in ``ids`` (itself left out).
    is_ancestor
        (u, u) bool: row term is a strict ancestor of column term.
    """

    ids: list[str]
    n_labels: int
    parents: list[np.ndarray]
    is_ancestor: np.ndarray

    @classmethod
    def build(cls, labels: list[str], ancestors: Callable[[str], frozenset[str]], widest: float = 0.6) -> "Terms":
        """Collect ``labels`` and those ancestors that cover at most ``widest`` of them (wider ones say too little)."""
        lines = {label: ancestors(label) for label in labels}
        shares = {
            term: sum(term in line for line in lines.values()) / len(labels) for line in lines.values() for term in line
        }
        extra = sorted(term for term, share in shares.items() if share <= widest and term not in lines)
        ids = [*labels, *extra]
        lines |= {term: ancestors(term) for term in extra}
        is_ancestor = np.array([[a != b and a in lines[b] for b in ids] for a in ids], bool).reshape(len(ids), len(ids))
        parents = [np.flatnonzero(is_ancestor[:, label]) for label in range(len(labels))]
        return cls(ids, len(labels), parents, is_ancestor)

    def relations(self, labels: np.ndarray, chosen: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Relation of each cell to each text of the batch.

        Parameters
        ----------
        labels
            (b,) label of each cell.
        chosen
            (b,) term each cell is named by: its label or an ancestor.
        texts
            (t,) distinct terms in the batch.

        Returns
        -------
        np.ndarray
            (b, t) int8 of ``TARGET`` (the chosen one), ``MASKED`` and ``NEGATIVE``.
        """
        above = self.is_ancestor[texts][:, labels].T
        below = self.is_ancestor[labels][:, texts]
        own = labels[:, None] == texts
        by_label = (chosen == labels)[:, None]
        known = (texts < self.n_labels)[None]
        masked = np.where(by_label, (above & ~known) | below, above | below | own)
        relation = np.where(masked, MASKED, NEGATIVE)
        return np.where(chosen[:, None] == texts, TARGET, relation).astype(np.int8)
