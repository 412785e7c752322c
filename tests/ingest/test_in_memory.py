"""What is read of an AnnData in memory equals what is read of its file: names, text, types, values, neighbours."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.errors import ReadError
from cellray.ingest.memory import AnnDataSource
from cellray.ingest.reader import open_dataset
from cellray.ingest.sources import find_sources


def rich():
    rng = np.random.default_rng(0)
    counts = sparse.random(7, 5, 0.5, "csr", np.float32, rng=rng)
    counts.data = np.ceil(counts.data * 9)
    obs = pd.DataFrame(
        {
            "text": ["a", "b", "c", "d", "e", "f", "g"],
            "holes": ["a", None, "c", "d", "e", "f", "g"],
            "category": pd.Categorical(["x", "y", None, "x", "y", "x", "x"]),
            "numbers": pd.Categorical([1, 2, 1, 2, 1, 2, 1]),
            "float": [0.5, np.nan, 1, 2, 3, 4, 1e20],
            "single": np.array([0.1, 2, 3, 4, 5, 6, 7], np.float32),
            "int": range(7),
            "flag": [True, False] * 3 + [True],
            "nullable": pd.array([1, None, 3, 4, 5, 6, 7], dtype="Int64"),
            "maybe": pd.array([True, None, False, True, True, True, False], dtype="boolean"),
        },
        index=["c0", "c1", "", "c3", "c1", "c5", "7"],
    )
    var = pd.DataFrame(
        {
            "gene_ids": [f"ENSG{n:011d}" for n in range(5)],
            "n": range(5),
            "feature_types": pd.Categorical(["Gene Expression"] * 4 + ["Antibody Capture"]),
            "genome": ["GRCh38"] * 5,
        },
        index=list("ABCDE"),
    )
    adata = anndata.AnnData(counts, obs=obs, var=var)
    adata.raw = anndata.AnnData(sparse.csc_matrix(counts * 2), obs=obs[[]], var=var[["n"]])
    adata.layers["dense"] = counts.toarray() * 3
    adata.layers["by gene"] = sparse.csc_matrix(counts.astype(np.int32))
    adata.obsm["X_pca"] = rng.random((7, 2))
    adata.obsm["sparse"] = sparse.csr_matrix(rng.random((7, 3)))
    adata.obsm["table"] = pd.DataFrame(rng.random((7, 2)), index=obs.index, columns=["one", "two"])
    adata.obsp["joined"] = sparse.csr_matrix(rng.random((7, 7)))
    return adata


@pytest.mark.parametrize("form", ["memory", "view", "backed"])
def test_a_file_says_the_same(tmp_path, form):
    adata = rich()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    (file,) = find_sources([str(tmp_path / "cells.h5ad")])
    given = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r") if form == "backed" else adata
    if form == "view":
        given = adata[::-1][::-1]
        assert given.is_view
    with open_dataset(AnnDataSource.of(given)) as mine, open_dataset(file) as theirs:
        assert mine.n_cells == theirs.n_cells
        assert mine.layers() == theirs.layers() == ["X", "raw.X", "layers/by gene", "layers/dense"]
        assert mine.cell_names(1, 6) == theirs.cell_names(1, 6)
        for kind in ("obs", "obsm", "obsp"):
            assert sorted(mine.keys_beside(kind)) == sorted(theirs.keys_beside(kind))
        for key in theirs.keys_beside("obs"):
            assert mine.obs_column(key) == theirs.obs_column(key), key
        for kind, key in (("obsm", "X_pca"), ("obsp", "joined"), ("obsm", "sparse")):
            np.testing.assert_array_equal(mine.beside(kind, key).toarray(), theirs.beside(kind, key).toarray())
        for layer in theirs.layers():
            assert mine.gene_keys(layer) == theirs.gene_keys(layer)
            assert mine.feature_types(layer) == theirs.feature_types(layer)
            assert mine.genomes(layer) == theirs.genomes(layer)
            for key in theirs.gene_keys(layer):
                assert mine.gene_names(layer, key) == theirs.gene_names(layer, key)
            one, two = mine.matrix(layer), theirs.matrix(layer)
            assert (one.n_cells, one.n_columns) == (two.n_cells, two.n_columns)
            assert one.layout in ("csr", "dense")
            np.testing.assert_array_equal(np.unique(mine.sample(one)), np.unique(theirs.sample(two)))
            if two.layout != "csc":
                for start, stop in ((0, 7), (2, 5), (6, 7)):
                    block = mine.rows(one, start, stop)
                    assert block.has_canonical_format
                    np.testing.assert_array_equal(block.toarray(), theirs.rows(two, start, stop).toarray())
            else:
                whole = np.zeros((7, 5), np.float32)
                for cells, columns, values in theirs.entries(two):
                    whole[cells, columns] = values
                np.testing.assert_array_equal(mine.rows(one, 0, 7).toarray(), whole)
    says = r"adata: obsm\['table'\] is a table of columns"
    with pytest.raises(ReadError, match=says), open_dataset(AnnDataSource.of(given)) as mine:
        mine.beside("obsm", "table")


def test_samples_reach_from_the_first_cell_to_the_last(tmp_path):
    counts = sparse.csr_matrix(np.repeat(np.arange(1, 3001, dtype=np.float32)[:, None], 200, axis=1))
    for given in (counts, counts.toarray()):
        with open_dataset(AnnDataSource.of(anndata.AnnData(given))) as reader:
            values = reader.sample(reader.matrix("X"))
        assert 20_000 < len(values) <= 50_000
        assert (values.min(), values.max()) == (1, 3000)
        assert len(np.unique(values)) > 200


def test_blocks_do_not_share_memory_with_the_object():
    adata = rich()
    before = adata.X.copy()
    with open_dataset(AnnDataSource.of(adata)) as reader:
        for layer in reader.layers():
            block = reader.rows(reader.matrix(layer), 0, 7)
            block.data[:] = -1
        reader.beside("obsp", "joined").data[:] = -1
    assert (before != adata.X).nnz == 0
    assert adata.raw.X.min() >= 0
    assert adata.layers["dense"].min() >= 0
    assert adata.obsp["joined"].min() >= 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: setattr(a, "X", a.X.toarray().astype(object)), r"X holds values of type object"),
        (lambda a: setattr(a, "X", a.X.toarray().astype(complex)), r"X holds values of type complex"),
    ],
)
def test_values_that_are_no_numbers(change, says):
    adata = rich()
    change(adata)
    with pytest.raises(ReadError, match=says) as caught, open_dataset(AnnDataSource.of(adata)) as reader:
        reader.matrix("X")
    assert "damaged" not in str(caught.value)


def test_a_form_that_is_not_read_is_named():
    adata = rich()
    source = AnnDataSource.of(adata)
    source.matrices["X"] = pd.DataFrame(adata.X.toarray())  # anndata itself lets in lazy arrays of optional libraries
    with pytest.raises(ReadError, match=r"adata: X is a DataFrame.*to_memory"), open_dataset(source) as reader:
        reader.matrix("X")
