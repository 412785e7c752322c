"""The annotated copy: anndata reads it, the input's content is all there, and X is never held in memory."""

import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import zarr
from anndata import Raw

from cellray import schema, storage, write
from cellray.errors import WriteError

MakePart = Callable[..., pa.Table]
WriteResults = Callable[[str, list[pa.Table]], write.Results]
COLUMNS = [schema.OBS_PREFIX + name for name in schema.OBS_COLUMNS]
N = 10


def make_adata(x: Any) -> ad.AnnData:
    """Return ten cells with one element of every kind that an AnnData file can hold."""
    rng = np.random.default_rng(0)
    n_vars = x.shape[1]
    adata = ad.AnnData(
        x,
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical(["a", "b"] * 5, categories=["b", "a", "unused"], ordered=True),
                "name": [f"n-{i}" for i in range(N)],
                "flag": pd.array([True, None] * 5, dtype="boolean"),
                "depth": rng.random(N),
            },
            index=[f"cell-{i}" for i in range(N)],
        ),
        var=pd.DataFrame({"symbol": [f"é{i}" for i in range(n_vars)]}, index=[f"ENSG{i:05d}" for i in range(n_vars)]),
        uns={"title": "a title", "n": 3, "nothing": {}, "list": ["x", "y"], "table": pd.DataFrame({"v": [1, 2]})},
        obsm={"X_pca": rng.random((N, 3)), "sparse": sp.random(N, 4, 0.5, "csr", rng=rng)},
        obsp={"connectivities": sp.random(N, N, 0.3, "csr", rng=rng)},
        layers={"counts": sp.random(N, n_vars, 0.2, "csc", rng=rng)},
    )
    adata.uns["records"] = np.array([("g1", 0.5), ("g2", 0.25)], dtype=[("names", "U8"), ("scores", "f4")])
    adata.raw = adata.copy()
    return adata


@pytest.fixture(params=["csr", "csc", "dense"])
def adata(request: pytest.FixtureRequest) -> ad.AnnData:
    x = sp.random(N, 20, 0.3, "csr", np.float32, rng=np.random.default_rng(1))
    return make_adata({"csr": x, "csc": x.tocsc(), "dense": x.toarray()}[request.param])


def read(path: str | Path) -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata on old formats
        return ad.read_h5ad(path)


def check(copy: ad.AnnData, original: ad.AnnData, results: write.Results) -> None:
    """Check that ``copy`` is ``original`` and the results, and nothing else."""
    table = pq.read_table(results.annotations_uri).to_pandas()
    assert list(copy.obs.columns) == [*original.obs.columns, *COLUMNS]
    rejected = table[schema.STATUS].to_numpy() == "rejected"
    assert 0 < rejected.sum() < len(rejected)
    for name in schema.OBS_COLUMNS:
        column, wanted = copy.obs[schema.OBS_PREFIX + name], table[name]
        if name in (schema.SCORE, schema.MARGIN):
            assert column.dtype == np.float32
            np.testing.assert_array_equal(column, wanted)
            assert np.array_equal(column.isna(), rejected)
        else:
            assert isinstance(column.dtype, pd.CategoricalDtype)
            assert list(column.cat.categories) == sorted(set(wanted.dropna()))
            assert [v if isinstance(v, str) else None for v in column] == list(wanted)
    embedding = copy.obsm[schema.OBSM_LANGCELL]
    assert embedding.dtype == np.float32
    stored = np.concatenate(
        [write.read_part(uri)[schema.EMBEDDING].drop_null().to_pylist() for uri in results.part_uris]
    )
    np.testing.assert_array_equal(embedding[~rejected], stored)
    assert np.isnan(embedding[rejected]).all()
    record = copy.uns[schema.UNS_KEY]
    assert set(record) == {"run_id", "schema_version", "alpha", "labels", "versions"}
    assert (record["run_id"], record["schema_version"], record["versions"]) == ("r1", 1, {"a": "1"})
    assert list(record["labels"]) == ["B cell", "T cell", "monocyte"]

    bare = copy.copy()
    bare.obs = bare.obs.drop(columns=COLUMNS)
    del bare.obsm[schema.OBSM_LANGCELL], bare.uns[schema.UNS_KEY]
    assert_same(bare, original)


