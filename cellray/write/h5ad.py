"""The annotated copy of a dataset: an ``.h5ad`` of all of the input, plus labels, embedding and a record of the run.

Contract: the copy opens with ``anndata.read_h5ad``; ``obs`` gains ``cellray_*`` columns (those of an earlier run are
replaced), ``obsm`` the embedding and ``uns`` the record. Nothing else of an ``.h5ad`` changes. Peak memory is bounded
by a block of cells and the ``obs`` columns, never by X. The file is published whole or not at all. It does not read
the input's matrices to understand them, and it does not promise equal bytes from run to run.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import scipy.sparse as sp

from cellray import schema, storage
from cellray.errors import WriteError, boundary

if TYPE_CHECKING:
    import pandas as pd

    from cellray.write.clusters import ClusterLabels

_EMPTY_GROUPS: Final = ("layers", "obsm", "obsp", "uns", "varm", "varp")


@dataclass(frozen=True)
class Results:
    """What a run found out about one dataset."""

    annotations_uri: str | None
    """File written by ``write_annotations``; None of a run that embeds only."""
    part_uris: Sequence[str]
    """Files written by ``write_part``, in row order."""
    uns: Mapping[str, Any]
    """Record of the run: strings, numbers, lists of one kind and mappings of these; None is left out."""
    embedding_key: str = schema.OBSM_LANGCELL
    """Where in ``obsm`` the embedding goes."""
    clusters: "ClusterLabels | None" = None
    """Labels of the clusters that the user gave."""


def annotate_h5ad(source_uri: str, out_uri: str, results: Results, *, group: str = "/") -> None:
    """Write an annotated copy of an ``.h5ad``, or of one modality of an ``.h5mu``.

    Parameters
    ----------
    source_uri
        The input file; only read.
    out_uri
        Where to; an existing file is replaced.
    results
        What to add.
    group
        Where in the file the AnnData is.

    Raises
    ------
    WriteError
        If the results do not cover the input's cells one by one, the input's layout cannot be extended, or the copy
        cannot be written.
    """
    from cellray.write.hdf5 import copy_group

    def fill(path: Path) -> None:
        with storage.local_copy(source_uri) as source:
            if group == "/":
                shutil.copyfile(source, path)
            else:
                copy_group(source, group, path)

    _publish(out_uri, fill, results)


def annotate_zarr(source_uri: str, out_uri: str, results: Results) -> None:
    """Write an annotated ``.h5ad`` with the content of a Zarr store, a folder or zipped; see ``annotate_h5ad``."""
    from cellray.write.hdf5 import open_hdf5
    from cellray.write.zarr_copy import copy_store

    def fill(path: Path) -> None:
        with storage.local_copy(source_uri) as source, open_hdf5(path, "w") as file:
            copy_store(source, file)

    _publish(out_uri, fill, results)


def build_h5ad(
    blocks: Iterable[tuple[Sequence[str], sp.csr_matrix]],
    var: "pd.DataFrame",
    out_uri: str,
    results: Results,
    obs: Mapping[str, Any] | None = None,
) -> None:
    """Write an annotated ``.h5ad`` from its pieces, for inputs that are no AnnData (10x files).

    Parameters
    ----------
    blocks
        Consecutive blocks of any number of cells, each their names and their counts ``(cells, len(var))``; counts are
        stored as float32.
    var
        Genes, indexed by their names.
    out_uri, results
        As in ``annotate_h5ad``.
    obs
        Further columns, a value a cell.

    Raises
    ------
    WriteError
        As ``annotate_h5ad``, and if a block does not have the genes that ``var`` names.
    """
    import pandas as pd
    from anndata.io import write_elem

    from cellray.write.hdf5 import open_hdf5, write_csr

    def fill(path: Path) -> None:
        names: list[str] = []

        def counts() -> Iterator[sp.csr_matrix]:
            for cells, block in blocks:
                names.extend(cells)
                yield block

        with open_hdf5(path, "w") as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            n_cells = write_csr(file, counts(), len(var))
            if len(names) != n_cells:
                msg = f"the blocks hold counts of {n_cells} cells and names of {len(names)}"
                raise WriteError(msg)
            write_elem(file, "obs", pd.DataFrame(dict(obs or {}), index=pd.Index(names, dtype=object)))
            write_elem(file, "var", var)
            for name in _EMPTY_GROUPS:
                write_elem(file, name, {})

    _publish(out_uri, fill, results)


def _publish(out_uri: str, fill: Callable[[Path], None], results: Results) -> None:
    from cellray.write.annotated import annotate
    from cellray.write.hdf5 import open_hdf5

    # Copying reads whatever is in the user's file, and libraries call what they cannot copy a ValueError.
    with boundary(WriteError, f"annotated copy {out_uri}", ValueError), storage.writing(out_uri) as path:
        fill(path)
        with open_hdf5(path, "r+") as file:
            annotate(file, results)
