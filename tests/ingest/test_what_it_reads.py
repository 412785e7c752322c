"""README's table "What it reads" is made here: every row is read, and the table is the rows.

When a row changes, the failing comparison prints the table to put into README.
"""

import zipfile
from pathlib import Path

import anndata
import h5py
import pandas as pd
import pytest
from anndata.io import write_elem

from cellray.ingest import find_sources, needs_staging, read_shard, stage
from tests.ingest import test_loom, test_market

README = Path(__file__).parents[2] / "README.md"
HEAD = "| Given | Read as | Also |\n|---|---|---|\n"


def anndata_file(name):
    return lambda given: given.atlas().write_h5ad(given.folder / name) or given.folder / name


def zarr(given):
    with anndata.settings.override(zarr_write_format=3):
        given.atlas().write_zarr(given.folder / "atlas.zarr")
    return given.folder / "atlas.zarr"


def zipped(given):
    store = zarr(given)
    with zipfile.ZipFile(given.folder / "atlas.zarr.zip", "w") as archive:
        for path in sorted(store.rglob("*")):
            if path.is_file():
                archive.write(path, str(path.relative_to(store)))
    return given.folder / "atlas.zarr.zip"


def mudata(given):
    with h5py.File(given.folder / "a.h5mu", "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
        write_elem(file, "mod/rna", given.atlas())
        write_elem(file, "mod/prot", anndata.AnnData(given.counts[:, :3] * 9))
    return given.folder / "a.h5mu"


def tenx_h5(version):
    def write(given):
        given.write_tenx_h5(given.folder / "a.h5", given.counts, given.columns, version, 3 * (version == 3))
        return given.folder / "a.h5"

    return write


def folder(dialect):
    return lambda given: dialect(given.folder / "run", given.counts, given.columns, given.cells)


def table(sep, *, by_cell):
    def write(given):
        frame = pd.DataFrame(given.counts.toarray().astype(int), index=given.cells, columns=given.columns)
        (frame if by_cell else frame.T).to_csv(given.folder / "counts.csv.gz", sep=sep)
        return given.folder / "counts.csv.gz"

    return write


def loom(given):
    test_loom.write_loom(given.folder / "a.loom", given.counts, given.columns)
    return given.folder / "a.loom"


ROWS = [
    ("AnnData file, whatever its suffix", "counts in `layers/counts`, `raw`, `X` or another layer", [
        anndata_file("a.h5ad"), anndata_file("GSE1_matrix.h5")], "all of the file is kept in the copy"),
    ("AnnData in Zarr 2 or 3, a folder or a `.zarr.zip`", "the same", [zarr, zipped], ""),
    ("MuData `.h5mu`", "the modality `rna`", [mudata], "what is left out is said"),
    ("Cell Ranger `.h5`, also CellBender's", "gene expression", [tenx_h5(2), tenx_h5(3)],
     "`--genome` of several; the human one otherwise"),
    ("Cell Ranger folder, plain or gzipped; GEO's files with the sample before or behind their names",
     "one dataset a sample", [folder(test_market.ten_x)], "or one of the `.mtx` files"),
    ("STARsolo, old and new", "unique counts", [folder(test_market.starsolo), folder(test_market.old_starsolo)],
     "the banner may be missing; `UniqueAndMult-*` is left aside"),
    ("kallisto-bustools `cells_x_genes.*`", "all counts, else spliced ones", [folder(test_market.kallisto)], ""),
    ("alevin-fry `quants_mat.*`", "spliced and ambiguous counts", [folder(test_market.alevin)], ""),
    ("Parse `count_matrix.mtx` or `DGE.mtx`", "cells by genes", [folder(test_market.parse)],
     "columns of `cell_metadata.csv` are `obs`"),
    ("EBI `.mtx_rows`, `.mtx_cols`; portals' `genes.tsv`, `cells.tsv`", "either way round",
     [folder(test_market.ebi), folder(test_market.portal)], "told by the lengths of the name tables"),
    ("Count table `.csv`, `.tsv`, `.txt`, `.gct`, plain or gzipped", "genes or cells in rows",
     [table(",", by_cell=True), table("\t", by_cell=False)], "as pandas, R and featureCounts write it"),
    ("Loom", "`matrix`, or a layer", [loom], "`row_attrs` name genes, `col_attrs` are `obs`"),
]  # fmt: skip


class Given:
    """What the builders write from."""

    def __init__(self, folder, atlas, counts, columns, write_tenx_h5):
        self.folder, self.atlas, self.counts, self.columns = folder, atlas, counts, columns
        self.write_tenx_h5, self.cells = write_tenx_h5, [f"c{row}" for row in range(counts.shape[0])]


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row[0][:30] for row in ROWS])
def test_every_row_is_read(number, tmp_path, atlas, counts, columns, expected, write_tenx_h5, plan_of):
    for at, build in enumerate(ROWS[number][2]):
        place = tmp_path / f"in{at}"
        place.mkdir()
        plan = plan_of(build(Given(place, atlas, counts, columns, write_tenx_h5)))
        if needs_staging(plan):
            plan = stage(plan, str(place / "staged"), 20)
        shard = read_shard(plan, 0, 50, min_genes=1, n_slots=60)
        assert (shard.counts.toarray() == expected).all()
        assert len(find_sources([plan.source.uri])) == 1


def test_readme_has_the_table():
    table = HEAD + "".join(f"| {given} | {read} | {also} |\n" for given, read, _, also in ROWS)
    assert table in README.read_text(), table
