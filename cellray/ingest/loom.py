"""Loom files (version 2 and 3): genes are rows, cells are columns.

Contract: ``matrix`` is ``X`` and every entry of ``layers`` a layer; cells are read by blocks of columns that fit the
file's chunks, up to a bound, so that memory is bounded by a block however the file is chunked. The gene table has
``row_attrs/Gene`` as ``index`` and every other text attribute under its own name; ``col_attrs`` are the cells' ``obs``.
"""

from dataclasses import replace

import numpy as np
from scipy import sparse

from cellray.ingest import matrix as matrices
from cellray.ingest import tree
from cellray.ingest.matrix import Matrix, canonical
from cellray.ingest.reader import INDEX, LAYERS, Beside, Reader, X

_GENES = ("Gene", "gene", "var_names", "gene_name", "gene_names", "gene_symbol", "Accession", "gene_id", "gene_ids")
_CELLS = ("CellID", "obs_names", "cell_names", "cellID", "barcode", "barcodes")
_TYPES = ("feature_types", "feature_type")
_BLOCK_VALUES = 1 << 24


class LoomReader(Reader):
    """Reader of one loom file."""

    def __init__(self, root: tree.Group) -> None:
        self._root = root
        matrix = tree.need(root, "matrix")
        if tree.is_group(matrix) or len(matrix.shape) != 2:
            msg = "'matrix' is no table of genes and cells"
            raise ValueError(msg)
        self._n_genes, self.n_cells = (int(size) for size in matrix.shape)
        matrices.check_size(self.n_cells, self._n_genes)
        self._rows, self._columns = tree.need(root, "row_attrs"), tree.need(root, "col_attrs")
        text = [name for name in self._rows if self._is_text(self._rows, name, self._n_genes)]
        first = next((name for name in _GENES if name in text), next(iter(text), None))
        if first is None:
            msg = "row_attrs holds no names of genes"
            raise ValueError(msg)
        self._gene_keys = {INDEX: first} | {name: name for name in text if name != first}

    def layers(self) -> list[str]:
        """Return ``X`` and the entries of ``layers``."""
        layers = tree.find(self._root, "layers")
        return [X, *(f"{LAYERS}{name}" for name in sorted(layers if layers is not None else []))]

    def matrix(self, layer: str) -> Matrix:
        """Check the matrix of a layer and describe it, with cells as rows."""
        path = "matrix" if layer == X else layer
        found = matrices.describe(self._root, path)
        if (found.n_cells, found.n_columns) != (self._n_genes, self.n_cells):
            msg = f"{path} is {found.n_cells} x {found.n_columns}, but there are {self._n_genes} genes"
            raise ValueError(f"{msg} and {self.n_cells} cells")
        return replace(found, n_cells=self.n_cells, n_columns=self._n_genes)

    def gene_keys(self, layer: str) -> list[str]:
        """``index`` and the other text attributes of the rows."""
        return list(self._gene_keys)

    def gene_names(self, layer: str, key: str) -> list[str]:
        """One text attribute of the rows."""
        return tree.strings(self._rows[self._gene_keys[key]])

    def feature_types(self, layer: str) -> list[str] | None:
        """Return the attribute of feature types, if there is one."""
        key = next((key for key in _TYPES if key in self._gene_keys), None)
        return None if key is None else self.gene_names(layer, key)

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Names of cells ``start`` to ``stop``; numbers where the file names none."""
        node = next((node for node in map(self._of_cells, _CELLS) if node is not None), None)
        return [str(row) for row in range(start, stop)] if node is None else tree.strings(node, start, stop)

    def keys_beside(self, kind: Beside) -> list[str]:
        """Names of the one-dimensional attributes of the columns."""
        if kind != "obs":
            return []
        return [name for name in self._columns if self._of_cells(name) is not None]

    def obs_column(self, key: str) -> list[str]:
        """One attribute of the columns as text."""
        return tree.strings(tree.need(self._columns, key), 0, self.n_cells)

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return some non-zero values from all over the matrix."""
        stored = replace(matrix, n_cells=matrix.n_columns, n_columns=matrix.n_cells)
        return matrices.sample(self._root, stored)

    def rows(self, matrix: Matrix, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop``, some columns of the file at a time."""
        node = tree.need(self._root, matrix.path)
        most = max(1, _BLOCK_VALUES // max(1, self._n_genes))
        step = max(1, matrices.BLOCK // max(1, self._n_genes), min(most, node.chunks[1] if node.chunks else 1))
        blocks = []
        for at in range(start, stop, step):
            block = matrices.to_float32(node[:, at : min(at + step, stop)])
            blocks.append(sparse.csr_matrix(block.T))
        return canonical(sparse.vstack(blocks, format="csr"))

    def _of_cells(self, name: str) -> tree.Array | None:
        """Return an attribute of the columns that has a value for each cell."""
        node = tree.find(self._columns, name)
        return None if node is None or tree.is_group(node) or node.shape != (self.n_cells,) else node

    def _is_text(self, group: tree.Group, name: str, length: int) -> bool:
        node = tree.find(group, name)
        return node is not None and not tree.is_group(node) and node.shape == (length,) and tree.is_text(node)
