"""Cells of a dataset by row range: as they are in the file, or judged and laid out in a model's gene slots.

Contract: the readers open the dataset, read rows ``start`` to ``stop`` and close it; memory is bounded by those
rows. The result is the same for every layout and for every way the range is cut. A bad cell is a row with a reject
code, never an error. Neither normalises nor ranks: that is ``cellray.tokenize``.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from cellray.ingest.names import unique_names
from cellray.ingest.plan import DatasetPlan
from cellray.ingest.reader import open_dataset
from cellray.ingest.staging import needs_staging, read_staged
from cellray.ingest.values import converted
from cellray.schema import RejectCode


@dataclass(frozen=True)
class RowBlock:
    """Cells from ``row0`` on: unique names and ``counts`` csr float32, cells x kept columns, converted, canonical."""

    row0: int
    cell_ids: list[str]
    counts: sparse.csr_matrix


@dataclass(frozen=True)
class Shard:
    """Cells from ``row0`` on, judged.

    Attributes
    ----------
    n_counts
        float32[n], sum over all columns of gene expression; 0 where the values are no counts.
    n_genes
        int32[n], model genes with a count above 0; 0 where the values are no counts.
    reject_codes
        One ``schema.RejectCode`` or None for each cell.
    counts
        csr float32, cells x model slots, columns of the same gene summed; a rejected cell's row is empty.
    """

    row0: int
    cell_ids: list[str]
    n_counts: np.ndarray
    n_genes: np.ndarray
    reject_codes: list[str | None]
    counts: sparse.csr_matrix


def read_rows(plan: DatasetPlan, start: int, stop: int) -> RowBlock:
    """Read cells ``start`` to ``stop``.

    Raises
    ------
    ValueError
        If the range is not within the dataset, or the layout must be staged first.
    ReadError
        If the file is damaged.
    """
    if not 0 <= start <= stop <= plan.n_cells or needs_staging(plan):
        msg = f"{plan.source.uri}: cannot read rows {start} to {stop} of {plan.n_cells} in layout {plan.layout!r}"
        raise ValueError(msg)
    if start == stop:
        return RowBlock(start, [], sparse.csr_matrix((0, plan.n_columns), dtype=np.float32))
    with open_dataset(plan.source) as reader:
        names = reader.cell_names(start, stop)
        if plan.staged is None:
            counts = reader.rows(plan.matrix, start, stop)
        else:
            counts = read_staged(plan.staged, plan.matrix.n_columns, start, stop)
    if plan.kept is not None:
        counts = counts[:, plan.kept]
    counts = converted(counts, plan.conversion, integers=plan.integers)
    return RowBlock(start, unique_names(names, start, plan.renamed), counts)


def read_shard(plan: DatasetPlan, start: int, stop: int, *, min_genes: int, n_slots: int) -> Shard:
    """Read and judge cells ``start`` to ``stop``.

    Parameters
    ----------
    min_genes
        A cell with fewer known genes is rejected.
    n_slots
        Number of genes of the model, ``GeneIndex.n_genes``.

    Raises
    ------
    ValueError, ReadError
        As ``read_rows``.
    """
    return judge(read_rows(plan, start, stop), plan.slots, min_genes=min_genes, n_slots=n_slots, integers=plan.integers)


def judge(block: RowBlock, slots: np.ndarray, *, min_genes: int, n_slots: int, integers: bool = True) -> Shard:
    """Judge the cells of ``block`` and lay them out; ``slots`` int32[columns] as in ``DatasetPlan``, -1 for none.

    Without ``integers`` other values than whole numbers are no fault.
    """
    counts = block.counts
    with np.errstate(over="ignore", invalid="ignore"):
        total = counts.sum(axis=1, dtype=np.float64).A1.astype(np.float32)
        failed = {
            RejectCode.NOT_FINITE: ~np.isfinite(total),
            RejectCode.NEGATIVE_COUNT: _any_in_row(counts, counts.data < 0),
            RejectCode.NON_INTEGER_COUNT: _any_in_row(counts, integers & (counts.data != np.rint(counts.data))),
        }
    no_counts = np.logical_or.reduce(list(failed.values()))
    counts = _empty_rows(counts, no_counts)
    merged = _to_slots(counts, slots, n_slots)
    n_counts = np.where(no_counts, np.float32(0), total)
    n_genes = np.diff(merged.indptr).astype(np.int32)
    failed |= {
        RejectCode.EMPTY_CELL: n_counts == 0,
        RejectCode.NO_KNOWN_GENE: n_genes == 0,
        RejectCode.TOO_FEW_GENES: n_genes < min_genes,
    }
    verdicts = np.stack([failed[code] for code in RejectCode])
    rejected = np.logical_or.reduce(verdicts)
    codes = [str(code) for code in RejectCode]
    reject_codes = [codes[first] if bad else None for first, bad in zip(verdicts.argmax(axis=0), rejected, strict=True)]
    return Shard(block.row0, block.cell_ids, n_counts, n_genes, reject_codes, _empty_rows(merged, rejected))


def _any_in_row(counts: sparse.csr_matrix, bad: np.ndarray) -> np.ndarray:
    """Return bool[n]: whether a row holds an entry that is ``bad`` (bool[nnz])."""
    found = np.zeros(counts.shape[0], bool)
    found[np.searchsorted(counts.indptr, np.flatnonzero(bad), side="right") - 1] = True
    return found


def _empty_rows(counts: sparse.csr_matrix, drop: np.ndarray) -> sparse.csr_matrix:
    """Return ``counts`` without the entries of the rows in ``drop`` (bool[n])."""
    if not drop.any():
        return counts
    lengths = np.diff(counts.indptr)
    keep = np.repeat(~drop, lengths)
    indptr = np.concatenate([[0], np.cumsum(np.where(drop, 0, lengths))])
    return sparse.csr_matrix((counts.data[keep], counts.indices[keep], indptr), shape=counts.shape)


def _to_slots(counts: sparse.csr_matrix, slots: np.ndarray, n_slots: int) -> sparse.csr_matrix:
    """Return ``counts`` with columns moved to their slot, same slots summed and unknown columns dropped."""
    known = np.flatnonzero(slots >= 0)
    parts = (np.ones(len(known), np.float32), (known, slots[known]))
    merged = (counts @ sparse.csr_matrix(parts, shape=(len(slots), n_slots))).tocsr()
    merged.sort_indices()
    return merged
