"""The content decides on the format; what is not read is named, with the file to give instead."""

import gzip
import io
import shutil
import tarfile
import zipfile

import anndata
import h5py
import numpy as np
import pytest
from anndata.io import write_elem

from cellray.errors import InputError, ReadError
from cellray.ingest import find_sources, read_rows


def kind(path):
    (source,) = find_sources([str(path)])
    return source.kind


@pytest.mark.parametrize("form", ["h5ad-csr", "tenx3", "tenx2"])
@pytest.mark.parametrize("suffix", [".h5", ".h5ad", ".hdf5", ".loom", ".h5mu", ".data", ""])
def test_hdf5_whatever_its_suffix(dataset, plan_of, counts, tmp_path, form, suffix):
    path = dataset(tmp_path, form).rename(tmp_path / f"GSE1_matrix{suffix}")
    assert kind(path) == ("h5ad" if form == "h5ad-csr" else "10x_h5")
    assert (read_rows(plan_of(path), 0, 50).counts != counts).nnz == 0


def test_mudata(atlas, counts, plan_of, tmp_path):
    path = tmp_path / "a.h5mu"
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
        for name in ("prot", "rna"):
            write_elem(file, f"mod/{name}", atlas() if name == "rna" else anndata.AnnData(counts[:, :3] * 9))
    plan = plan_of(path)
    assert plan.source.kind == "h5mu"
    assert plan.notes == ("modality 'rna' is read; left out: prot",)
    assert (read_rows(plan, 0, 50).counts != counts).nnz == 0
    with h5py.File(path, "a") as file:
        file.move("mod/rna", "mod/spatial")
    with pytest.raises(ReadError, match=r"no modality is called 'rna' \(there are: prot, spatial\); write the one"):
        plan_of(path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_zipped_zarr(dataset, plan_of, counts, tmp_path, nested, version):
    path = dataset(tmp_path, f"zarr{version}-csr")
    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                archive.write(file, f"a.zarr/{file.relative_to(path)}" if nested else str(file.relative_to(path)))
    plan = plan_of(tmp_path / "b.zarr.zip")
    assert (plan.source.kind, plan.source.dataset_id) == ("zarr_zip", "b")
    assert (read_rows(plan, 0, 50).counts != counts).nnz == 0


def test_a_zarr_folder_of_any_name(dataset, tmp_path):
    path = dataset(tmp_path, "zarr3-csr").rename(tmp_path / "atlas_v2")
    assert kind(path) == "zarr"


def archive(path):
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("matrix.mtx")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))


def zipped(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("matrix.mtx.gz", "x")


def hdf5(**datasets):
    def write(path):
        with h5py.File(path, "w") as file:
            for name, value in datasets.items():
                file[name] = value

    return write


def content(data):
    return lambda path: path.write_bytes(data)


REFUSED = [
    (
        "molecule_info.h5",
        hdf5(barcode_idx=[1], umi=[1], count=[1], gem_group=[1]),
        "give filtered_feature_bc_matrix.h5",
    ),
    ("a.h5seurat", hdf5(**{"assays/RNA": [1], "cell.names": [1]}), "SeuratDisk::Convert"),
    ("weights.h5", hdf5(layer=[1]), "neither AnnData, MuData, 10x nor loom (it has: layer)"),
    ("a.h5ad.gz", content(gzip.compress(b"\x89HDF\r\n\x1a\n" + bytes(100))), "gunzip 'a.h5ad.gz'"),
    ("a.rds", content(gzip.compress(b"X\n\0\0\0\2")), "zellkonverter::writeH5AD"),
    ("counts.txt.gz", content(gzip.compress(b"RDX3\nX\n")), "R objects"),
    ("a.tar.gz", archive, "unpack it (tar -xf)"),
    ("GSE1_RAW", archive, "unpack it (tar -xf)"),
    ("a.zip", zipped, "it holds matrix.mtx.gz"),
    ("a.h5ad", content(b"<!DOCTYPE html><html>404"), "the download failed"),
    ("a.cloupe", content(b"\1\2"), "filtered_feature_bc_matrix.h5"),
    ("a.bam", content(gzip.compress(b"BAM\1")), "count"),
    ("reads.fastq.gz", content(gzip.compress(b"@r\nACGT\n+\nFFFF\n")), "count"),
    ("a.xlsx", zipped, "save the counts as .csv"),
    ("a.parquet", content(b"PAR1" + bytes(10)), "write_h5ad"),
    ("notes.txt", content(b"These are my notes.\nNothing to see.\n"), "no table of counts"),
    ("a.pdf", content(b"%PDF-1.7 ..."), "'.pdf'"),
]


@pytest.mark.parametrize(("name", "write", "says"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_is_not_read_says_what_to_give(tmp_path, name, write, says):
    write(tmp_path / name)
    with pytest.raises(InputError) as caught:
        find_sources([str(tmp_path / name)])
    text = str(caught.value)
    assert says in text
    assert name in text
    assert "\n" not in text
    assert caught.value.exit_code == 2


def test_a_folder_of_runs_names_what_is_below_it(dataset, tmp_path):
    for run in ("p1", "p2"):
        (tmp_path / "in" / run / "outs").mkdir(parents=True)
        shutil.copy(dataset(tmp_path, "tenx3"), tmp_path / "in" / run / "outs" / "filtered_feature_bc_matrix.h5")
    with pytest.raises(InputError) as caught:
        find_sources([str(tmp_path / "in")])
    assert f"for example '{tmp_path}/in/p1/outs/filtered_feature_bc_matrix.h5'" in str(caught.value)
    assert [one.dataset_id for one in find_sources([f"{tmp_path}/in/*/outs/*.h5"])] == ["p1", "p2"]


def test_a_filter_that_is_not_installed_is_named(dataset, plan_of, tmp_path):
    """An HDF5 dataset whose values need a filter of an unknown number; nothing is damaged."""
    path = dataset(tmp_path, "h5ad-csr")
    with h5py.File(path, "a") as file:
        values = file["X/data"][:]
        del file["X/data"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((len(values),))
        properties.set_filter(32_999, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((len(values),))
        h5py.h5d.create(file["X"].id, b"data", h5py.h5t.IEEE_F32LE, space, properties)
        assert file["X/data"].shape == values.shape
    with pytest.raises(ReadError) as caught:
        plan_of(path)
    assert "'X/data' is compressed by the HDF5 filter unknown (32999), which is not installed" in str(caught.value)
    assert "pip install hdf5plugin" in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_values_compressed_with_zstd(atlas, counts, plan_of, tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    atlas().write_h5ad(tmp_path / "a.h5ad", compression=hdf5plugin.FILTERS["zstd"])
    assert np.array_equal(read_rows(plan_of(tmp_path / "a.h5ad"), 0, 50).counts.toarray(), counts.toarray())
