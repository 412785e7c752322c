"""Small real files: one count matrix, written in every format and layout that ingest reads."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import io, sparse

from cellray import schema
from cellray.ingest import GeneIndex, find_sources, inspect_dataset

N_GENES = 60
N_CELLS = 50


def ensembl(slot: int) -> str:
    return f"ENSG{slot:011d}"


@pytest.fixture(scope="session")
def genes() -> GeneIndex:
    table = pa.table(
        {
            schema.ENSEMBL_ID: [ensembl(slot) for slot in range(N_GENES)],
            schema.TOKEN: pa.array(range(2, N_GENES + 2), pa.int32()),
            schema.MEDIAN: np.linspace(0.5, 3, N_GENES),
        },
        schema=schema.genes(),
    )
    names = {f"GENE{slot}": ensembl(slot) for slot in range(N_GENES)} | {"NOT-IN-MODEL": "ENSG99999999999"}
    symbols = pa.table({schema.SYMBOL: list(names), schema.ENSEMBL_ID: list(names.values())}, schema=schema.symbols())
    return GeneIndex(table, symbols)


@pytest.fixture(scope="session")
def counts() -> sparse.csr_matrix:
    """50 cells x 60 genes: the first 55 columns are model genes, the last 5 are not; every cell has over 20 genes."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(1.5, (N_CELLS, N_GENES)).astype(np.float32)
    return sparse.csr_matrix(dense)


@pytest.fixture(scope="session")
def columns() -> list[str]:
    return [ensembl(slot) for slot in range(55)] + [f"MT-UNKNOWN{n}" for n in range(5)]


@pytest.fixture(scope="session")
def expected(counts: sparse.csr_matrix) -> np.ndarray:
    """``counts`` in slots: the five unknown columns gone, the last five slots empty."""
    return np.hstack([counts.toarray()[:, :55], np.zeros((N_CELLS, 5), np.float32)])


@pytest.fixture(scope="session")
def atlas(counts: sparse.csr_matrix, columns: list[str]) -> Callable[..., anndata.AnnData]:
    """Return a function that builds an AnnData around a matrix."""

    def build(x: Any = None, var: list[str] | None = None, names: list[str] | None = None, **parts: Any):
        x = counts if x is None else x
        obs = pd.DataFrame(index=names or [f"c{row}" for row in range(x.shape[0])])
        return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=var or columns[: x.shape[1]]), **parts)

    return build


@pytest.fixture
def plan_of(genes: GeneIndex) -> Callable[..., object]:
    """Return a function that inspects a path."""

    def plan(path: object, **options: Any):
        return inspect_dataset(find_sources([str(path)])[0], genes, **options)

    return plan


def _write_tenx_h5(
    path: Path, counts: sparse.csr_matrix, columns: list[str], version: int = 3, n_antibodies: int = 0
) -> None:
    """Write a Cell Ranger file; antibodies are features with large counts between the genes."""
    n_cells = counts.shape[0]
    if n_antibodies:
        counts = sparse.hstack([counts[:, :10], np.full((n_cells, n_antibodies), 500), counts[:, 10:]], format="csr")
        columns = [*columns[:10], *(f"CD{n}" for n in range(n_antibodies)), *columns[10:]]
    types = ["Antibody Capture" if name.startswith("CD") else "Gene Expression" for name in columns]
    by_cell = sparse.csc_matrix(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["data"], group["indices"], group["indptr"] = (
            by_cell.data.astype(np.int32),
            by_cell.indices,
            by_cell.indptr,
        )
        group["shape"] = np.array(by_cell.shape, np.int32)
        group["barcodes"] = np.array([f"c{row}".encode() for row in range(n_cells)])
        text = {"id": columns, "name": [f"SYMBOL{n}" for n in range(len(columns))]}
        if version == 3:
            for name, values in (text | {"feature_type": types}).items():
                group[f"features/{name}"] = np.array([value.encode() for value in values])
        else:
            group["genes"], group["gene_names"] = (np.array([v.encode() for v in text[key]]) for key in ("id", "name"))


def _write_mtx(folder: Path, counts: sparse.csr_matrix, columns: list[str], version: int = 3, seed: int = 0) -> None:
    """Write a 10x folder, its entries in random order; version 3 gzipped and with feature types, version 2 plain."""
    folder.mkdir(parents=True)
    transposed = sparse.coo_matrix(counts.T.astype(np.int64))
    order = np.random.default_rng(seed).permutation(transposed.nnz)
    coordinates = (transposed.row[order], transposed.col[order])
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix((transposed.data[order], coordinates), shape=transposed.shape))
    lines = [f"{name}\tSYMBOL{n}" + "\tGene Expression" * (version == 3) for n, name in enumerate(columns)]
    (folder / ("features.tsv" if version == 3 else "genes.tsv")).write_text("\n".join(lines) + "\n")
    (folder / "barcodes.tsv").write_text("".join(f"c{row}\n" for row in range(counts.shape[0])))
    if version == 3:
        for path in list(folder.iterdir()):
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()


@pytest.fixture(scope="session")
def write_tenx_h5() -> Callable[..., None]:
    return _write_tenx_h5


@pytest.fixture(scope="session")
def write_mtx() -> Callable[..., None]:
    return _write_mtx


@pytest.fixture(scope="session")
def dataset(atlas: Callable, counts: sparse.csr_matrix, columns: list[str]) -> Callable[[Path, str], Path]:
    """Return a function that writes the same cells into ``folder`` in one of ``FORMATS`` and returns the path."""

    def write(folder: Path, form: str) -> Path:
        layouts = {"csc": sparse.csc_matrix, "dense": sparse.csr_matrix.toarray}
        matrix = layouts.get(form.split("-")[-1], sparse.csr_matrix)(counts)
        if form.startswith("h5ad"):
            atlas(matrix).write_h5ad(path := folder / "a.h5ad")
        elif form.startswith("zarr"):
            with anndata.settings.override(zarr_write_format=int(form[4])):
                atlas(matrix).write_zarr(path := folder / "a.zarr")
        elif form.startswith("tenx"):
            _write_tenx_h5(path := folder / "a.h5", counts, columns, int(form[4]), n_antibodies=3 * (form == "tenx3"))
        else:
            _write_mtx(path := folder / "a", counts, columns, int(form[3]))
        return path

    return write
