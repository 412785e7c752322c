"""10x Genomics ``.h5`` files: Cell Ranger 2 and later, and tools that write like it (CellBender).

Contract: a matrix that is genes x cells on disk is cells x genes here. The only layer is ``X``; the gene table has the
symbols as ``index``, and ``gene_ids``, as scanpy names them. All features are columns, whatever their type. Of a file
with a matrix for each of several genomes (Cell Ranger 2) one is read.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from scipy import sparse

from cellray.ingest import matrix as matrices
from cellray.ingest import tree
from cellray.ingest.genomes import choose_genome
from cellray.ingest.matrix import Matrix
from cellray.ingest.reader import INDEX, Reader, X

GENE_IDS: Final = "gene_ids"


class TenxReader(Reader):
    """Reader of a Cell Ranger ``.h5``: its columns-of-genes by cell are what AnnData calls csr.

    Parameters
    ----------
    root
        The open file.
    genome
        Which matrix to read where there is one a genome; None: the human one.

    Raises
    ------
    ValueError
        If the file is not of this format.
    MissingKeyError
        If ``genome`` is none of the file's.
    """

    def __init__(self, root: tree.Group, genome: str | None = None) -> None:
        names = sorted(name for name in root if tree.find(root, f"{name}/barcodes") is not None)
        if not names:
            msg = f"10x .h5: expected one group with barcodes, found 0 (has: {', '.join(sorted(root))})"
            raise ValueError(msg)
        self._notes: list[str] = []
        self._name = names[0]
        if len(names) > 1:
            self._name, note = choose_genome(names, genome)
            self._notes = [note]
        self._root = root
        group = tree.need(root, self._name)
        self._barcodes = tree.need(group, "barcodes")
        self.n_cells = tree.length(self._barcodes)
        version3 = tree.find(group, "features") is not None
        ids, symbols = ("features/id", "features/name") if version3 else ("genes", "gene_names")
        self._keys = {INDEX: symbols, GENE_IDS: ids}
        self._n_features = tree.length(tree.need(group, ids))
        matrices.check_size(self.n_cells, self._n_features)

    def layers(self) -> list[str]:
        """``X`` only."""
        return [X]

    def matrix(self, layer: str) -> Matrix:
        """Check the matrix and describe it."""
        shape = tuple(int(size) for size in tree.need(self._root, f"{self._name}/shape")[:])
        if shape != (self._n_features, self.n_cells):
            msg = f"shape says {shape}, but there are {self._n_features} features and {self.n_cells} barcodes"
            raise ValueError(msg)
        return matrices.describe_sparse(self._root, self._name, "csr", self.n_cells, self._n_features)

    def gene_keys(self, layer: str) -> list[str]:
        """``index`` (symbols) and ``gene_ids``."""
        return list(self._keys)

    def gene_names(self, layer: str, key: str) -> list[str]:
        """Symbols or ids of the columns."""
        path = self._keys[key]
        names = self._said(path)
        if names is None:
            msg = f"10x .h5: {self._name}/{path} is missing"
            raise ValueError(msg)
        return names

    def feature_types(self, layer: str) -> list[str] | None:
        """Return what each feature is (version 3)."""
        return self._said("features/feature_type")

    def genomes(self, layer: str) -> list[str] | None:
        """Return the genome of each feature (version 3)."""
        return self._said("features/genome")

    def notes(self) -> list[str]:
        """Say which genome was chosen, where there is a matrix for each."""
        return self._notes

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Barcodes of cells ``start`` to ``stop``."""
        return tree.strings(self._barcodes, start, stop)

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return some non-zero values."""
        return matrices.sample(self._root, matrix)

    def rows(self, matrix: Matrix, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop``."""
        return matrices.rows(self._root, replace(matrix, n_columns=self._n_features), start, stop)

    def _said(self, path: str) -> list[str] | None:
        """Return a column of the feature table, read when it is asked for: rows are read without it."""
        node = tree.find(self._root, f"{self._name}/{path}")
        if node is None:
            return None
        values = tree.strings(node)
        if len(values) != self._n_features:
            msg = f"10x .h5: {path} has {len(values)} entries, but there are {self._n_features} features"
            raise ValueError(msg)
        return values
