"""Numbers of a run against the truth, on folders made by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from cellray import storage
from cellray.errors import ReadError, SettingError
from cellray.report import evaluate, evaluation_table, write_report

NAMES = ["B cell", "T cell", "monocyte"]
TERMS = ["CL:0000236", "CL:0000084", "CL:0000576"]
#        annotated x 6                                          rejected  abstained  no truth, outside
TRUTH = ["B cell", "B cell", "T cell", "T cell", "monocyte", "monocyte", "B cell", "T cell", None, "hepatocyte"]
BEFORE = [0, 1, 1, 2, 2, 0, -1, 1, 0, 0]
AFTER = [0, 0, 1, 2, 2, 2, -1, -2, 0, 0]


def cells(before, after, **more):
    return {"before": before, "after": after, **more}


def test_counts_and_metrics_of_a_hand_made_run(make_run):
    out = make_run({"one": cells(BEFORE, AFTER, obs={"truth": pd.Categorical(TRUTH)})})
    result = evaluate(out, "truth")
    overall = result["overall"]
    assert json.loads(json.dumps(result)) == result
    assert {name: overall[name] for name in overall if name.startswith("n_")} == {
        "n_cells": 10,
        "n_annotated": 8,
        "n_with_truth": 9,
        "n_scored": 6,
        "n_rejected_with_truth": 1,
        "n_abstained_with_truth": 1,
    }
    assert overall["outside"] == {"hepatocyte": 1}
    assert overall["coverage"] == pytest.approx(6 / 9)
    assert overall["before"]["accuracy"] == pytest.approx(3 / 6)
    assert overall["after"]["accuracy"] == pytest.approx(5 / 6)
    assert overall["after"]["macro_f1"] == pytest.approx((1 + 2 / 3 + 4 / 5) / 3)
    assert overall["after"]["confusion"] == {"labels": NAMES, "matrix": [[2, 0, 0], [0, 1, 1], [0, 0, 2]]}
    assert overall["before"]["confusion"]["matrix"] == [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    assert overall["after"]["graded"]["exact"] == pytest.approx(5 / 6)
    assert sum(overall["after"]["graded"].values()) == pytest.approx(1)
    assert result["datasets"] == [{"dataset_id": "one", **overall}]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=30), st.integers(0, 30))
def test_metrics_are_scikit_learns_and_pooling_is_concatenation(write_run, tmp_path_factory, drawn, cut):
    drawn = np.array(drawn)
    parts = [part for part in (drawn[:cut], drawn[cut:]) if len(part)]
    datasets = {
        f"d{i}": cells(part[:, 1].tolist(), part[:, 2].tolist(), obs={"t": [NAMES[t] for t in part[:, 0]]})
        for i, part in enumerate(parts)
    }
    result = evaluate(write_run(tmp_path_factory.mktemp("run"), datasets), "t")
    for numbers, part in zip([*result["datasets"], result["overall"]], [*parts, drawn], strict=True):
        for when, predicted in (("before", part[:, 1]), ("after", part[:, 2])):
            f1 = f1_score(part[:, 0], predicted, average="macro", zero_division=0)
            assert numbers[when]["accuracy"] == pytest.approx(accuracy_score(part[:, 0], predicted))
            assert numbers[when]["macro_f1"] == pytest.approx(f1)
            present = np.union1d(part[:, 0], predicted)
            matrix = [[int(((part[:, 0] == i) & (predicted == j)).sum()) for j in present] for i in present]
            assert numbers[when]["confusion"] == {"labels": [NAMES[i] for i in present], "matrix": matrix}


@pytest.mark.parametrize("suffix", ["_ontology_term_id", "_ontology_id"])
def test_ontology_ids_find_the_label_and_unknown_is_no_truth(make_run, suffix):
    obs = {"author": ["B lymphos", "mono", "Unknown", ""], f"author{suffix}": [TERMS[0], TERMS[2], "unknown", TERMS[1]]}
    out = make_run({"one": cells([0, 2, 1, 1], [0, 2, 1, 1], obs=obs)})
    overall = evaluate(out, "author")["overall"]
    assert (overall["n_with_truth"], overall["n_scored"], overall["after"]["accuracy"]) == (2, 2, 1.0)


def test_datasets_without_the_column_and_failed_ones_are_skipped_with_the_reason(make_run):
    out = make_run(
        {
            "good": cells([0], [0], obs={"truth": ["B cell"]}),
            "blind": cells([0], [0], obs={"donor": ["d1"]}),
            "bad": {"error": "truncated"},
        }
    )
    result = evaluate(out, "truth")
    assert [dataset["dataset_id"] for dataset in result["datasets"]] == ["good"]
    assert result["skipped"] == [
        {"dataset_id": "blind", "reason": "no obs column 'truth'"},
        {"dataset_id": "bad", "reason": "ReadError: truncated"},
    ]


def test_no_scored_cell_gives_no_shares(make_run):
    out = make_run({"one": cells([0, -1], [0, -1], obs={"truth": ["hepatocyte", "B cell"]})})
    overall = evaluate(out, "truth")["overall"]
    assert overall["n_scored"] == 0
    assert overall["after"] == {
        "accuracy": None,
        "macro_f1": None,
        "confusion": {"labels": [], "matrix": []},
        "graded": {},
    }
    evaluation_table(evaluate(out, "truth"))


def test_an_unknown_key_lists_the_columns(make_run):
    out = make_run({"one": cells([0], [0], obs={"donor": ["d1"], "lab": ["x"]})})
    with pytest.raises(SettingError, match=r"'truth' \(columns: donor, lab\)"):
        evaluate(out, "truth")


def test_a_folder_without_a_run_is_a_setting_error(tmp_path):
    with pytest.raises(SettingError, match=r"holds no readable run\.json"):
        evaluate(str(tmp_path), "truth")


def test_a_dataset_of_other_settings_is_not_trusted(make_run, tmp_path):
    out = make_run({"one": cells([0], [0], obs={"truth": ["B cell"]})})
    path = tmp_path / "out" / "run.json"
    path.write_text(path.read_text().replace("4e" * 32, "77" * 32))
    with pytest.raises(SettingError, match="no finished dataset"):
        evaluate(out, "truth")


def test_a_missing_h5ad_names_the_file(make_run, tmp_path):
    out = make_run({"one": cells([0], [0], obs={"truth": ["B cell"]})})
    (tmp_path / "out" / "one.h5ad").unlink()
    with pytest.raises(ReadError, match=r"one\.h5ad"):
        evaluate(out, "truth")


def test_an_h5ad_of_another_length_is_refused(make_run, tmp_path):
    out = make_run({n: cells([0] * i, [0] * i, obs={"truth": ["B cell"] * i}) for n, i in (("a", 1), ("b", 2))})
    (tmp_path / "out" / "b.h5ad").replace(tmp_path / "out" / "a.h5ad")
    with pytest.raises(ReadError, match="'a': 2 cells in the h5ad, 1 annotated"):
        evaluate(out, "truth")


def test_the_table_holds_the_numbers_and_takes_names_literally(make_run):
    from rich.console import Console

    obs = {"[red]key": ["B cell", "[bold]weird[/bold]", "B cell"]}
    out = make_run({"one": cells([1, 0, 0], [0, 0, 0], obs=obs)})
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(evaluation_table(evaluate(out, "[red]key")))
    text = console.export_text()
    for expected in ("one", "all", "0.667", "0.500", "1.000", "[red]key", "[bold]weird[/bold] (1)"):
        assert expected in text


def test_a_run_is_evaluated_and_reported_where_it_lies(write_run, root):
    out = write_run(f"{root}/run", {"one": cells([1, 1], [0, 1], obs={"truth": ["B cell", "T cell"]})})
    result = evaluate(out, "truth")
    assert (result["overall"]["before"]["accuracy"], result["overall"]["after"]["accuracy"]) == (0.5, 1.0)
    assert b"Against" in storage.read_bytes(write_report(out, evaluation=result))
