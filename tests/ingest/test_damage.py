"""Broken, hostile and mistaken files end in one line that names them, and allocate nothing."""

import os
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cellray.errors import GeneError, ReadError
from cellray.ingest import count_rejects, matrix, read_rows


@pytest.fixture
def h5ad(dataset, tmp_path):
    return dataset(tmp_path, "h5ad-csr")


def refused(plan_of, path, says):
    with pytest.raises(ReadError) as caught:
        count_rejects(plan_of(path), min_genes=1, n_slots=60)
    text = str(caught.value)
    assert says in text
    assert str(path) in text
    assert "fetch or write it again" in text
    assert "\n" not in text


def test_not_hdf5(plan_of, tmp_path):
    path = tmp_path / "a.h5ad"
    path.write_text("cell,gene\n" * 1000)
    refused(plan_of, path, "file signature not found")
    path.write_bytes(b"")
    refused(plan_of, path, "a.h5ad")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated(plan_of, h5ad, share):
    os.truncate(h5ad, int(h5ad.stat().st_size * share))
    refused(plan_of, h5ad, "truncated")


@pytest.mark.parametrize("name", ["obs", "var", "X/data", "X/indices", "X/indptr", "obs/_index", "var/_index"])
def test_missing_part(plan_of, h5ad, name):
    with h5py.File(h5ad, "a") as file:
        del file[name]
    refused(plan_of, h5ad, f"'{name.rpartition('/')[2] if name.startswith(('obs', 'var')) else name}' is missing")


@settings(
    max_examples=40, phases=[Phase.reuse, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 50), value=st.integers(-(2**40), 2**40) | st.integers(0, 3000))
def test_broken_indptr(plan_of, dataset, tmp_path, position, value):
    path = dataset(tmp_path, "h5ad-csr")
    with h5py.File(path, "a") as file:
        indptr = file["X/indptr"][:].astype(np.int64)
        low = indptr[position - 1] if position else 0
        high = indptr[position + 1] if position < 50 else indptr[50]
        sane = low <= value <= high and position not in (0, 50) and value - low <= 60 and high - value <= 60
        sane |= value == indptr[position]
        indptr[position] = value
        del file["X/indptr"]
        file["X/indptr"] = indptr
    if sane:
        plan_of(path)
    else:
        refused(plan_of, path, "X/indptr")


@pytest.mark.parametrize("index", [-1, 60, 2**31 - 1])
def test_column_number_outside_the_matrix(plan_of, h5ad, index):
    with h5py.File(h5ad, "a") as file:
        file["X/indices"][100] = index
    refused(plan_of, h5ad, "X/indices points outside the matrix")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"shape": (10**15, 60)}, "out of range"),
        ({"shape": (50, 10**15)}, "out of range"),
        ({"shape": (49, 60)}, "claims 49 x 60"),
        ({"shape": (50, 61)}, "50 x 61, but there are 50 cells and 60 genes"),
        ({"data": 10**13}, "claims 50 x 60"),
        ({"data": 10**13, "indices": 10**13}, "X/indptr ends at"),
        ({"indptr": 10**13}, "claims 50 x 60"),
    ],
)
def test_hostile_sizes_allocate_nothing(plan_of, h5ad, parts, says):
    with h5py.File(h5ad, "a") as file:
        group = file["X"]
        for name, size in parts.items():
            if name == "shape":
                group.attrs["shape"] = np.array(size)
            else:
                del group[name]
                group.create_dataset(name, (size,), "i4", chunks=(1 << 16,))
    refused(plan_of, h5ad, says)


def test_hostile_number_of_cells_and_genes(plan_of, h5ad):
    with h5py.File(h5ad, "a") as file:
        del file["obs/_index"], file["X"]
        file["obs"].create_dataset("_index", (10**12,), h5py.string_dtype(), chunks=(1 << 16,))
        file.create_dataset("X", (10**12, 60), "f4", chunks=(1 << 10, 60))
    refused(plan_of, h5ad, "out of range")


@pytest.mark.parametrize("kind", ["external link", "external data", "virtual"])
def test_other_files_of_the_machine_are_not_read(plan_of, h5ad, counts, tmp_path, kind):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["values"] = np.asarray(counts.data)
    with h5py.File(h5ad, "a") as file:
        n = len(file["X/data"])
        del file["X/data"]
        if kind == "external link":
            file["X/data"] = h5py.ExternalLink(str(other), "values")
        elif kind == "external data":
            file["X"].create_dataset("data", (n,), "f4", external=[(str(other), 0, 4 * n)])
        else:
            layout = h5py.VirtualLayout((n,), "f4")
            layout[:] = h5py.VirtualSource(str(other), "values", (n,))
            file["X"].create_virtual_dataset("data", layout)
    refused(plan_of, h5ad, "another file" if kind != "external link" else "link to another file")


def test_hostile_number_of_categories(plan_of, h5ad):
    with h5py.File(h5ad, "a") as file:
        group = file["var"].create_group("symbol")
        group["codes"] = np.zeros(60, np.int8)
        group.create_dataset("categories", (10**13,), h5py.string_dtype(), chunks=(1 << 16,))
        group.attrs["encoding-type"] = "categorical"
        file["var"].attrs["column-order"] = ["symbol"]
    refused(plan_of, h5ad, "/var/symbol/categories holds 10,000,000,000,000 names")


