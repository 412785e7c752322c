"""What every format offers to the rest of ``ingest``, and the one place that knows which module reads which format.

Contract: a ``Reader`` is one open dataset. Layers are named ``X``, ``raw.X`` and ``layers/<name>``; rows are cells,
columns are the genes of that layer, in file order. Nothing is held in memory beyond the block asked for and one list
of gene names. Readers do not judge values and do not choose: that is ``cellray.ingest.plan``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, Literal

import numpy as np
from scipy import sparse

from cellray.ingest import tree
from cellray.ingest.matrix import Entries, Matrix
from cellray.ingest.sources import DatasetSource

X: Final = "X"
RAW: Final = "raw.X"
LAYERS: Final = "layers/"
COUNTS: Final = "layers/counts"
INDEX: Final = "index"

Beside = Literal["obs", "obsm", "obsp"]


class Reader(ABC):
    """One open dataset of ``n_cells`` cells."""

    n_cells: int

    @abstractmethod
    def layers(self) -> list[str]:
        """Names of the matrices in the file."""

    @abstractmethod
    def matrix(self, layer: str) -> Matrix:
        """Check the matrix of a layer and describe it."""

    @abstractmethod
    def gene_keys(self, layer: str) -> list[str]:
        """``index`` and the text columns of the layer's gene table."""

    @abstractmethod
    def gene_names(self, layer: str, key: str) -> list[str]:
        """One column of the layer's gene table, a name per matrix column."""

    def feature_types(self, layer: str) -> list[str] | None:
        """Return what each column of the layer is, such as ``Gene Expression``; None where the file does not say."""
        return None

    def genomes(self, layer: str) -> list[str] | None:
        """Return the genome that each column of the layer is of; None where the file does not say."""
        return None

    def notes(self) -> list[str]:
        """Return what was decided for the user when the file was opened, a sentence each."""
        return []

    def column_of_genes(self, layer: str, keys: Sequence[str], other: str | None) -> list[str] | None:
        """Return the first of the columns ``keys`` of the layer's gene table, else what ``other``'s says of its genes.

        The table of ``raw.X`` often lacks what that of ``X`` says of the same genes.
        """
        key = next((key for key in keys if key in self.gene_keys(layer)), None)
        if key is not None:
            return self.gene_names(layer, key)
        key = None if other is None else next((key for key in keys if key in self.gene_keys(other)), None)
        if other is None or key is None:
            return None
        said = dict(zip(self.gene_names(other, INDEX), self.gene_names(other, key), strict=True))
        return [said.get(name, "") for name in self.gene_names(layer, INDEX)]

    @abstractmethod
    def cell_names(self, start: int, stop: int) -> list[str]:
        """Names of cells ``start`` to ``stop`` as they are in the file: perhaps empty, perhaps not unique."""

    @abstractmethod
    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return some non-zero values float32 from all over the matrix, at most about 50,000."""

    def rows(self, matrix: Matrix, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop`` of a matrix whose layout can be read by row, float32."""
        raise NotImplementedError

    def entries(self, matrix: Matrix) -> Iterator[Entries]:
        """All stored values of a matrix whose layout cannot be read by row, in blocks."""
        raise NotImplementedError

    def keys_beside(self, kind: Beside) -> list[str]:
        """Names of what the file holds of its cells beside counts: ``obs`` columns, ``obsm`` or ``obsp`` entries."""
        return []

    def obs_column(self, key: str) -> list[str]:
        """One ``obs`` column as text, a value per cell, empty where there is none."""
        raise NotImplementedError

    def beside(self, kind: Beside, key: str, start: int = 0, stop: int | None = None) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop``, by default all, of an entry of ``obsm`` or ``obsp``, float32."""
        raise NotImplementedError


def table_instead(kind: Beside, key: str) -> tree.RefusedError:
    """Return the refusal of an entry that is a table of columns where a matrix belongs."""
    return tree.RefusedError(
        f"{kind}[{key!r}] is a table of columns and no matrix; store its numbers: "
        f"adata.{kind}[{key!r}] = adata.{kind}[{key!r}].to_numpy()"
    )


@contextmanager
def open_dataset(source: DatasetSource) -> Iterator[Reader]:
    """Open a dataset; whatever is wrong with the file, then or while reading, is a ``ReadError`` naming it."""
    uri = source.uri
    with tree.reading(uri), ExitStack() as stack:
        yield _reader(source, stack)


def _reader(source: DatasetSource, stack: ExitStack) -> Reader:
    """Open the file or folder with the reader of its format."""
    uri, kind = source.uri, source.kind
    if kind in ("h5ad", "h5mu", "zarr", "zarr_zip"):
        from cellray.ingest.h5ad import AnnDataReader, modality

        openers = {"zarr": tree.open_zarr, "zarr_zip": tree.open_zarr_zip}
        return AnnDataReader(*modality(stack.enter_context(openers.get(kind, tree.open_hdf5)(uri))))
    if kind == "10x_h5":
        from cellray.ingest.tenx import TenxReader

        return TenxReader(stack.enter_context(tree.open_hdf5(uri)), source.genome)
    if kind == "10x_mtx":
        from cellray.ingest.market import MarketReader, read_folder

        return MarketReader(dict(source.files) or read_folder(uri))
    if kind == "loom":
        from cellray.ingest.loom import LoomReader

        return LoomReader(stack.enter_context(tree.open_hdf5(uri)))
    if kind == "table":
        from cellray.ingest.table import TableReader

        return TableReader(uri)
    from cellray.ingest.memory import AnnDataSource, MemoryReader

    if not isinstance(source, AnnDataSource):
        msg = f"{uri}: a dataset of kind {kind!r} has no reader"
        raise TypeError(msg)
    return MemoryReader(source)
