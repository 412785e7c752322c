import json
import pickle

import numpy as np
import pytest
from scipy import sparse

from cellray.errors import CountsError, GeneError, MissingKeyError
from cellray.ingest import read_rows


@pytest.fixture
def normalised(counts):
    return sparse.csr_matrix(np.log1p(counts.toarray() / counts.sum(axis=1).A1[:, None] * 1e4).astype(np.float32))


def write(atlas, path, **parts):
    layers, raw, var = parts.pop("layers", {}), parts.pop("raw", None), parts.pop("columns", {})
    adata = atlas(**parts)
    adata.layers.update(layers)
    for name, values in var.items():
        adata.var[name] = values
    if raw is not None:
        adata.raw = atlas(raw)
    adata.write_h5ad(path)
    return path


def test_counts_layer_comes_before_raw_and_x(atlas, counts, normalised, plan_of, tmp_path):
    path = write(
        atlas, tmp_path / "a.h5ad", x=normalised, layers={"counts": counts, "other": normalised}, raw=counts * 2
    )
    plan = plan_of(path)
    assert (plan.layer, plan.layout) == ("layers/counts", "csr")
    assert plan.layer_reason == f"layers/counts: 100 % of {counts.nnz:,} sampled values are integers"
    assert (read_rows(plan, 0, plan.n_cells).counts != counts).nnz == 0


def test_raw_comes_before_x_and_has_its_own_genes(atlas, counts, normalised, plan_of, tmp_path, columns):
    path = write(atlas, tmp_path / "a.h5ad", x=normalised[:, :30], var=columns[30:], raw=counts)
    plan = plan_of(path)
    assert (plan.layer, plan.n_columns) == ("raw.X", 60)
    assert plan.slots.tolist() == [*range(55), -1, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("asked", "layer"),
    [("X", "X"), ("raw", "raw.X"), ("raw.X", "raw.X"), ("mine", "layers/mine"), ("layers/mine", "layers/mine")],
)
def test_layer_as_asked(atlas, counts, plan_of, tmp_path, asked, layer):
    path = write(atlas, tmp_path / "a.h5ad", layers={"mine": counts, "counts": counts}, raw=counts)
    assert plan_of(path, layer=asked).layer == layer


def test_no_raw_counts_says_what_was_looked_at(atlas, normalised, plan_of, tmp_path):
    path = write(atlas, tmp_path / "liver.h5ad", x=normalised, layers={"soup": normalised})
    with pytest.raises(CountsError) as caught:
        plan_of(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: no raw counts: X holds ")
    assert (
        "integers (looks normalised), no raw.X, no layers['counts'] (there is also layers/soup); pass --layer" in text
    )


def test_asked_layer_that_is_normalised_or_absent(atlas, normalised, plan_of, tmp_path):
    path = write(atlas, tmp_path / "a.h5ad", layers={"soup": normalised})
    with pytest.raises(CountsError, match="'soup' holds"):
        plan_of(path, layer="soup")
    with pytest.raises(MissingKeyError, match=r"'spliced' \(has: X, layers/soup\)"):
        plan_of(path, layer="spliced")


def test_empty_matrix_is_no_counts(atlas, plan_of, tmp_path):
    path = write(atlas, tmp_path / "a.h5ad", x=sparse.csr_matrix((10, 60), dtype=np.float32))
    with pytest.raises(CountsError, match="X is empty"):
        plan_of(path)


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("bad", ["start", "middle", "end"])
def test_the_sample_reaches_the_whole_matrix(atlas, plan_of, tmp_path, layout, bad):
    """A tenth of a large matrix is normalised, wherever it lies: that is no count matrix."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(2, (6000, 60)).astype(np.float32)
    rows = {"start": slice(0, 600), "middle": slice(2600, 3200), "end": slice(5400, 6000)}[bad]
    dense[rows] *= 0.37
    x = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}[layout](dense)
    with pytest.raises(CountsError, match=r"[89][0-9] % integers"):
        plan_of(write(atlas, tmp_path / "a.h5ad", x=x))


def test_best_gene_column_wins(atlas, columns, plan_of, tmp_path):
    symbols = [f"GENE{n}" if n < 50 else "" for n in range(60)]
    extra = {"symbol": symbols, "versioned": [f"{name}.3" for name in columns], "number": np.arange(60)}
    path = write(atlas, tmp_path / "a.h5ad", var=[f"v{n}" for n in range(60)], columns=extra)
    plan = plan_of(path)
    assert (plan.gene_key, plan.gene_kind, plan.n_genes_known) == ("versioned", "ensembl", 55)
    plan = plan_of(path, gene_key="symbol")
    assert (plan.gene_key, plan.gene_kind, plan.n_genes_known) == ("symbol", "symbol", 50)
    with pytest.raises(MissingKeyError, match=r"'feature' is not there \(has: index, symbol, versioned\)"):
        plan_of(path, gene_key="feature")


@pytest.mark.parametrize("categorical", [True, False])
def test_gene_column_with_repeats(atlas, plan_of, tmp_path, categorical):
    """anndata turns a text column with repeats into a categorical; missing values are unknown genes."""
    names = [f"GENE{n % 30}" for n in range(59)] + [None if categorical else ""]
    path = tmp_path / "a.h5ad"
    adata = atlas(var=[f"v{n}" for n in range(60)])
    adata.var["symbol"] = names
    adata.var["symbol"] = adata.var["symbol"].astype("category" if categorical else "str")
    adata.write_h5ad(path)
    assert plan_of(path).slots.tolist() == [*range(30), *range(29), -1]


def test_no_or_little_gene_overlap(atlas, columns, plan_of, tmp_path):
    path = write(atlas, tmp_path / "none.h5ad", var=[f"v{n}" for n in range(60)])
    with pytest.raises(GeneError, match=r"none\.h5ad: only 0 of the model's 60 genes.*--gene-key"):
        plan_of(path)
    path = write(atlas, tmp_path / "few.h5ad", var=columns[:5] + [f"v{n}" for n in range(55)])
    with pytest.raises(GeneError, match="only 5 of"):
        plan_of(path)
    path = write(atlas, tmp_path / "some.h5ad", var=columns[:20] + [f"v{n}" for n in range(40)])
    plan = plan_of(path)
    assert plan.overlap == pytest.approx(20 / 60)
    assert len(plan.warnings) == 1
    assert "20 of the model's 60 genes" in plan.warnings[0]


def test_small_panel_overlap_is_measured_on_the_panel(atlas, counts, columns, plan_of, tmp_path):
    plan = plan_of(write(atlas, tmp_path / "a.h5ad", x=counts[:, :25], var=columns[:25]))
    assert plan.overlap == 1
    assert plan.warnings == ()


def test_plan_is_picklable_and_describes_itself_in_json(atlas, plan_of, tmp_path):
    plan = plan_of(write(atlas, tmp_path / "a.h5ad", names=["twice", "twice", *map(str, range(48))]))
    copy = pickle.loads(pickle.dumps(plan))
    assert copy.describe() == json.loads(json.dumps(plan.describe()))
    assert plan.describe()["n_renamed"] == 1
    assert plan.describe()["layout"] == "csr"
    assert len(plan.content_hash) == 64


def test_x_may_be_absent(atlas, counts, plan_of, tmp_path):
    adata = atlas(layers={"counts": counts})
    adata.X = None
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert plan_of(tmp_path / "a.h5ad").layer == "layers/counts"
    with pytest.raises(MissingKeyError, match=r"has: layers/counts"):
        plan_of(tmp_path / "a.h5ad", layer="X")
