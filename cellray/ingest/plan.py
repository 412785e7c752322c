"""What will be read from a dataset and why, decided once and then followed by every worker.

Contract: ``inspect_dataset`` opens a dataset, checks its structure, finds the raw counts and the gene column, and
returns a small picklable ``DatasetPlan``. It looks at a sample of the values and at all names, never at all values:
cells are judged as they are read.

- Raw counts: ``layers/counts``, then ``raw.X``, then ``X``; the first whose sampled values are integers (99 % of the
  positive finite ones) wins.
- Genes: of the index and all text columns of the matching gene table, the one that reaches most of the model's genes;
  of equals, one with Ensembl ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellray import storage
from cellray.errors import CountsError, GeneError, MissingKeyError
from cellray.ingest import tree
from cellray.ingest.genes import GeneIndex, GeneMatch
from cellray.ingest.matrix import Matrix
from cellray.ingest.names import find_renamed
from cellray.ingest.reader import COUNTS, LAYERS, RAW, Reader, X, open_dataset
from cellray.ingest.sources import DatasetSource

MIN_INTEGERS = 0.99
MIN_OVERLAP = 0.10
GOOD_OVERLAP = 0.50

_SAID = {COUNTS: "layers['counts']"}


@dataclass(frozen=True)
class Staged:
    """Where the row-readable copy of a matrix lies: files of ``shard_cells`` cells, ``key`` in their names."""

    folder: str
    shard_cells: int
    key: str


@dataclass(frozen=True)
class DatasetPlan:
    """How to read one dataset.

    Attributes
    ----------
    source, content_hash
        What is read, and the hash of its content.
    n_cells, n_columns
        Rows and gene columns of the chosen matrix.
    layer, layer_reason
        The chosen matrix (``X``, ``raw.X`` or ``layers/<name>``) and why, in words.
    gene_key, gene_kind, slots
        The chosen gene column (``index`` or its name), what it holds, and int32[n_columns] the model's slot of each
        column, -1 for none.
    n_genes_known, overlap
        Distinct model genes found, absolutely and as a share of what could have been found.
    renamed
        Sorted uint64 hashes of the cell names that must be made unique.
    matrix, staged
        Where the values lie, in the file and in the row-readable copy if there is one.
    integers
        Whether a cell with other values is bad.
    """

    source: DatasetSource
    content_hash: str
    n_cells: int
    n_columns: int
    layer: str
    layer_reason: str
    gene_key: str
    gene_kind: str
    slots: np.ndarray
    n_genes_known: int
    overlap: float
    renamed: np.ndarray
    warnings: tuple[str, ...]
    matrix: Matrix
    staged: Staged | None = None
    integers: bool = True

    @property
    def layout(self) -> str:
        """How the values are read: ``csr``, ``csc``, ``dense``, ``mtx``, or ``staged`` from the row-readable copy."""
        return self.matrix.layout if self.staged is None else "staged"

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, the same before and after staging."""
        return {
            "dataset_id": self.source.dataset_id,
            "source": self.source.uri,
            "kind": self.source.kind,
            "content_hash": self.content_hash,
            "n_cells": self.n_cells,
            "n_columns": self.n_columns,
            "layer": self.layer,
            "layer_reason": self.layer_reason,
            "layout": self.matrix.layout,
            "gene_key": self.gene_key,
            "gene_kind": self.gene_kind,
            "n_genes_known": self.n_genes_known,
            "overlap": round(self.overlap, 4),
            "n_renamed": len(self.renamed),
            "warnings": list(self.warnings),
        }


