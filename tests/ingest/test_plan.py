import json
import pickle

import numpy as np
import pytest
from scipy import sparse

from cellray.errors import CountsError, GeneError, MissingKeyError
from cellray.ingest import needs_staging, read_rows, read_shard, stage


@pytest.fixture
def normalised(counts):
    """Log-normalised values of which no counts can be made: genes were scaled as well."""
    scaled = counts.toarray() / counts.sum(axis=1).A1[:, None] * 1e4 * np.linspace(0.5, 2, 60)
    return sparse.csr_matrix(np.log1p(scaled).astype(np.float32))


@pytest.fixture
def log_counts(counts):
    """Log-normalised values as scanpy makes them."""
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
    assert "integers (looks normalised), no raw.X, no layers['counts'] (there is also layers/soup); " in text
    assert "pass --layer with the name of the raw counts" in text
    assert "--allow-normalised" in text


def test_asked_layer_that_is_normalised_or_absent(atlas, normalised, plan_of, tmp_path):
    path = write(atlas, tmp_path / "a.h5ad", layers={"soup": normalised})
    with pytest.raises(CountsError, match="'soup' holds"):
        plan_of(path, layer="soup")
    with pytest.raises(MissingKeyError, match=r"'spliced' \(has: X, layers/soup\)"):
        plan_of(path, layer="spliced")


def test_the_only_other_layer_of_integers_is_taken_and_said(atlas, counts, normalised, plan_of, tmp_path):
    path = write(atlas, tmp_path / "a.h5ad", x=normalised, layers={"raw_counts": counts, "soup": normalised})
    plan = plan_of(path)
    assert plan.layer == "layers/raw_counts"
    assert plan.notes[0].startswith("layers/raw_counts is taken: the only matrix of whole numbers")
    path = write(atlas, tmp_path / "b.h5ad", x=normalised, layers={"spliced": counts, "unspliced": counts})
    with pytest.raises(CountsError, match=r"several layers hold whole numbers \(layers/spliced, layers/unspliced\)"):
        plan_of(path)


@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_counts_computed_back_from_logs(atlas, counts, log_counts, plan_of, tmp_path, layout):
    path = write(atlas, tmp_path / "a.h5ad", x=layout(log_counts.toarray()))
    plan = plan_of(path)
    assert "computed back from the smallest step of each cell" in plan.notes[0]
    if needs_staging(plan):
        plan = stage(plan, str(tmp_path / "staged"), 20)
    assert (read_rows(plan, 0, 50).counts != counts).nnz == 0
    assert plan.describe()["conversion"] == "log1p"
    assert plan_of(path, layer="X").layer_reason == plan.layer_reason


def test_nearly_whole_counts_are_rounded_and_said(atlas, counts, plan_of, tmp_path):
    near = counts.copy()
    near.data = (near.data * np.float32(1.0000001) + np.float32(2e-5)).astype(np.float32)
    plan = plan_of(write(atlas, tmp_path / "a.h5ad", x=near))
    assert plan.notes == ("values of X are whole numbers to within 1e-3 and are rounded",)
    assert (read_rows(plan, 0, 50).counts != counts).nnz == 0


def test_decimals_are_rounded_when_asked(atlas, counts, normalised, plan_of, tmp_path):
    decimals = counts.copy() * 9
    decimals.data = decimals.data - np.float32(0.2)
    path = write(atlas, tmp_path / "a.h5ad", x=normalised, layers={"soupX": decimals})
    with pytest.raises(CountsError, match="pass --layer soupX --round"):
        plan_of(path)
    with pytest.raises(CountsError, match="add --round to --layer soupX"):
        plan_of(path, layer="soupX")
    plan = plan_of(path, layer="soupX", round_values=True)
    assert plan.notes == ("decimals of layers/soupX are rounded to whole counts, as asked",)
    assert (read_rows(plan, 0, 50).counts != counts * 9).nnz == 0


def test_normalised_values_when_allowed(atlas, counts, normalised, plan_of, tmp_path):
    path = write(atlas, tmp_path / "a.h5ad", x=normalised)
    plan = plan_of(path, allow_normalised=True)
    assert "taken as proportions, as allowed" in plan.notes[0]
    shard = read_shard(plan, 0, 50, min_genes=1, n_slots=60)
    assert shard.reject_codes == [None] * 50
    np.testing.assert_allclose(read_rows(plan, 0, 50).counts.toarray(), np.expm1(normalised.toarray()), rtol=1e-5)
    scaled = normalised.toarray() - normalised.toarray().mean(0)
    path = write(atlas, tmp_path / "b.h5ad", x=scaled)
    for layer in (None, "X"):
        with pytest.raises(CountsError, match=r"looks scaled: it has negative values.*nothing can be made of scaled"):
            plan_of(path, layer=layer, allow_normalised=True)


def test_missing_values_are_named(atlas, counts, plan_of, tmp_path):
    dense = counts.toarray()
    dense[:20, :4] = np.nan
    plan = plan_of(write(atlas, tmp_path / "a.h5ad", x=dense))
    assert 'anndata.concat(join="outer")' in plan.warnings[0]
    assert "fill_value=0" in plan.warnings[0]


def test_no_cells(atlas, plan_of, tmp_path):
    path = write(atlas, tmp_path / "a.h5ad", x=sparse.csr_matrix((0, 60), dtype=np.float32))
    with pytest.raises(CountsError, match=r"a\.h5ad: there are no cells in it"):
        plan_of(path)


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
    assert "20 of the model's 60 genes (33.3%) are there, with 3" in plan.warnings[0]  # of equal genes a third


def test_few_of_the_models_genes_are_warned_of_however_small_the_panel(atlas, counts, columns, plan_of, tmp_path):
    plan = plan_of(write(atlas, tmp_path / "a.h5ad", x=counts[:, :10], var=columns[:10]))
    assert plan.overlap == 1
    assert len(plan.warnings) == 1
    assert "10 of the model's 60 genes (16.7%) are there, with 100% of a typical cell's counts" in plan.warnings[0]


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
