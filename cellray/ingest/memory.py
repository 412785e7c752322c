"""An AnnData object in memory, or backed by a file, as a dataset like any other.

Contract: what is read from it equals what would be read from the file that ``write_h5ad`` makes of it: names, text of
columns, values. Nothing of the object is changed and no block shares memory with it. A matrix stored by gene (csc) is
converted once and kept while the source lives; anything else is read by row as it is, a backed one from its file.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from scipy import sparse

from cellray.ingest import tree
from cellray.ingest.h5ad import GENOME_KEYS, TYPE_KEYS
from cellray.ingest.matrix import (
    BLOCK,
    SAMPLE_POSITIONS,
    SAMPLE_VALUES,
    Matrix,
    canonical,
    check_range,
    check_size,
    to_float32,
)
from cellray.ingest.reader import INDEX, LAYERS, RAW, Beside, Reader, X, table_instead
from cellray.ingest.sources import DatasetSource

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

CONTENT_HASH: Final = "memory"


@dataclass(frozen=True)
class AnnDataSource(DatasetSource):
    """A dataset in memory: the object, and its matrices as they are read, once looked at."""

    adata: Any = field(default=None, compare=False, repr=False)
    matrices: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, adata: "AnnData", dataset_id: str = "adata", genome: str | None = None) -> Self:
        """Return the source that reads ``adata``; messages call it by ``dataset_id``."""
        return cls(uri=dataset_id, kind="memory", dataset_id=dataset_id, genome=genome, adata=adata)

    def content_hash(self) -> str:
        """Return the same for all: results of an object in memory are not kept for another run."""
        return CONTENT_HASH


class MemoryReader(Reader):
    """Reader of an AnnData object."""

    def __init__(self, source: AnnDataSource) -> None:
        self._adata, self._matrices = source.adata, source.matrices
        self.n_cells = int(self._adata.n_obs)

    def layers(self) -> list[str]:
        """Names of the matrices."""
        named = [f"{LAYERS}{name}" for name in sorted(map(str, self._adata.layers))]
        return [*(name for name in (X, RAW) if self._held(name) is not None), *named]

    def matrix(self, layer: str) -> Matrix:
        """Check the matrix of a layer and describe it."""
        values = self._values(layer)
        if values is None:
            msg = f"{layer} is missing"
            raise tree.RefusedError(msg)
        n_cells, n_columns = (int(size) for size in values.shape)
        check_size(n_cells, n_columns)
        if values.dtype.kind not in "iufb":
            msg = f"{layer} holds values of type {values.dtype}, which are no numbers; convert it: .astype('float32')"
            raise tree.RefusedError(msg)
        nnz = _n_stored(values)
        if nnz is None:
            return Matrix(layer, "dense", n_cells, n_columns, n_cells * n_columns)
        return Matrix(layer, "csr", n_cells, n_columns, nnz)

    def gene_keys(self, layer: str) -> list[str]:
        """``index`` and the text columns of ``var`` (``raw.var`` for ``raw.X``)."""
        return [INDEX, *_text_columns(self._var(layer))]

    def gene_names(self, layer: str, key: str) -> list[str]:
        """One column of the layer's gene table."""
        var = self._var(layer)
        return _text(var.index.to_series() if key == INDEX else var[key])

    def feature_types(self, layer: str) -> list[str] | None:
        """Return what each column is, where the gene table says so."""
        return self.column_of_genes(layer, TYPE_KEYS, X if layer == RAW else None)

    def genomes(self, layer: str) -> list[str] | None:
        """Return the genome of each column, where the gene table says so."""
        return self.column_of_genes(layer, GENOME_KEYS, X if layer == RAW else None)

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Names of cells ``start`` to ``stop``."""
        return _text(self._adata.obs_names[start:stop].to_series())

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return the values of some cells, evenly spaced, the first and the last among them."""
        if not matrix.n_cells:
            return np.empty(0, np.float32)
        width = max(1, SAMPLE_VALUES // SAMPLE_POSITIONS * matrix.n_cells // max(1, matrix.nnz))
        last = max(0, matrix.n_cells - width)
        starts = np.unique(np.linspace(0, last, SAMPLE_POSITIONS).astype(np.int64)).tolist()
        if matrix.n_cells <= SAMPLE_POSITIONS * width:
            starts, width = [0], matrix.n_cells
        values = np.concatenate([self.rows(matrix, at, min(at + width, matrix.n_cells)).data for at in starts])
        return values[:: -(-len(values) // SAMPLE_VALUES) or 1]

    def rows(self, matrix: Matrix, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop``, in memory of their own."""
        values = self._values(matrix.path)
        if matrix.layout == "dense":
            step = max(1, BLOCK // max(1, matrix.n_columns))
            parts = [
                sparse.csr_matrix(to_float32(np.asarray(values[at : min(at + step, stop)])))
                for at in range(start, stop, step)
            ]
            return canonical(sparse.vstack(parts, format="csr"))
        if not sparse.issparse(values):
            values, start, stop = values[start:stop], 0, stop - start
        indptr = values.indptr[start : stop + 1].astype(np.int64)
        low, high = int(indptr[0]), int(indptr[-1])
        indices = values.indices[low:high]
        check_range(indices, matrix.n_columns, f"{matrix.path}.indices")
        # Copies, for canonical works in place.
        block = (to_float32(values.data[low:high]).copy(), indices.astype(np.int32), indptr - low)
        return canonical(sparse.csr_matrix(block, shape=(stop - start, matrix.n_columns)))

    def keys_beside(self, kind: Beside) -> list[str]:
        """``obs`` columns, ``obsm`` or ``obsp`` entries."""
        return [str(key) for key in getattr(self._adata, kind)]

    def obs_column(self, key: str) -> list[str]:
        """One ``obs`` column as text."""
        return _text(self._adata.obs[key])

    def beside(self, kind: Beside, key: str, start: int = 0, stop: int | None = None) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop`` of an entry of ``obsm`` or ``obsp``."""
        values = getattr(self._adata, kind)[key]
        if not sparse.issparse(values) and (not hasattr(values, "dtype") or len(values.shape) != 2):
            raise table_instead(kind, key)
        rows = values.tocsr()[start:stop] if sparse.issparse(values) else values[start:stop]
        return sparse.csr_matrix(rows, dtype=np.float32, copy=True)

    def _var(self, layer: str) -> "pd.DataFrame":
        return self._adata.raw.var if layer == RAW else self._adata.var

    def _values(self, layer: str) -> Any:
        """Return a matrix in a form that can be read by row; None if it is not there."""
        self._matrices[layer] = _by_row(layer, self._held(layer))
        return self._matrices[layer]

    def _held(self, layer: str) -> Any:
        """Return a matrix as the object has it; that of a view is made anew whenever one asks, so ask once."""
        if layer not in self._matrices:
            if layer == RAW:
                values = None if self._adata.raw is None else self._adata.raw.X
            else:
                values = self._adata.X if layer == X else self._adata.layers[layer.removeprefix(LAYERS)]
            self._matrices[layer] = values
        return self._matrices[layer]


def _by_row(layer: str, values: Any) -> Any:
    from anndata.abc import CSCDataset, CSRDataset

    if isinstance(values, CSCDataset):
        values = values.to_memory()
    if sparse.issparse(values):
        return values if values.format == "csr" else values.tocsr()
    # A lazy array of another library would be computed anew for every block.
    if values is None or isinstance(values, np.ndarray | CSRDataset) or _on_disk(values):
        return values
    msg = f"{layer} is a {type(values).__name__}, which is not read as it is; load it first: adata.to_memory()"
    raise tree.RefusedError(msg)


def _on_disk(values: Any) -> bool:
    return type(values).__module__.split(".")[0] in ("h5py", "zarr")


def _n_stored(values: Any) -> int | None:
    """Return the number of stored values of a sparse matrix, None of a dense one."""
    if sparse.issparse(values):
        return int(values.nnz)
    return int(values.group["data"].shape[0]) if hasattr(values, "group") and not _on_disk(values) else None


def _text_columns(table: "pd.DataFrame") -> list[str]:
    """Names of the columns that a file would hold as text."""
    import pandas as pd

    def is_text(column: "pd.Series") -> bool:
        values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        return pd.api.types.infer_dtype(values, skipna=True) == "string"

    return [str(name) for name in table if is_text(table[name])]


def _text(column: "pd.Series") -> list[str]:
    """Return a column as a file of it would be read: a missing value is the empty string, a missing float ``nan``."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return tree.take([str(name) for name in column.cat.categories], column.cat.codes.to_numpy())
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return tree.decode(column.to_numpy())
    missing = column.isna().to_numpy()
    return ["" if gone else value for gone, value in zip(missing, tree.decode(column.astype(object)), strict=True)]
