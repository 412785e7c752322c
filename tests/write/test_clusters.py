"""One label for each given cluster: majority, ties, clusters and cells without any."""

import numpy as np
import pyarrow as pa
import pytest

from cellray import schema
from cellray.write import label_clusters

LABELS = ["B cell", "T cell", "monocyte"]


def table(labels, scores, start=0, statuses=None):
    rows = [
        {
            schema.ROW: start + at,
            schema.CELL_ID: f"cell-{start + at}",
            schema.CELL_TYPE: label,
            schema.SCORE: score,
            schema.STATUS: statuses[at] if statuses else "annotated" if label else "rejected",
        }
        for at, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=schema.annotations())


def test_the_most_frequent_label_of_the_annotated_cells():
    clusters = np.array(["0", "0", "0", "0", "1", "1", "", "2", "nan"])
    one = table(["T cell", "T cell", "B cell", None], [0.2, 0.2, 0.9, None])
    two = table(["B cell", "monocyte", "T cell", None, "T cell"], [0.4, 0.5, 0.9, None, 0.9], 4)
    found = label_clusters("leiden", clusters, [one, two], LABELS)
    assert found.names == ("0", "1", "2")
    assert found.cell_types == ("T cell", "monocyte", None), "a tie goes to the higher summed score"
    np.testing.assert_allclose(found.shares, [2 / 3, 0.5, np.nan], rtol=1e-6)
    columns = found.columns()
    types = columns["cluster_cell_type"]
    assert list(types.categories) == ["T cell", "monocyte"]
    assert [None if value != value else value for value in types] == [
        *["T cell"] * 4,
        *["monocyte"] * 2,
        None,
        None,
        None,
    ]
    share = columns["cluster_cell_type_share"]
    assert share.dtype == np.float32
    np.testing.assert_allclose(share, [2 / 3] * 4 + [0.5] * 2 + [np.nan] * 3, rtol=1e-6)
    assert found.describe() == {
        "key": "leiden",
        "clusters": [
            {"cluster": "0", "cell_type": "T cell", "share": 0.666667, "n_cells": 4, "n_annotated": 3},
            {"cluster": "1", "cell_type": "monocyte", "share": 0.5, "n_cells": 2, "n_annotated": 2},
            {"cluster": "2", "cell_type": None, "share": None, "n_cells": 1, "n_annotated": 0},
        ],
    }


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_equal_scores_go_by_the_label_set(order):
    names = [["T cell", "B cell"][at] for at in order]
    found = label_clusters("c", np.array(["x", "x"]), [table(names, [0.5, 0.5])], LABELS)
    assert found.cell_types == ("B cell",)


def test_abstained_cells_do_not_vote_and_no_cluster_is_no_fault():
    part = table([None, "B cell"], [None, 0.5], statuses=["abstained", "annotated"])
    found = label_clusters("c", np.array(["x", "x"]), [part], LABELS)
    assert (found.cell_types, found.n_annotated.tolist(), found.shares.tolist()) == (("B cell",), [1], [1.0])
    none = label_clusters("c", np.array(["", "nan"]), [part], LABELS)
    assert none.names == ()
    assert none.columns()["cluster_cell_type"].isna().all()
    assert np.isnan(none.columns()["cluster_cell_type_share"]).all()
