"""A count matrix inside a tree: checked once, then read by blocks.

Contract: ``describe`` compares every size the file states with every other before anything is allocated, and walks
``indptr`` in blocks, so that a ``Matrix`` can be trusted except for its column numbers, which are checked as they are
read. A block is cells x file columns, float32, without duplicates and explicit zeros, columns ascending, whatever the
layout. Values are not judged here: NaN and negatives pass. What is wrong with the file is a ``ValueError``, named and
located by ``cellray.ingest.tree.reading``.

Zarr leaves out chunks that hold only the fill value. A chunk missing from a sparse matrix cannot be that and is an
error; one missing from a dense matrix reads as zeros, as the format says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

from cellray.ingest import tree

Layout = Literal["csr", "csc", "dense", "mtx"]

MAX_CELLS = 500_000_000
MAX_COLUMNS = tree.MAX_STRINGS
BLOCK = 1 << 18
SAMPLE_POSITIONS = 8
SAMPLE_VALUES = 50_000


@dataclass(frozen=True)
class Matrix:
    """Where a matrix lies in its file and how: cells x columns, ``nnz`` stored values (all of them when dense)."""

    path: str
    layout: Layout
    n_cells: int
    n_columns: int
    nnz: int


class Entries(NamedTuple):
    """Some stored values of a matrix: cell and column int64, value float32, all of one length, in the file's order."""

    cells: np.ndarray
    columns: np.ndarray
    values: np.ndarray


def check_size(n_cells: int, n_columns: int) -> None:
    """Refuse sizes that no gene matrix has, before anything of that size is read."""
    if not (0 <= n_cells <= MAX_CELLS and 0 <= n_columns <= MAX_COLUMNS):
        msg = f"{n_cells:,} cells x {n_columns:,} columns is out of range (at most {MAX_CELLS:,} x {MAX_COLUMNS:,})"
        raise ValueError(msg)


def describe(root: tree.Group, path: str) -> Matrix:
    """Check the AnnData matrix at ``path`` (sparse group or dense array) and describe it."""
    node = tree.need(root, path)
    if not tree.is_group(node):
        if len(node.shape) != 2:
            msg = f"{path} has {len(node.shape)} dimensions, not 2"
            raise ValueError(msg)
        check_size(*node.shape)
        _check_dtype(node, path, "iufb")
        n_cells, n_columns = (int(size) for size in node.shape)
        return Matrix(path, "dense", n_cells, n_columns, n_cells * n_columns)
    encoding = tree.attribute(node, "encoding-type") or tree.attribute(node, "h5sparse_format")
    shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
    if encoding is None or shape is None or str(encoding)[:3] not in ("csr", "csc"):
        msg = f"{path} is no matrix (encoding {encoding!r})"
        raise ValueError(msg)
    n_cells, n_columns = (int(size) for size in shape)
    return describe_sparse(root, path, "csr" if str(encoding).startswith("csr") else "csc", n_cells, n_columns)


def describe_sparse(root: tree.Group, path: str, layout: Layout, n_cells: int, n_columns: int) -> Matrix:
    """Check the group of ``data``, ``indices`` and ``indptr`` at ``path`` against the shape it claims."""
    check_size(n_cells, n_columns)
    data, indices, indptr = (tree.need(root, f"{path}/{name}") for name in ("data", "indices", "indptr"))
    for array, name, kinds in ((data, "data", "iufb"), (indices, "indices", "iu"), (indptr, "indptr", "iu")):
        _check_dtype(array, f"{path}/{name}", kinds)
    for array, name in ((data, "data"), (indices, "indices")):
        if getattr(array, "nchunks_initialized", np.inf) < getattr(array, "nchunks", 0):
            msg = f"{path}/{name} lacks {array.nchunks - array.nchunks_initialized} of its {array.nchunks} chunks"
            raise ValueError(msg)
    major, minor = (n_cells, n_columns) if layout == "csr" else (n_columns, n_cells)
    if data.shape != indices.shape or len(data.shape) != 1 or indptr.shape != (major + 1,):
        held = f"data {data.shape}, indices {indices.shape}, indptr {indptr.shape}"
        msg = f"{path} claims {n_cells} x {n_columns} but holds {held}"
        raise ValueError(msg)
    nnz = int(data.shape[0])
    _check_indptr(indptr, f"{path}/indptr", nnz, minor)
    return Matrix(path, layout, n_cells, n_columns, nnz)


