"""AnnData in HDF5 or Zarr, present encodings and the older ones still found in public files.

Contract: a ``Reader`` over a tree. ``raw`` may be a group (since AnnData 0.7) or two nodes ``raw.X`` and ``raw.var``
beside ``X`` (before); a table may be a group of columns or one compound array; a categorical may keep its categories
in ``__categories``. It does not use the ``anndata`` package, which reads whole tables.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from cellray.ingest import matrix as matrices
from cellray.ingest import tree
from cellray.ingest.formats import MODALITIES
from cellray.ingest.matrix import Entries, Matrix
from cellray.ingest.reader import INDEX, LAYERS, RAW, Beside, Reader, X, table_instead

_LEGACY_CATEGORIES = "__categories"
TYPE_KEYS = ("feature_types", "feature_type", "modality", "feature_biotype")
GENOME_KEYS = ("genome", "genomes")
_RNA = ("rna", "gex", "gene expression", "gene_expression", "transcriptome", "counts")


def modality(root: tree.Group) -> tuple[tree.Group, list[str]]:
    """Return the AnnData tree with the gene expression of a MuData tree and what was chosen; an AnnData tree as it is.

    Raises
    ------
    ValueError
        If no modality is called like one of gene expression.
    """
    inside = tree.find(root, MODALITIES)
    if inside is None or (tree.find(root, "var") is not None and tree.find(root, "X") is not None):
        return root, []
    names = sorted(inside)
    name = next((name for wanted in _RNA for name in names if name.lower() == wanted), None)
    if name is None:
        msg = (
            f"no modality is called 'rna' (there are: {', '.join(names) or 'none'}); write the one with the counts "
            "to a file of its own: mdata.mod[NAME].write_h5ad"
        )
        raise tree.RefusedError(msg)
    others = [one for one in names if one != name]
    return tree.need(inside, name), [f"modality {name!r} is read; left out: {', '.join(others)}"] if others else []


class AnnDataReader(Reader):
    """Reader of one AnnData tree; ``notes`` are what was decided before it was opened."""

    def __init__(self, root: tree.Group, notes: Sequence[str] = ()) -> None:
        self._root, self._notes = root, list(notes)
        self._obs = _Table(tree.need(root, "obs"))
        self.n_cells = self._obs.length()
        self._raw = "raw/" if tree.find(root, "raw/X") is not None else "raw."

    def layers(self) -> list[str]:
        """Names of the matrices in the file."""
        layers = tree.find(self._root, "layers")
        named = [] if layers is None else [f"{LAYERS}{name}" for name in sorted(layers)]
        return [name for name in (X, RAW, *named) if tree.find(self._root, self._path(name)) is not None]

    def matrix(self, layer: str) -> Matrix:
        """Check the matrix of a layer and describe it."""
        matrix = matrices.describe(self._root, self._path(layer))
        var = self._var(layer)
        if (matrix.n_cells, matrix.n_columns) != (self.n_cells, var.length()):
            size = f"{matrix.n_cells} x {matrix.n_columns}"
            msg = f"{layer} is {size}, but there are {self.n_cells} cells and {var.length()} genes"
            raise ValueError(msg)
        return matrix

    def gene_keys(self, layer: str) -> list[str]:
        """``index`` and the text columns of ``var`` (``raw.var`` for ``raw.X``)."""
        return [INDEX, *self._var(layer).text_columns()]

    def gene_names(self, layer: str, key: str) -> list[str]:
        """One column of the layer's gene table."""
        var = self._var(layer)
        return var.read(var.index if key == INDEX else key, 0, var.length())

    def feature_types(self, layer: str) -> list[str] | None:
        """Return what each column is, where a column of the gene table says so in words that are no biotype."""
        return self.column_of_genes(layer, TYPE_KEYS, self._beside_raw(layer))

    def genomes(self, layer: str) -> list[str] | None:
        """Return the genome of each column, as scanpy keeps it of a 10x file."""
        return self.column_of_genes(layer, GENOME_KEYS, self._beside_raw(layer))

    def notes(self) -> list[str]:
        """Return what was decided for the user when the file was opened."""
        return self._notes

    def cell_names(self, start: int, stop: int) -> list[str]:
        """Names of cells ``start`` to ``stop``."""
        return self._obs.read(self._obs.index, start, stop)

    def sample(self, matrix: Matrix) -> np.ndarray:
        """Return some non-zero values."""
        return matrices.sample(self._root, matrix)

    def rows(self, matrix: Matrix, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop``."""
        return matrices.rows(self._root, matrix, start, stop)

    def entries(self, matrix: Matrix) -> Iterator[Entries]:
        """All stored values."""
        return matrices.entries(self._root, matrix)

    def keys_beside(self, kind: Beside) -> list[str]:
        """``obs`` columns, ``obsm`` or ``obsp`` entries."""
        if kind == "obs":
            return self._obs.columns()
        node = tree.find(self._root, kind)
        return [] if node is None else sorted(node)

    def obs_column(self, key: str) -> list[str]:
        """One ``obs`` column as text."""
        return self._obs.read(key, 0, self.n_cells)

    def beside(self, kind: Beside, key: str, start: int = 0, stop: int | None = None) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop`` of an entry of ``obsm`` or ``obsp``."""
        node = tree.need(self._root, f"{kind}/{key}")
        if tree.attribute(node, "encoding-type") == "dataframe":
            raise table_instead(kind, key)
        found = matrices.describe(self._root, f"{kind}/{key}")
        if found.n_cells != self.n_cells or found.layout == "csc":
            msg = f"{kind}/{key} is {found.layout} of {found.n_cells} rows; wanted dense or csr of {self.n_cells} cells"
            raise ValueError(msg)
        return matrices.rows(self._root, found, start, found.n_cells if stop is None else stop)

    def _beside_raw(self, layer: str) -> str | None:
        """Return the layer whose gene table says more of the genes of ``raw.X``, if there is one."""
        return X if layer == RAW and tree.find(self._root, "var") is not None else None

    def _path(self, layer: str) -> str:
        return f"{self._raw}X" if layer == RAW else layer

    def _var(self, layer: str) -> "_Table":
        return _Table(tree.need(self._root, f"{self._raw}var" if layer == RAW else "var"))


class _Table:
    """``obs`` or ``var``: an index and columns, read by name and range."""

    def __init__(self, node: tree.Group | tree.Array) -> None:
        self._node = node
        if tree.is_group(node):
            self.index = str(tree.attribute(node, "_index", "index" if "index" in node else "_index"))
        elif node.dtype.names:
            self.index = "index" if "index" in node.dtype.names else node.dtype.names[0]
        else:
            msg = f"{node.name} is no table"
            raise ValueError(msg)

    def length(self) -> int:
        """Return the number of rows."""
        return tree.length(tree.need(self._node, self.index) if tree.is_group(self._node) else self._node)

    def columns(self) -> list[str]:
        """Names of the columns, in the file's order."""
        if not tree.is_group(self._node):
            return [name for name in self._node.dtype.names if name != self.index]
        order = tree.attribute(self._node, "column-order")
        names = [str(name) for name in (sorted(self._node) if order is None else order)]
        return [name for name in names if name not in (self.index, _LEGACY_CATEGORIES)]

    def text_columns(self) -> list[str]:
        """Names of the columns that hold text, in the file's order."""
        if not tree.is_group(self._node):
            return [name for name in self.columns() if self._node.dtype[name].kind in "OSU"]
        columns = {name: tree.find(self._node, name) for name in self.columns()}
        return [
            name
            for name, node in columns.items()
            if node is not None and (self._categories(name) is not None or tree.is_text(node))
        ]

    def read(self, name: str, start: int, stop: int) -> list[str]:
        """Return rows ``start`` to ``stop`` of a column as text."""
        if not tree.is_group(self._node):
            return tree.decode(self._node[start:stop][name])
        node, categories = tree.need(self._node, name), self._categories(name)
        if categories is None:
            return tree.strings(node, start, stop)
        return tree.take(categories, node[start:stop])

    def _categories(self, name: str) -> list[str] | None:
        node = tree.find(self._node, f"{_LEGACY_CATEGORIES}/{name}")
        return None if node is None else tree.strings(node)
