"""A row-readable copy of a matrix that is stored by gene (csc) or as a list (mtx), one file per shard.

Contract: ``stage`` reads the values once, from end to end. It sorts them into one local temporary file per shard,
then turns each into one atomically published file, so that memory is bounded by a block and a shard whatever the
matrix, and local disk by 12 bytes a value. A file's name says which content, layer and rows it holds: files already
there are kept, and doing a shard again writes the same bytes. Nothing removes the copy; who asked for it does, when
the dataset is complete.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse

from cellray import storage
from cellray.errors import WriteError, boundary
from cellray.ingest import tree
from cellray.ingest.matrix import Entries, canonical
from cellray.ingest.plan import DatasetPlan, Staged
from cellray.ingest.reader import open_dataset
from cellray.scratch import Scratch

_RECORD = np.dtype([("cell", np.int32), ("column", np.int32), ("value", np.float32)])


def needs_staging(plan: DatasetPlan) -> bool:
    """Whether the dataset cannot be read by row as it is."""
    return plan.layout in ("csc", "mtx")


def stage(plan: DatasetPlan, folder_uri: str, shard_cells: int) -> DatasetPlan:
    """Write what is missing of the row-readable copy into ``folder_uri`` and return the plan that reads it.

    Parameters
    ----------
    plan
        A plan that ``needs_staging``.
    folder_uri
        Local folder or ``s3://`` prefix.
    shard_cells
        Cells per file; reading is cheapest in the same steps.

    Raises
    ------
    ReadError
        If the source is damaged.
    WriteError
        If a file cannot be written.
    """
    key = hashlib.sha256(f"{plan.content_hash} {plan.layer} {shard_cells}".encode()).hexdigest()[:16]
    staged = Staged(folder_uri, shard_cells, key)
    there = set(storage.list_files(folder_uri))
    missing = [shard for shard in range(-(-plan.n_cells // shard_cells)) if _name(staged, shard) not in there]
    if missing:
        with (
            boundary(WriteError, f"{plan.source.uri}: cannot stage (local disk needed: 12 bytes a value)"),
            Scratch("stage") as scratch,
        ):
            _sort_into_buckets(plan, shard_cells, missing, scratch.path)
            for shard in missing:
                _publish(plan, staged, shard, scratch.path)
    return replace(plan, staged=staged)


def read_staged(staged: Staged, n_columns: int, start: int, stop: int) -> sparse.csr_matrix:
    """Return cells ``start`` to ``stop`` (at least one) from the row-readable copy."""
    blocks = []
    for shard in range(start // staged.shard_cells, (stop - 1) // staged.shard_cells + 1):
        row0 = shard * staged.shard_cells
        uri = storage.join(staged.folder, _name(staged, shard))
        with tree.reading(uri), np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as parts:
            n_cells = len(parts["indptr"]) - 1
            block = sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=(n_cells, n_columns))
        blocks.append(block[max(start - row0, 0) : stop - row0])
    return sparse.vstack(blocks, format="csr")


def _name(staged: Staged, shard: int) -> str:
    return f"rows-{shard * staged.shard_cells:012d}-{staged.key}.npz"


def _sort_into_buckets(plan: DatasetPlan, shard_cells: int, missing: list[int], scratch: Path) -> None:
    wanted = np.zeros(-(-plan.n_cells // shard_cells), bool)
    wanted[missing] = True
    for shard in missing:
        (scratch / str(shard)).touch()
    for cells, columns, values in _entries(plan):
        shards = cells // shard_cells
        order = np.argsort(shards, kind="stable")
        order = order[wanted[shards[order]]]
        if not len(order):
            continue
        records = np.empty(len(order), _RECORD)
        records["cell"], records["column"], records["value"] = (
            (cells % shard_cells)[order],
            columns[order],
            values[order],
        )
        shards = shards[order]
        first = np.flatnonzero(np.diff(shards, prepend=-1))
        for shard, part in zip(shards[first].tolist(), np.split(records, first[1:]), strict=True):
            with (scratch / str(shard)).open("ab") as file:
                part.tofile(file)


def _entries(plan: DatasetPlan) -> Iterator[Entries]:
    with open_dataset(plan.source) as reader:
        yield from reader.entries(plan.matrix)


def _publish(plan: DatasetPlan, staged: Staged, shard: int, scratch: Path) -> None:
    records = np.fromfile(scratch / str(shard), _RECORD)
    n_cells = min(staged.shard_cells, plan.n_cells - shard * staged.shard_cells)
    coordinates = (records["cell"], records["column"])
    block = canonical(
        sparse.coo_matrix((records["value"], coordinates), shape=(n_cells, plan.matrix.n_columns)).tocsr()
    )
    with storage.writing(storage.join(staged.folder, _name(staged, shard))) as path, path.open("wb") as file:
        np.savez(file, indptr=block.indptr, indices=block.indices, data=block.data)
    (scratch / str(shard)).unlink()
