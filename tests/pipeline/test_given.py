"""What a dataset brings along is checked before any cell is encoded."""

import anndata
import numpy as np
import pandas as pd
import pytest

from cellray.errors import DatasetError, MissingKeyError, RefineError
from cellray.ingest import find_sources
from cellray.labels.candidates import Label
from cellray.pipeline.given import check_given, known_labels
from cellray.settings import AnnotateSettings

LABELS = [Label("T cell", "CL:0000084", ""), Label("natural killer cell", "CL:0000623", "")]


@pytest.fixture
def source(cells, tmp_path):
    data = anndata.read_h5ad(cells)
    n = data.n_obs
    data.obs["known"] = ["T cells", "NK cells", "", "unknown"] * (n // 4)
    data.obs["wrong"] = ["T cells", "Widgets"] * (n // 2)
    data.obs["score"] = np.linspace(0, 1, n)
    data.obs["name"] = [f"cell{row}" for row in range(n)]
    data.obs["donor"] = pd.Categorical([f"d{row % 3}" for row in range(n)])
    data.obs["number"] = np.arange(n) % 4
    data.obs["empty"] = ""
    data.obsm["table"] = pd.DataFrame({"a": np.arange(n), "b": "z"}, index=data.obs_names)
    data.obsm["X_bad"] = np.full((n, 2), np.nan)
    data.obsm["X_good"] = np.zeros((n, 2))
    data.write_h5ad(tmp_path / "a.h5ad")
    return find_sources([str(tmp_path / "a.h5ad")])[0]


def check(source, **given):
    check_given(source, AnnotateSettings.checked(inputs=[source.uri], out="o", **given), LABELS)


@pytest.mark.parametrize(
    "given",
    [
        {"anchor_key": "known"},
        {"graph_batch_key": "donor"},
        {"graph_batch_key": "number"},
        {"cluster_key": "donor"},
        {"use_rep": "X_good"},
        {"graph_batch_key": "score", "refine": "none"},
    ],
)
def test_good_entries(source, given):
    check(source, **given)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (
            {"anchor_key": "wrong"},
            RefineError,
            r"obs\['wrong'\] holds what is no label of this run: 'Widgets' \(24 cells",
        ),
        ({"anchor_key": "nowhere"}, MissingKeyError, "obs has no 'nowhere'"),
        ({"graph_batch_key": "score"}, DatasetError, r"obs\['score'\] holds decimal numbers .*--graph-batch-key"),
        ({"graph_batch_key": "name"}, DatasetError, r"obs\['name'\] holds a value of its own for most cells"),
        ({"cluster_key": "score"}, DatasetError, "no clusters; name a column of clusters for --cluster-key"),
        ({"cluster_key": "name", "refine": "none"}, DatasetError, "no clusters"),
        ({"cluster_key": "empty"}, DatasetError, r"obs\['empty'\] is empty"),
        ({"use_rep": "table"}, DatasetError, r"obsm\['table'\] is a table of columns and no matrix; .*to_numpy\(\)"),
        ({"use_rep": "X_bad"}, RefineError, r"obsm\['X_bad'\] holds values that are missing or infinite"),
    ],
)
def test_what_cannot_be_used_is_named_at_once(source, given, error, says):
    with pytest.raises(error, match=says) as caught:
        check(source, **given)
    assert "np.str_" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert source.uri in str(caught.value)


def test_known_labels_in_usual_names(source):
    known = np.array(["T cells", "NK cells", "", "unknown", "nan", "CL:0000084"])
    assert known_labels(source, "known", known, LABELS).tolist() == [0, 1, -1, -1, -1, 0]
