"""Training cells as ranked gene tokens, and the batches drawn from them.

Contract: batch ``step`` of worker ``rank`` is a pure function of (seed, rank, step), so a resumed run sees what an
undisturbed one would have seen. Held-out cells are in the corpus but never in a training batch. It reads no counts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellray.train.config import HoldOut, PretrainConfig
from cellray.train.programs import Programs
from cellray.train.terms import Terms

PAD, MASK, FIRST_GENE = 0, 1, 2
_FEWEST_GENES = 5
_ADMIXED_CELLS = 0.5


@dataclass(frozen=True)
class Corpus:
    """Ragged uint16 tokens ``flat[offsets[i]:offsets[i + 1]]``; (n,) label, dataset number and held-out flag."""

    flat: np.ndarray
    offsets: np.ndarray
    label: np.ndarray
    dataset: np.ndarray
    held_out: np.ndarray

    def save(self, path: Path) -> None:
        """Write as ``.npz`` without pickle."""
        np.savez(
            path, flat=self.flat, offsets=self.offsets, label=self.label, dataset=self.dataset, held_out=self.held_out
        )

    @classmethod
    def read(cls, path: Path) -> "Corpus":
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Attributes
    ----------
    ids
        (b, l) int64: CLS, genes, padding; some genes masked.
    masked_at, masked_genes
        (m, 2) positions and (m,) true tokens of masked genes.
    texts
        (t,) distinct terms.
    target
        (b,) column of ``texts`` that is each cell's text.
    relations
        (b, t) int8 of ``Terms.relations``.
    """

    ids: np.ndarray
    masked_at: np.ndarray
    masked_genes: np.ndarray
    texts: np.ndarray
    target: np.ndarray
    relations: np.ndarray


def held_out(rule: HoldOut, cell_ids: Sequence[str], groups: Sequence[str] | None) -> np.ndarray:
    """Return the (n,) flag of cells that ``rule`` keeps from training; it depends on a cell's name and group alone."""
    drawn = draws(cell_ids) < rule.fraction
    return drawn | np.isin(np.asarray(groups, dtype=object).astype(str), rule.values) if rule.values else drawn


def draws(names: Sequence[str]) -> np.ndarray:
    """Return (n,) numbers in [0, 1) that depend on each name alone: what splits are made of."""
    return np.array([int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32 for name in names])


class Sampler:
    """Draws class-balanced batches with foreign genes, switched programs, gene panels, ancestor names and masked genes.

    Parameters
    ----------
    corpus, terms, config
        What to draw from and how; see ``PretrainConfig``.
    cls_token
        Id put in front of every cell; also the size of the gene vocabulary.
    programs
        Sets of genes that go together.
    """

    def __init__(
        self, corpus: Corpus, terms: Terms, config: PretrainConfig, cls_token: int, programs: Programs
    ) -> None:
        self.corpus, self.terms, self.config, self.cls_token = corpus, terms, config, cls_token
        self.programs = programs
        usable = np.flatnonzero(~corpus.held_out & (corpus.label >= 0))
        groups = corpus.label[usable] * (int(corpus.dataset.max()) + 1) + corpus.dataset[usable]
        _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        weight = sizes[group] ** (config.class_exponent - 1.0)
        self.usable, self.probability = usable, weight / weight.sum()

    def batch(self, rank: int, step: int) -> Batch:
        """Draw the batch of worker ``rank`` at ``step``."""
        config = self.config
        rng = np.random.default_rng([config.seed, rank, step])
        cells = rng.choice(self.usable, config.batch_cells, p=self.probability)
        labels = self.corpus.label[cells]
        chosen = np.array([self._name(rng, label) for label in labels])
        texts, target = np.unique(np.concatenate([chosen, np.arange(self.terms.n_labels)]), return_inverse=True)
        ids = self._ids(
            [self._panel(rng, self._switched(rng, self._admixed(rng, self._genes(cell)))) for cell in cells]
        )
        masked_at = self._choose_masked(rng, ids)
        genes = ids[masked_at[:, 0], masked_at[:, 1]]
        ids[masked_at[:, 0], masked_at[:, 1]] = MASK
        relations = self.terms.relations(labels, chosen, texts)
        return Batch(ids, masked_at, genes, texts, target[: len(cells)], relations)

    def _name(self, rng: np.random.Generator, label: int) -> int:
        parents = self.terms.parents[label]
        if len(parents) and rng.random() < self.config.ancestor_share:
            return int(rng.choice(parents))
        return int(label)

    def _genes(self, cell: int) -> np.ndarray:
        return self.corpus.flat[self.corpus.offsets[cell] : self.corpus.offsets[cell + 1]]

    def _admixed(self, rng: np.random.Generator, genes: np.ndarray) -> np.ndarray:
        """Put some genes of another cell at random ranks of every second cell, as ambient RNA does."""
        if rng.random() >= _ADMIXED_CELLS:
            return genes
        other = self._genes(rng.choice(self.usable))
        foreign = other[rng.random(len(other)) < rng.random() * self.config.admixture]
        foreign = np.setdiff1d(foreign, genes)
        return np.insert(genes, rng.integers(0, len(genes) + 1, len(foreign)), foreign)

    def _switched(self, rng: np.random.Generator, genes: np.ndarray) -> np.ndarray:
        """Switch a gene program off or on, or leave the cell as it is."""
        draw = rng.random()
        if draw < self.config.programs_off:
            return self.programs.off(rng, genes)
        if draw < self.config.programs_off + self.config.programs_on:
            return self.programs.on(rng, genes, int(rng.choice(self._genes(rng.choice(self.usable)))))
        return genes

    def _panel(self, rng: np.random.Generator, genes: np.ndarray) -> np.ndarray:
        if rng.random() < self.config.panel_share:
            share = np.exp(rng.uniform(np.log(self.config.smallest_panel), 0))
            kept = genes[(rng.random(self.cls_token) < share)[genes]]
            genes = kept if len(kept) >= _FEWEST_GENES else genes
        return genes[: self.config.cell.max_tokens - 1]

    def _ids(self, cells: list[np.ndarray]) -> np.ndarray:
        ids = np.full((len(cells), 1 + max(map(len, cells))), PAD, np.int64)
        ids[:, 0] = self.cls_token
        for row, genes in enumerate(cells):
            ids[row, 1 : len(genes) + 1] = genes
        return ids

    def _choose_masked(self, rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
        """Pick gene positions in every second cell, at most ``masked_per_batch``."""
        candidates = (rng.random(ids.shape) < self.config.mask_share) & (ids >= FIRST_GENE) & (ids != self.cls_token)
        candidates[1::2] = False
        at = np.argwhere(candidates)
        return rng.permutation(at)[: self.config.masked_per_batch]