def _check_dtype(array: tree.Array, path: str, kinds: str) -> None:
    if tree.is_group(array) or array.dtype.kind not in kinds:
        msg = f"{path} does not hold numbers of the right kind"
        raise ValueError(msg)


def _check_indptr(indptr: tree.Array, path: str, nnz: int, minor: int) -> None:
    last = 0
    for start in range(0, indptr.shape[0], BLOCK):
        steps = np.diff(indptr[start : start + BLOCK].astype(np.int64), prepend=last)
        bad = (steps < 0) | (steps > minor)
        bad[0] |= start == 0 and steps[0] != 0
        if bad.any():
            msg = f"{path} is broken at position {start + int(np.argmax(bad))}"
            raise ValueError(msg)
        last += int(steps.sum())
    if last != nnz:
        msg = f"{path} ends at {last}, but there are {nnz} values"
        raise ValueError(msg)


def sample(root: tree.Group, matrix: Matrix) -> np.ndarray:
    """Return up to ~50,000 non-zero values float32 from evenly spaced positions, the start and the end among them."""
    node = tree.need(root, matrix.path)
    if matrix.layout == "dense":
        windows = _windows(matrix.n_cells, max(1, BLOCK // (SAMPLE_POSITIONS * max(1, matrix.n_columns))))
    else:
        node = tree.need(node, "data")
        windows = _windows(matrix.nnz, SAMPLE_VALUES // SAMPLE_POSITIONS)
    parts = [node[window] for window in windows]
    values = np.concatenate([part[part != 0] for part in parts])
    return to_float32(values[:: -(-len(values) // SAMPLE_VALUES) or 1])


def _windows(total: int, width: int) -> list[slice]:
    if total <= SAMPLE_POSITIONS * width:
        return [slice(0, total)]
    starts = np.linspace(0, total - width, SAMPLE_POSITIONS).astype(np.int64).tolist()
    return [slice(start, start + width) for start in starts]


def to_float32(values: np.ndarray) -> np.ndarray:
    """Return ``values`` as float32; what does not fit becomes infinite and so is found later."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32, copy=False)


def rows(root: tree.Group, matrix: Matrix, start: int, stop: int) -> sparse.csr_matrix:
    """Return cells ``start`` to ``stop`` (at least one) of a csr or dense matrix."""
    node = tree.need(root, matrix.path)
    if matrix.layout == "dense":
        # Fewer rows than a chunk would decompress each chunk many times.
        step = max(1, BLOCK // max(1, matrix.n_columns), node.chunks[0] if node.chunks else 1)
        blocks = [sparse.csr_matrix(to_float32(node[at : min(at + step, stop)])) for at in range(start, stop, step)]
        return canonical(sparse.vstack(blocks, format="csr"))
    indptr = tree.need(node, "indptr")[start : stop + 1].astype(np.int64)
    low, high = int(indptr[0]), int(indptr[-1])
    indices = tree.need(node, "indices")[low:high]
    check_range(indices, matrix.n_columns, f"{matrix.path}/indices")
    data = to_float32(tree.need(node, "data")[low:high])
    parts = (data, indices.astype(np.int32), indptr - low)
    return canonical(sparse.csr_matrix(parts, shape=(stop - start, matrix.n_columns)))


def entries(root: tree.Group, matrix: Matrix) -> Iterator[Entries]:
    """Yield all stored values of a csc matrix once, in blocks of the file's order."""
    node = tree.need(root, matrix.path)
    indptr = tree.need(node, "indptr")[:].astype(np.int64)
    data, indices = tree.need(node, "data"), tree.need(node, "indices")
    for low in range(0, matrix.nnz, BLOCK):
        high = min(low + BLOCK, matrix.nnz)
        cells = indices[low:high]
        check_range(cells, matrix.n_cells, f"{matrix.path}/indices")
        columns = np.searchsorted(indptr, np.arange(low, high), side="right") - 1
        yield Entries(cells.astype(np.int64), columns, to_float32(data[low:high]))


def check_range(numbers: np.ndarray, limit: int, what: str) -> None:
    """Refuse row or column numbers outside 0 to ``limit`` - 1."""
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < limit):
        msg = f"{what} points outside the matrix ({numbers.min()} to {numbers.max()}, but there are {limit})"
        raise ValueError(msg)


def canonical(block: sparse.csr_matrix) -> sparse.csr_matrix:
    """Sort columns, merge duplicates by sum and drop explicit zeros, in place; return the block."""
    block.sum_duplicates()
    block.eliminate_zeros()
    return block