def assert_same(one: Any, two: Any) -> None:
    """Check that two elements of an AnnData have the same type and content."""
    assert type(one) is type(two) or isinstance(one, Mapping)
    if isinstance(one, ad.AnnData | Raw):
        for name in ("X", "obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers", "raw"):
            assert_same(getattr(one, name, None), getattr(two, name, None))
    elif isinstance(one, Mapping):
        assert set(one) == set(two)
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, two)
    elif sp.issparse(one):
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        assert (one != two).nnz == 0
    else:
        np.testing.assert_array_equal(one, two, strict=isinstance(one, np.ndarray))


def test_h5ad(root: str, tmp_path: Path, adata: ad.AnnData, results: write.Results) -> None:
    source, out = storage.join(root, "in.h5ad"), storage.join(root, "out", "copy.h5ad")
    adata.write_h5ad(tmp_path / "in.h5ad")
    storage.put(source, (tmp_path / "in.h5ad").read_bytes())
    write.annotate_h5ad(source, out, results)
    with storage.local_copy(out) as path:
        check(read(path), read(tmp_path / "in.h5ad"), results)
    assert storage.read_bytes(source) == (tmp_path / "in.h5ad").read_bytes()
    assert storage.list_files(storage.join(root, "out")) == ["copy.h5ad"]


def test_columns_of_an_earlier_run_are_replaced(tmp_path: Path, adata: ad.AnnData, results: write.Results) -> None:
    adata.obs["cellray_of_old"] = 1
    adata.write_h5ad(tmp_path / "a")
    write.annotate_h5ad(str(tmp_path / "a"), str(tmp_path / "b"), results)
    write.annotate_h5ad(str(tmp_path / "b"), str(tmp_path / "c"), results)
    del adata.obs["cellray_of_old"]
    adata.write_h5ad(tmp_path / "plain")
    check(read(tmp_path / "c"), read(tmp_path / "plain"), results)
    with h5py.File(tmp_path / "c") as file:
        assert "cellray_of_old" not in file["obs"]


def test_bare_h5ad(tmp_path: Path, results: write.Results) -> None:
    ad.AnnData(np.zeros((N, 2), np.float32)).write_h5ad(tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "in.h5ad", "r+") as file:
        del file["obsm"], file["uns"]
    write.annotate_h5ad(str(tmp_path / "in.h5ad"), str(tmp_path / "out.h5ad"), results)
    check(read(tmp_path / "out.h5ad"), ad.AnnData(np.zeros((N, 2), np.float32)), results)


def test_all_cells_rejected(tmp_path: Path, make_part: MakePart, write_results: WriteResults) -> None:
    ad.AnnData(np.zeros((N, 2), np.float32)).write_h5ad(tmp_path / "in.h5ad")
    results = write_results(str(tmp_path), [make_part(np.zeros(N, bool))])
    write.annotate_h5ad(str(tmp_path / "in.h5ad"), str(tmp_path / "out.h5ad"), results)
    copy = read(tmp_path / "out.h5ad")
    assert copy.obs["cellray_cell_type"].isna().all()
    assert list(copy.obs["cellray_status"]) == ["rejected"] * N


def test_compound_obs_of_anndata_before_0_7(tmp_path: Path, results: write.Results) -> None:
    path = tmp_path / "in.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = np.zeros((N, 2), np.float32)
        obs = [(f"cell-{i}".encode(), i % 2, i / 2, b"a name") for i in range(N)]
        file["obs"] = np.array(obs, [("index", "S8"), ("cluster", "i1"), ("depth", "f8"), ("name", "S8")])
        file["var"] = np.array([(b"g0", 1), (b"g1", 0)], [("index", "S8"), ("biotype", "i1")])
        file["obsm"] = np.array([((i, i),) for i in range(N)], [("X_pca", "f4", (2,))])
        file["uns/cluster_categories"] = np.array([b"x", b"y"])
        file["uns/biotype_categories"] = np.array([b"coding", b"other"])
    original = read(path)
    assert list(original.obs["cluster"][:2]) == ["x", "y"]
    write.annotate_h5ad(str(path), str(tmp_path / "out.h5ad"), results)
    copy = read(tmp_path / "out.h5ad")
    for name in ("cluster_categories", "biotype_categories"):  # harmless leftovers
        copy.uns.pop(name)
    original.obs.index.name = copy.obs.index.name
    check(copy, original, results)


