"""What will be read from a dataset and why, decided once and then followed by every worker.

Contract: ``inspect_dataset`` opens a dataset, checks its structure, finds the raw counts, the columns that are gene
expression and the column of gene names, and returns a small picklable ``DatasetPlan``. It looks at a sample of the
values and at all names, never at all values: cells are judged as they are read.

Genes: of the index and all text columns of the matching gene table, the one that reaches most of the model's genes; one
with Ensembl ids unless another reaches more than 1 % more, for symbols are also names of proteins.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cellray.errors import CountsError, GeneError, MissingKeyError
from cellray.ingest import tree
from cellray.ingest.features import expression_columns
from cellray.ingest.gene_hints import gene_hint
from cellray.ingest.genes import GeneIndex, GeneMatch
from cellray.ingest.layers import Layer, choose_layer
from cellray.ingest.matrix import Matrix
from cellray.ingest.names import find_renamed
from cellray.ingest.reader import Reader, open_dataset
from cellray.ingest.sources import DatasetSource
from cellray.ingest.values import Conversion

MIN_OVERLAP = 0.10
GOOD_OVERLAP = 0.50
FEW_GENES = 0.20
"""A dataset with a smaller share of the model's genes is warned of, however complete its own panel is."""

_AHEAD = 1.01
_TYPICAL_CELLS = 256
_LOOKED_AT_CELLS = 2000


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
        Cells, and columns of gene expression.
    layer, layer_reason
        The chosen matrix (``X``, ``raw.X`` or ``layers/<name>``) and why, in words.
    gene_key, gene_kind, slots
        The chosen gene column (``index`` or its name), what it holds, and int32[n_columns] the model's slot of each
        column, -1 for none.
    n_genes_known, overlap
        Distinct model genes found, absolutely and as a share of what could have been found.
    renamed
        Sorted uint64 hashes of the cell names that must be made unique.
    notes, warnings
        What was decided for the user, and what is likely wrong, a sentence each.
    matrix, staged
        Where the values lie, in the file and in the row-readable copy if there is one.
    kept
        int64[n_columns] the matrix's columns that are gene expression; None where all are.
    conversion
        What is done to the values.
    integers
        Whether a cell with other values than whole numbers is bad.
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
    notes: tuple[str, ...] = ()
    kept: np.ndarray | None = None
    conversion: Conversion = Conversion.NONE

    @property
    def layout(self) -> str:
        """How the values are read: ``csr``, ``csc``, ``dense``, ``mtx``, or ``staged`` from the row-readable copy."""
        return self.matrix.layout if self.staged is None else "staged"

    def of_genes(self, names: list[str]) -> list[str]:
        """Return those of a column of the file's gene table that belong to the kept columns."""
        return _of(self.kept, names)

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
            "conversion": str(self.conversion),
            "gene_key": self.gene_key,
            "gene_kind": self.gene_kind,
            "n_genes_known": self.n_genes_known,
            "overlap": round(self.overlap, 4),
            "n_renamed": len(self.renamed),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def inspect_dataset(
    source: DatasetSource,
    genes: GeneIndex,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    integers: bool = True,
    round_values: bool = False,
    allow_normalised: bool = False,
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
    round_values
        Whether the decimals of a named ``layer`` are rounded to counts.
    allow_normalised
        Whether proportions are taken where there are no counts and they cannot be computed back.

    Raises
    ------
    ReadError
        If the file is damaged or not what its name says.
    CountsError
        If there are no raw counts, or ``layer`` holds none.
    MissingKeyError
        If ``layer``, ``gene_key`` or the genome is not in the file.
    GeneError
        If fewer than 10 % of the genes that could be known are, or nothing is gene expression.
    """
    uri = source.uri
    with tree.reading(uri):
        content_hash = source.content_hash()
    try:
        with open_dataset(source) as reader:
            if not reader.n_cells:
                msg = f"{uri}: there are no cells in it"
                raise CountsError(msg)
            return _plan(
                source,
                content_hash,
                reader,
                genes,
                choose_layer(
                    reader,
                    uri,
                    layer,
                    integers=integers,
                    round_values=round_values,
                    allow_normalised=allow_normalised,
                ),
                gene_key,
            )
    except (CountsError, GeneError, MissingKeyError) as error:
        if uri in str(error):
            raise
        raise type(error)(f"{uri}: {error}") from error


def _plan(
    source: DatasetSource, content_hash: str, reader: Reader, genes: GeneIndex, chosen: Layer, gene_key: str | None
) -> DatasetPlan:
    kept, left_out = expression_columns(reader, chosen.name, source.genome)
    key, match = _choose_genes(reader, chosen.name, genes, gene_key, kept)
    n_columns = chosen.matrix.n_columns if kept is None else len(kept)
    overlap = match.n_known / max(1, min(n_columns, genes.n_genes))
    if overlap < MIN_OVERLAP or match.n_known == 0:
        names = _of(kept, reader.gene_names(chosen.name, key))
        hint = gene_hint(names, reader.cell_names(0, min(reader.n_cells, _LOOKED_AT_CELLS)), genes)
        found = f"{match.n_known:,} of the model's {genes.n_genes:,} genes are among its {n_columns:,} columns"
        msg = f"only {found} (gene key {key!r}, read as {match.kind}); {hint}"
        raise GeneError(msg)
    return DatasetPlan(
        source=source,
        content_hash=content_hash,
        n_cells=chosen.matrix.n_cells,
        n_columns=n_columns,
        layer=chosen.name,
        layer_reason=chosen.reason,
        gene_key=key,
        gene_kind=match.kind,
        slots=match.slots,
        n_genes_known=match.n_known,
        overlap=overlap,
        renamed=find_renamed(reader),
        warnings=(
            *_missing_warning(source.uri, chosen),
            *_overlap_warning(reader, source.uri, chosen, match, genes.n_genes, overlap, kept),
        ),
        matrix=chosen.matrix,
        integers=chosen.integers,
        notes=(*reader.notes(), *left_out, *chosen.notes),
        kept=kept,
        conversion=chosen.conversion,
    )


def _of(kept: np.ndarray | None, names: list[str]) -> list[str]:
    return names if kept is None else [names[column] for column in kept]


def _missing_warning(uri: str, chosen: Layer) -> tuple[str, ...]:
    if not chosen.missing:
        return ()
    return (
        f"{uri}: {max(chosen.missing, 0.001):.1%} of the sampled values of {chosen.name} are missing (NaN), as "
        'anndata.concat(join="outer") leaves them where a gene was not measured; cells with a missing value are '
        "rejected: join with fill_value=0",
    )


def _overlap_warning(
    reader: Reader,
    uri: str,
    chosen: Layer,
    match: GeneMatch,
    n_genes: int,
    overlap: float,
    kept: np.ndarray | None,
) -> tuple[str, ...]:
    """Warn of a dataset that has little of what the model needs, with the share of a typical cell's counts."""
    of_model = match.n_known / max(1, n_genes)
    if of_model >= FEW_GENES and overlap >= GOOD_OVERLAP:
        return ()
    counted = ""
    if chosen.matrix.layout in ("csr", "dense") and reader.n_cells:
        block = reader.rows(chosen.matrix, 0, min(_TYPICAL_CELLS, reader.n_cells))
        block = block if kept is None else block[:, kept]
        total = block.sum(axis=1).A1
        known = block[:, np.flatnonzero(match.slots >= 0)].sum(axis=1).A1
        usable = np.isfinite(total) & (total > 0)
        if usable.any():
            counted = f", with {np.median(known[usable] / total[usable]):.0%} of a typical cell's counts"
    return (
        f"{uri}: {match.n_known:,} of the model's {n_genes:,} genes ({of_model:.1%}) are there{counted}; "
        "labels of cells with few known genes are unsure, and cells below --min-genes are rejected",
    )


def _choose_genes(
    reader: Reader, layer: str, genes: GeneIndex, wanted: str | None, kept: np.ndarray | None
) -> tuple[str, GeneMatch]:
    keys = reader.gene_keys(layer)
    if wanted is not None:
        if wanted not in keys:
            msg = f"gene column {wanted!r} is not there (has: {', '.join(keys)}); pass one of these to --gene-key"
            raise MissingKeyError(msg)
        keys = [wanted]
    matches = {key: genes.match(_of(kept, reader.gene_names(layer, key))) for key in keys}

    def worth(key: str) -> tuple[float, bool]:
        match = matches[key]
        return match.n_known * (_AHEAD if match.kind == "ensembl" else 1), match.kind == "ensembl"

    best = max(matches, key=worth)
    return best, matches[best]
