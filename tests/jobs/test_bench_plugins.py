"""The benchmark of plugins goes through on real cells, at a size that says nothing about accuracy."""

import json

import pytest

from jobs.bench import plugins


@pytest.fixture(scope="module")
def found(shared, tmp_path_factory):
    """The rows of all parts."""
    work = tmp_path_factory.mktemp("work")

    def rows(only, capsys):
        given = ["--data", str(shared / "data"), "--work", str(work), "--only", only, "--new-cells", "10", "30"]
        assert plugins.main([*given, "--small", "--processes", "1", "--json"]) == 0
        return json.loads(capsys.readouterr().out)[only]

    return rows


def test_closed(found, capsys):
    rows = found("closed", capsys)
    methods = ("logistic", "centroid", "frozen", "plugin", "full")
    bases = ("foreign", "unlabelled", "native")
    wanted = {(base, tissue, one) for base in bases for tissue in ("blood", "liver") for one in methods}
    assert {(row["base"], row["tissue"], row["method"]) for row in rows} == wanted
    assert all(0 < row["macro_f1"] <= 1 and 0 < row["accuracy"] <= 1 and row["runs"] == 1 for row in rows)
    again = found("closed", capsys)
    assert again == rows


def test_incremental(found, capsys):
    rows = found("incremental", capsys)
    assert len({row["type"] for row in rows}) == 5
    assert {(row["method"], row["n"]) for row in rows} == {
        ("oracle", "all"),
        *((method, n) for method in ("logistic", "imprint") for n in (10, 30)),
        ("paper", 30),
    }
    assert all(0 <= row["new"] <= 1 for row in rows)
    assert {row["refused"] for row in rows if row["method"] == "imprint"} <= {0.0, 1.0}


@pytest.mark.usefixtures("ray")
def test_serving(found, capsys):
    *by_clients, here = found("serving", capsys)
    assert [row["clients"] for row in by_clients] == [1, 8, 32]
    assert all(row["failed"] == 0 and 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in by_clients)
    assert here["mixed_over_single"] > 0
    assert here["cold_switch_ms"] > 0
