"""Cell names made unique without holding them: 8 bytes a cell while planning, a block of names while reading.

Contract: an empty name becomes ``cell-<row>``; a name that occurs more than once gets ``-<row>`` behind every
occurrence. A name that happens to equal one made this way is treated like one that occurs more than once, so the
result is unique in the dataset. Names are compared by 64-bit hashes: a collision (one in 10^7 for a million cells)
only adds a suffix that was not needed.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from cellray.ingest.reader import Reader

BLOCK = 1 << 16


def find_renamed(reader: Reader) -> np.ndarray:
    """Return the sorted uint64 hashes of the names that must change, reading the names of ``reader`` in blocks.

    Raises
    ------
    ValueError
        If the file has fewer names than cells.
    """
    hashes = np.concatenate([np.empty(0, np.uint64), *(hash_names(names) for _, names in _blocks(reader))])
    empty = hash_names([""])
    hashes, counts = np.unique(hashes, return_counts=True)
    renamed, has_empty = hashes[counts > 1], bool(np.isin(empty, hashes)[0])
    while len(renamed) or has_empty:
        made = [hash_names(_changed(names, row0, renamed)) for row0, names in _blocks(reader)]
        taken = np.setdiff1d(np.intersect1d(np.concatenate(made), hashes), renamed)
        if not len(taken):
            break
        renamed = np.union1d(renamed, taken)
    return np.setdiff1d(renamed, empty)


def unique_names(names: list[str], row0: int, renamed: np.ndarray) -> list[str]:
    """Return the names of cells from ``row0`` on made unique; ``renamed`` comes from ``find_renamed``."""
    twice = np.isin(hash_names(names), renamed) if len(renamed) else np.zeros(len(names), bool)
    numbered = enumerate(zip(names, twice.tolist(), strict=True), row0)
    return [(f"{name}-{row}" if change else name) if name else f"cell-{row}" for row, (name, change) in numbered]


def hash_names(names: Iterable[str]) -> np.ndarray:
    """Return a uint64 hash of each name, the same in every process."""
    digests = (hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)


def _changed(names: list[str], row0: int, renamed: np.ndarray) -> list[str]:
    return [new for old, new in zip(names, unique_names(names, row0, renamed), strict=True) if new != old]


def _blocks(reader: Reader) -> Iterator[tuple[int, list[str]]]:
    for row0 in range(0, reader.n_cells, BLOCK):
        names = reader.cell_names(row0, min(row0 + BLOCK, reader.n_cells))
        if len(names) != min(BLOCK, reader.n_cells - row0):
            msg = f"there are {reader.n_cells} cells, but names for {row0 + len(names)} only"
            raise ValueError(msg)
        yield row0, names