def test_dataframes_of_anndata_0_7(tmp_path: Path, results: write.Results) -> None:
    path = tmp_path / "in.h5ad"
    ad.AnnData(np.zeros((N, 2), np.float32)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        obs.attrs["column-order"] = np.array(["cluster", "depth"], h5py.string_dtype())
        obs["__categories/cluster"] = np.array(["x", "y"], h5py.string_dtype())
        obs["cluster"] = np.arange(N, dtype=np.int8) % 2
        obs["cluster"].attrs["categories"] = obs["__categories/cluster"].ref
        obs["depth"] = np.arange(N) / 2
    original = read(path)
    assert list(original.obs["cluster"][:2]) == ["x", "y"]
    write.annotate_h5ad(str(path), str(tmp_path / "out.h5ad"), results)
    check(read(tmp_path / "out.h5ad"), original, results)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr(tmp_path: Path, adata: ad.AnnData, results: write.Results, zarr_format: int) -> None:
    with ad.settings.override(zarr_write_format=zarr_format), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr on strings in format 3
        adata.write_zarr(tmp_path / "in.zarr", chunks=(3, 7) if isinstance(adata.X, np.ndarray) else None)
    assert zarr.open_group(tmp_path / "in.zarr", mode="r").metadata.zarr_format == zarr_format
    write.annotate_zarr(str(tmp_path / "in.zarr"), str(tmp_path / "out.h5ad"), results)
    adata.write_h5ad(tmp_path / "same.h5ad")
    check(read(tmp_path / "out.h5ad"), read(tmp_path / "same.h5ad"), results)


def test_zarr_of_many_chunks(tmp_path: Path, results: write.Results) -> None:
    group = zarr.open_group(tmp_path / "in.zarr", mode="w")
    x = np.arange(N * 7, dtype=np.float32).reshape(N, 7)
    names = np.array([f"name-{i}" for i in range(N)])
    ad.io.write_elem(group, "/", ad.AnnData(x))
    for name, values, chunks in (("obsm/odd", x, (3, 2)), ("layers/tall", x, (4, 7))):
        array = group.create_array(name, shape=x.shape, dtype=x.dtype, chunks=chunks)
        array[:] = values
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    text = group.create_array("uns/names", shape=names.shape, dtype=names.dtype, chunks=(3,))
    text[:] = names
    text.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    write.annotate_zarr(str(tmp_path / "in.zarr"), str(tmp_path / "out.h5ad"), results)
    copy = read(tmp_path / "out.h5ad")
    for values in (copy.X, copy.obsm["odd"], copy.layers["tall"]):
        np.testing.assert_array_equal(values, x)
    assert list(copy.uns["names"]) == list(names)


def test_zarr_on_s3(s3: str, tmp_path: Path, results: write.Results) -> None:
    adata = make_adata(sp.csr_matrix(np.eye(N, 3, dtype=np.float32)))
    adata.write_zarr(tmp_path / "in.zarr")
    storage.filesystem(s3)[0].put(str(tmp_path / "in.zarr"), f"{s3}/in.zarr", recursive=True)
    write.annotate_zarr(f"{s3}/in.zarr", f"{s3}/out.h5ad", results)
    adata.write_h5ad(tmp_path / "same.h5ad")
    with storage.local_copy(f"{s3}/out.h5ad") as path:
        check(read(path), read(tmp_path / "same.h5ad"), results)


@pytest.mark.parametrize("cuts", [[], [1], [4, 4, 9]])
def test_build(tmp_path: Path, results: write.Results, cuts: list[int]) -> None:
    x = sp.random(N, 5, 0.4, "csr", rng=np.random.default_rng(2))
    x.data = np.round(x.data * 9)
    obs = pd.DataFrame(index=[f"cell-{i}" for i in range(N)])
    var = pd.DataFrame({"symbol": list("abcde")}, index=[f"ENSG{i}" for i in range(5)])
    edges = [0, *cuts, N]
    blocks = ((list(obs.index[i:j]), x[i:j]) for i, j in pairwise(edges))
    obs["batch"] = [f"b{i % 2}" for i in range(N)]
    write.build_h5ad(blocks, var, str(tmp_path / "out.h5ad"), results, {"batch": list(obs["batch"])})
    check(read(tmp_path / "out.h5ad"), ad.AnnData(x.astype(np.float32), obs=obs, var=var), results)


def test_blocks_of_another_shape_are_refused(tmp_path: Path, results: write.Results) -> None:
    var, out = pd.DataFrame(index=["g0", "g1"]), tmp_path / "out"
    for shapes, n_names, message in (
        ([(N, 3)], N, "3 genes, var has 2"),
        ([(4, 2), (6, 2)], 5, "counts of 10 cells and names of 9"),
        ([(4, 2), (5, 2)], 5, "10 cells, the dataset has 9"),
    ):
        names = [f"cell-{i}" for i in range(n_names)]
        blocks = [(names[: shape[0]], sp.csr_matrix(shape, dtype=np.float32)) for shape in shapes]
        with pytest.raises(WriteError, match=message):
            write.build_h5ad(blocks, var, str(out / "out.h5ad"), results)
    assert list(out.iterdir()) == []


def test_results_of_other_cells_are_refused(
    tmp_path: Path, make_part: MakePart, write_results: WriteResults, results: write.Results
) -> None:
    source, out = tmp_path / "in.h5ad", tmp_path / "out"
    ad.AnnData(np.zeros((N, 2), np.float32)).write_h5ad(source)
    short = write_results(str(tmp_path / "short"), [make_part(np.ones(N - 1, bool))])
    uris = list(results.part_uris)
    wrong = {
        "9 cells, the dataset has 10": short,
        "part files hold 8 cells": write.Results(results.annotations_uri, uris[:2], {}),
        "does not hold": write.Results(results.annotations_uri, uris[::-1], {}),
        "does not hold 4 of 10 cells": write.Results(results.annotations_uri, [*uris, uris[0]], {}),
    }
    for message, these in wrong.items():
        with pytest.raises(WriteError, match=message):
            write.annotate_h5ad(str(source), str(out / "out.h5ad"), these)
    assert list(out.iterdir()) == []


def test_damaged_input_leaves_nothing(tmp_path: Path, results: write.Results) -> None:
    source, out = tmp_path / "in.h5ad", tmp_path / "out"
    ad.AnnData(np.zeros((N, 2), np.float32)).write_h5ad(source)
    source.write_bytes(source.read_bytes()[:1000])
    for uri in (str(source), str(tmp_path / "none.h5ad")):
        with pytest.raises(WriteError, match=r"out\.h5ad"):
            write.annotate_h5ad(uri, str(out / "out.h5ad"), results)
    assert list(out.iterdir()) == []


def test_links_out_of_the_file_are_not_written_through(tmp_path: Path, results: write.Results) -> None:
    source, other = tmp_path / "in.h5ad", tmp_path / "other.h5ad"
    ad.AnnData(np.zeros((N, 2), np.float32)).write_h5ad(source)
    shutil.copy(source, other)
    before = other.read_bytes()
    with h5py.File(source, "r+") as file:
        del file["obs"]
        file["obs"] = h5py.ExternalLink(str(other), "/obs")
    with pytest.raises(WriteError, match="'obs' is a link out of the file"):
        write.annotate_h5ad(str(source), str(tmp_path / "out.h5ad"), results)
    assert other.read_bytes() == before


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    env = os.environ | {"MALLOC_PERTURB_": "165"}  # memory that was never written to must not look like zeros
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_full_disk(tmp_path: Path, results: write.Results) -> None:
    """A limit on file sizes stands for a full disk. HDF5 must survive it wherever it strikes."""
    adata = ad.AnnData(np.zeros((N, 3000), np.float32))
    adata.write_h5ad(tmp_path / "in.h5ad")
    adata.write_zarr(tmp_path / "in.zarr")
    script = """
        import resource, signal, sys
        import numpy as np, pandas as pd, scipy.sparse as sp
        from cellray import write
        from cellray.errors import WriteError

        folder, annotations, *parts = sys.argv[1:]
        results = write.Results(annotations, parts, {})
        names, var = [str(i) for i in range(10)], pd.DataFrame(index=np.arange(3000).astype(str))
        out = f"{folder}/out/out.h5ad"

        def built():
            return write.build_h5ad([(names, sp.csr_matrix(np.random.rand(10, 3000)))], var, out, results)

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (100, *range(5_000, 200_000, 9_000), 1_000_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            for make in (
                lambda: write.annotate_h5ad(f"{folder}/in.h5ad", out, results),
                lambda: write.annotate_zarr(f"{folder}/in.zarr", out, results),
                built,
            ):
                try:
                    make()
                    print("done")
                except WriteError as error:
                    assert "\\n" not in str(error)
                    assert "too large" in str(error), error
                    print("failed")
    """
    told = run(script, tmp_path, results.annotations_uri, *results.part_uris).split()
    assert (told[:3], told[-3:]) == (["failed"] * 3, ["done"] * 3)
    assert told.count("failed") > 20
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["out.h5ad"]


def test_memory_does_not_grow_with_x(tmp_path: Path, make_part: MakePart, write_results: WriteResults) -> None:
    """200 cells and 1,200, in blocks of 20: X grows by 100 MB when dense, by 200 MB when sparse."""
    n_vars, rows, sizes = 25_000, 20, (200, 1200)
    block = np.ones((rows, n_vars), np.float32)
    for n_cells in sizes:
        folder = tmp_path / str(n_cells)
        write_results(str(folder), [make_part(np.ones(n_cells, bool))])
        ad.AnnData(shape=(n_cells, n_vars)).write_h5ad(folder / "in.h5ad")
        ad.AnnData(shape=(n_cells, n_vars)).write_zarr(folder / "in.zarr")
        with h5py.File(folder / "in.h5ad", "r+") as file:
            x = file.create_dataset("X", (n_cells, n_vars), np.float32)
            store = zarr.open_group(folder / "in.zarr", mode="r+")
            y = store.create_array("X", shape=(n_cells, n_vars), dtype=np.float32, chunks=(rows, n_vars))
            for start in range(0, n_cells, rows):
                x[start : start + rows] = y[start : start + rows] = block
            for array in (x, y):
                array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    script = """
        import sys
        from pathlib import Path
        import numpy as np, pandas as pd, scipy.sparse as sp
        from cellray import write

        def peak(n_cells):
            folder = Path(sys.argv[1], str(n_cells))
            parts = [str(path) for path in folder.glob("part-*")]
            results = write.Results(str(folder / "annotations.parquet"), parts, {})
            var, names = pd.DataFrame(index=np.arange(n_vars).astype(str)), np.arange(n_cells).astype(str)
            block = sp.csr_matrix(np.ones((rows, n_vars), np.float32))
            blocks = ((names[at : at + rows].tolist(), block.copy()) for at in range(0, n_cells, rows))
            write.annotate_h5ad(str(folder / "in.h5ad"), str(folder / "a.h5ad"), results)
            write.annotate_zarr(str(folder / "in.zarr"), str(folder / "b.h5ad"), results)
            write.build_h5ad(blocks, var, str(folder / "c.h5ad"), results)
            status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with that of the parent
            return int(status.split("VmHWM:")[1].split()[0]) / 1024

        n_vars, rows, few, many = map(int, sys.argv[2:])
        print(-peak(few) + peak(many))
    """
    growth_mib = float(run(script, tmp_path, n_vars, rows, *sizes))
    assert growth_mib < 50
    with h5py.File(tmp_path / "1200" / "b.h5ad") as copied, h5py.File(tmp_path / "1200" / "c.h5ad") as built:
        assert copied["X"][-1].sum() == n_vars
        assert built["X/data"].shape == (1200 * n_vars,)


def test_reader_that_fails_leaves_nothing(tmp_path: Path, results: write.Results) -> None:
    def blocks() -> Iterator[tuple[list[str], sp.csr_matrix]]:
        yield [f"cell-{i}" for i in range(N)], sp.csr_matrix((N, 2), dtype=np.float32)
        raise OSError("the reader failed")

    var = pd.DataFrame(index=["g0", "g1"])
    with pytest.raises(WriteError, match="the reader failed"):
        write.build_h5ad(blocks(), var, str(tmp_path / "out" / "out.h5ad"), results)
    assert list((tmp_path / "out").iterdir()) == []
