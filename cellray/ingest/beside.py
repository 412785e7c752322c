"""What a dataset says of its cells beside their counts: batches, known labels, coordinates, a graph of neighbours.

Contract: ``check_beside`` says before any work whether the wanted entries are there; the readers return all cells in
the file's order and leave choosing among them to the caller. Values are not judged here.
"""

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from cellray.errors import MissingKeyError
from cellray.ingest.reader import Beside, open_dataset
from cellray.ingest.sources import DatasetSource

_MOST_NAMED = 20
_BLOCK = 1 << 14


def check_beside(source: DatasetSource, wanted: Mapping[str, Beside]) -> None:
    """Raise ``MissingKeyError`` for the first key of ``wanted`` (key -> where) that the dataset does not have."""
    if not wanted:
        return
    with open_dataset(source) as reader:
        for key, kind in wanted.items():
            there = reader.keys_beside(kind)
            if key not in there:
                named = ", ".join(there[:_MOST_NAMED]) or "nothing"
                msg = f"{source.uri}: {kind} has no {key!r} (it has: {named})"
                raise MissingKeyError(msg)


def read_obs_text(source: DatasetSource, key: str) -> np.ndarray:
    """One ``obs`` column, (n,) str; empty where there is no value."""
    with open_dataset(source) as reader:
        return np.array(reader.obs_column(key), dtype=str)


def read_coordinates(source: DatasetSource, key: str) -> np.ndarray:
    """One ``obsm`` entry, (n, p) float32."""
    with open_dataset(source) as reader:
        return reader.beside("obsm", key).toarray()


def read_graph(source: DatasetSource, key: str) -> sparse.csr_matrix:
    """One ``obsp`` entry, (n, n) float32."""
    with open_dataset(source) as reader:
        return reader.beside("obsp", key)


def check_numbers(source: DatasetSource, kind: Beside, key: str) -> tuple[tuple[int, int], bool]:
    """Return the shape of an ``obsm`` or ``obsp`` entry and whether all its values are finite, reading it by blocks.

    Raises
    ------
    ReadError
        If it is no matrix of the dataset's cells.
    """
    with open_dataset(source) as reader:
        width, finite = 0, True
        for start in range(0, reader.n_cells, _BLOCK):
            block = reader.beside(kind, key, start, min(start + _BLOCK, reader.n_cells))
            width, finite = block.shape[1], finite and bool(np.isfinite(block.data).all())
    return (reader.n_cells, width), finite