def inspect_dataset(
    source: DatasetSource,
    genes: GeneIndex,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    integers: bool = True,
) -> DatasetPlan:
    """Decide how to read ``source`` for a model with ``genes``.

    Parameters
    ----------
    layer
        The raw counts: ``X``, ``raw`` or ``raw.X``, a layer's name or ``layers/<name>``; None to find them.
    gene_key
        The gene column: ``index`` or a column of the gene table; None to find it.
    integers
        Whether values must be raw counts. Where only their order in a cell matters, a named ``layer`` may hold others.

    Raises
    ------
    ReadError
        If the file is damaged or not what its name says.
    CountsError
        If there are no raw counts, or ``layer`` holds none.
    MissingKeyError
        If ``layer`` or ``gene_key`` is not in the file.
    GeneError
        If fewer than 10 % of the genes that could be known are.
    """
    uri = source.uri
    with tree.reading(uri):
        content_hash = storage.content_hash(uri)
    with open_dataset(source) as reader:
        name, matrix, reason = _choose_layer(reader, uri, layer, integers=integers)
        key, match = _choose_genes(reader, uri, name, genes, gene_key)
        overlap = match.n_known / max(1, min(matrix.n_columns, genes.n_genes))
        renamed = find_renamed(reader)
    found = f"{match.n_known:,} of the model's {genes.n_genes:,} genes are among its {matrix.n_columns:,} columns"
    if overlap < MIN_OVERLAP or match.n_known == 0:
        how = f"gene key {key!r}, read as {match.kind}"
        msg = f"{uri}: only {found} ({how}); pass --gene-key with the column of Ensembl ids or symbols"
        raise GeneError(msg)
    warnings = (f"{uri}: {found} ({overlap:.0%} of what could be)",) if overlap < GOOD_OVERLAP else ()
    return DatasetPlan(
        source=source,
        content_hash=content_hash,
        n_cells=matrix.n_cells,
        n_columns=matrix.n_columns,
        layer=name,
        layer_reason=reason,
        gene_key=key,
        gene_kind=match.kind,
        slots=match.slots,
        n_genes_known=match.n_known,
        overlap=overlap,
        renamed=renamed,
        warnings=warnings,
        matrix=matrix,
        integers=integers,
    )


def _choose_layer(reader: Reader, uri: str, wanted: str | None, *, integers: bool) -> tuple[str, Matrix, str]:
    present = reader.layers()
    if wanted is not None:
        name = next((name for name in _spellings(wanted) if name in present), None)
        if name is None:
            msg = f"{uri}: no layer {wanted!r} (has: {', '.join(present) or 'none'}); pass one of these to --layer"
            raise MissingKeyError(msg)
        matrix = reader.matrix(name)
        if not integers:
            return name, matrix, f"{name}: as asked; values taken as they are"
        share, n_sampled = _integer_share(reader.sample(matrix))
        if share < MIN_INTEGERS:
            has = ", ".join(present)
            msg = f"{uri}: layer {wanted!r} {_verdict(share, n_sampled)}; pass --layer with raw counts (has: {has})"
            raise CountsError(msg)
        return name, matrix, f"{name}: as asked; {_evidence(share, n_sampled)}"
    failed = []
    for name in (COUNTS, RAW, X):
        if name in present:
            matrix = reader.matrix(name)
            share, n_sampled = _integer_share(reader.sample(matrix))
            if share >= MIN_INTEGERS:
                return name, matrix, f"{name}: {_evidence(share, n_sampled)}"
            failed.append(f"{name} {_verdict(share, n_sampled)}")
        else:
            failed.append(f"no {_SAID.get(name, name)}")
    others = [name for name in present if name not in (COUNTS, RAW, X)]
    also = f" (there is also {', '.join(others)})" if others else ""
    msg = f"{uri}: no raw counts: {', '.join(reversed(failed))}{also}; pass --layer with the name of the raw counts"
    raise CountsError(msg)


def _spellings(wanted: str) -> Iterator[str]:
    yield RAW if wanted == "raw" else wanted
    yield f"{LAYERS}{wanted}"


def _integer_share(values: np.ndarray) -> tuple[float, int]:
    """Return the share of integers among the finite positive ``values`` and their number; of none the share is 0."""
    positive = values[np.isfinite(values) & (values > 0)]
    return (float(np.mean(positive == np.rint(positive))) if len(positive) else 0.0), len(positive)


def _evidence(share: float, n_sampled: int) -> str:
    return f"{100 * share:.4g} % of {n_sampled:,} sampled values are integers"


def _verdict(share: float, n_sampled: int) -> str:
    if not n_sampled:
        return "is empty"
    return f"holds {int(100 * share)} % integers (looks normalised)"


def _choose_genes(reader: Reader, uri: str, layer: str, genes: GeneIndex, wanted: str | None) -> tuple[str, GeneMatch]:
    keys = reader.gene_keys(layer)
    if wanted is not None:
        if wanted not in keys:
            msg = (
                f"{uri}: gene column {wanted!r} is not there (has: {', '.join(keys)}); pass one of these to --gene-key"
            )
            raise MissingKeyError(msg)
        keys = [wanted]
    matches = {key: genes.match(reader.gene_names(layer, key)) for key in keys}
    best = max(matches, key=lambda key: (matches[key].n_known, matches[key].kind == "ensembl"))
    return best, matches[best]