def test_text_where_numbers_belong(plan_of, h5ad):
    with h5py.File(h5ad, "a") as file:
        n = len(file["X/data"])
        del file["X/data"]
        file["X/data"] = np.array([b"1"] * n)
    refused(plan_of, h5ad, "numbers of the right kind")


@pytest.mark.parametrize("form", ["zarr2-csr", "zarr3-csr"])
def test_incomplete_zarr_copy(plan_of, dataset, tmp_path, form):
    path = dataset(tmp_path, form)
    data = path / "X" / "data"
    (data / "0").unlink() if form == "zarr2-csr" else shutil.rmtree(data / "c")
    refused(plan_of, path, "X/data lacks 1 of its 1 chunks")


def test_zarr_that_is_none(plan_of, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    refused(plan_of, tmp_path / "a.zarr", "group")


def test_zarr_with_pickled_chunks_runs_no_code(plan_of, dataset, tmp_path):
    import json
    import pickle

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = dataset(tmp_path, "zarr2-csr")
    for name in (path / "X" / "data", path / "obs" / "_index"):
        meta = json.loads((name / ".zarray").read_text()) | {
            "filters": [{"id": "pickle", "protocol": 5}],
            "compressor": None,
        }
        (name / ".zarray").write_text(json.dumps(meta))
        (name / "0").write_bytes(pickle.dumps(Harm()))
    (path / ".zmetadata").unlink(missing_ok=True)
    refused(plan_of, path, "pickle")
    assert not (tmp_path / "harm").exists()


def test_tenx_h5(plan_of, dataset, write_tenx_h5, counts, columns, tmp_path):
    path = tmp_path / "a.h5"
    write_tenx_h5(path, counts, columns)
    with h5py.File(path, "a") as file:
        file["matrix/features/genome"] = [b"GRCh38"]
    refused(plan_of, path, "features/genome has 1 entries, but there are 60 features")
    write_tenx_h5(path, counts, columns)
    with h5py.File(path, "a") as file:
        file["matrix/shape"][0] = 61
    refused(plan_of, path, "shape says (61, 50)")
    write_tenx_h5(path, counts, columns, n_antibodies=2)
    with h5py.File(path, "a") as file:
        file["matrix/features/feature_type"][:] = b"Antibody"
    with pytest.raises(GeneError, match=r"no feature of type 'Gene Expression' \(types: Antibody"):
        plan_of(path)


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("matrix.mtx", lambda text: text[: len(text) // 2].rpartition("\n")[0] + "\n12", "NA values"),
        ("matrix.mtx", lambda text: text.replace("integer", "complex"), "does not start with"),
        ("matrix.mtx", lambda text: "\n".join(text.splitlines()[:-1]), "announces"),
        ("matrix.mtx", lambda text: text + "61 1 3\n", "row number points outside the matrix"),
        ("matrix.mtx", lambda text: text + "0 1 3\n", "row number points outside the matrix"),
        ("matrix.mtx", lambda text: text + "1 51 3\n", "column number points outside the matrix"),
        ("matrix.mtx", lambda text: text + "1 one 3\n", "one"),
        ("matrix.mtx", lambda text: text + "1 1\n", "announces 2345 entries, but holds 2346"),
        ("barcodes.tsv", lambda text: text + "more\n", "barcodes.tsv 51 lines"),
        ("genes.tsv", lambda text: text + "more\tmore\n", "gene table"),
        ("genes.tsv", lambda text: "", "gene table"),
    ],
)
def test_mtx_folder(plan_of, write_mtx, counts, columns, tmp_path, name, edit, says):
    write_mtx(tmp_path / "a", counts, columns, version=2)
    path = tmp_path / "a" / name
    path.write_text(edit(path.read_text()))
    refused(plan_of, tmp_path / "a", says)


def test_mtx_folder_without_barcodes_and_with_a_cut_gzip(plan_of, write_mtx, counts, columns, tmp_path):
    write_mtx(tmp_path / "a", counts, columns, version=3)
    path = tmp_path / "a" / "matrix.mtx.gz"
    os.truncate(path, path.stat().st_size // 2)
    refused(plan_of, tmp_path / "a", "ended before")
    (tmp_path / "a" / "barcodes.tsv.gz").unlink()
    with pytest.raises(ReadError, match=r"no table of barcodes \(barcodes\.tsv\) for matrix\.mtx\.gz"):
        plan_of(tmp_path / "a")


def test_indptr_is_checked_in_blocks(plan_of, h5ad, monkeypatch):
    monkeypatch.setattr(matrix, "BLOCK", 7)
    plan = plan_of(h5ad)
    assert read_rows(plan, 0, 50).counts.nnz == plan.matrix.nnz
    with h5py.File(h5ad, "a") as file:
        file["X/indptr"][28] = 10**6
    refused(plan_of, h5ad, "X/indptr is broken at position 28")
