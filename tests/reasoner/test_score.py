"""Rows against the truth."""

import gzip

import pyarrow as pa
import pytest

from cellray import schema
from cellray.errors import InputError
from cellray.reasoner.score import read_pairs, scored


def rows(*pairs):
    names = (schema.STATUS, schema.ANSWER)
    return pa.table([list(column) for column in zip(*pairs, strict=True)], names=names)


def test_scores_count_what_was_asked():
    table = rows(
        ("annotated", "T cells"),
        ("annotated", "NK cells or T cells"),
        ("annotated", "lymphocyte"),
        ("abstained", ""),
        ("rejected", None),
        ("annotated", "T cell"),
    )
    found = scored(["T cell", "NK cell", "B cell", "B cell", "B cell", "unknown"], table)
    assert found["cells"] == 4
    assert found["graded"] == (1 + 0.25 + 0.5 + 0) / 4
    assert found["exact"] == 0.25
    assert 0 < found["hierarchical_f1"] < 1
    assert scored(["unknown"], rows(("annotated", "T cell"))) == {"cells": 0}


def test_the_published_table_is_looked_up_exactly(tmp_path):
    head = "Ground Truth,Model Prediction,Prediction Evaluation,Evaluation Score"
    text = f"{head}\nNK,NK cells,Subtype correct,1\nNK,T,Incorrect,0\n"
    (tmp_path / "pairs.csv.gz").write_bytes(gzip.compress(text.encode()))
    pairs = read_pairs(str(tmp_path / "pairs.csv.gz"))
    assert pairs == {("NK", "NK cells"): 1.0, ("NK", "T"): 0.0}
    table = rows(("annotated", "NK cells"), ("annotated", "T"), ("annotated", "nk cells"))
    found = scored(["NK", "NK", "NK"], table, pairs)
    assert (found["pairs_known"], found["pairs_score"]) == (pytest.approx(2 / 3), 0.5)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="Ground Truth"):
        read_pairs(str(tmp_path / "other.csv"))


def test_all_of_the_published_table(shared):
    assert len(read_pairs(str(shared / "data" / "cellreasoner" / "pair_scores.csv.gz"))) == 16_485


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mode", "both"], "'direct' or 'reasoning'"),
        (["--form", "hvg_rank"], "hvg_rank needs a list"),
        (["--ranked-genes", "nowhere"], "nowhere"),
        (["--pair-scores", "x.csv"], "give --truth-key too"),
        (["--truth-key", "nothing"], "obs has no 'nothing'"),
        (["--model", "nowhere"], "no config.json"),
    ],
)
def test_a_users_mistake_is_one_line(cells, tmp_path, capsys, monkeypatch, options, says):
    from cellray.cli import main

    arguments = ["cellray", "reason", str(cells), "--model", "mini-cell-o1", "--out", str(tmp_path), *options]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
