"""The plugin jobs, the verbs and annotation with plugins, end to end on a local Ray."""

import json

import anndata
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cellray.cli import app
from cellray.plugins.making import plan_training
from cellray.plugins.reading import Reading, read_labelled
from cellray.plugins.registry import TISSUES, Registry
from cellray.train.plugins import PluginSettings
from cellray.train.plugins import train as train_plugin_here
from jobs import train_plugin, update_plugin
from tests.killing import Stopped, Stopping, killed_worker
from tests.plugins.conftest import version

pytestmark = [pytest.mark.usefixtures("ray"), pytest.mark.timeout(600)]
SMALL = [
    "--experts",
    "2",
    "--rank",
    "2",
    "--classes",
    "6",
    "--epochs",
    "4",
    "--learning-rate",
    "0.01",
    "--threads",
    "1",
]


def job(module, *given):
    return module.main([str(part) for part in given])


def train(world, registry, runs, *more, data=None):
    base = ["--base", world.base, "--registry", registry, "--runs", runs, "--json"]
    return job(train_plugin, "--data", *(data or [world.known]), *base, *SMALL, *more)


LIVER = ["--tissue", "liver", "--hierarchical", "--label-id-key", "cell_type_ontology_term_id", "--donor-key", "donor"]


@pytest.fixture(scope="module")
def donors(world, tmp_path_factory):
    """The known cells with a donor and a tissue each."""
    known = anndata.read_h5ad(world.known)
    known.obs["donor"] = [f"donor{row % 8}" for row in range(known.n_obs)]
    known.obs["tissue"] = np.where(known.obs["cell_type"] == "T cell", "Blood", "liver")
    path = tmp_path_factory.mktemp("donors") / "cells.h5ad"
    known.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def trained(world, ray, donors, tmp_path_factory):
    """A registry with plugins of two tissues, one made in this process, and the one that tells them apart.

    The worker that makes the plugin of liver is killed meanwhile.
    """
    folder = tmp_path_factory.mktemp("jobs")
    registry = Registry(str(folder / "registry"))
    registry.promote("blood", registry.put(version(world, world.known, tissue="blood")))
    with killed_worker(folder / "runs") as killed:
        assert train(world, registry.uri, folder / "runs", *LIVER, data=[donors]) == 0
    assert killed
    two = ["--task", "tissue", "--workers", "2"]
    assert train(world, registry.uri, folder / "runs", *two, data=[donors]) == 0
    return registry


def test_training_stores_and_promotes(trained):
    assert trained.tissues() == ["blood", "liver", TISSUES]
    found = trained.get("liver", trained.promoted("liver"))
    assert found.names == ["B cell", "T cell", "natural killer cell"]
    assert [label["term_id"] for label in found.labels] == ["CL:0000236", "CL:0000084", "CL:0000623"]
    assert found.metrics["accuracy"] > 0.7  # three types: chance is 0.33
    assert found.metrics["n_test"] > 10


def test_whole_donors_are_held_out(trained):
    found = trained.get("liver", trained.promoted("liver"))
    learned, held_out = set(found.replay.groups.tolist()), set(found.held_out.groups.tolist())
    assert len(learned | held_out) == 8
    assert not learned & held_out


def test_two_workers_tell_tissues_apart(trained):
    found = trained.get(TISSUES, trained.promoted(TISSUES))
    assert found.names == ["Blood", "liver"]
    assert found.metrics["accuracy"] > 0.7  # a third of the cells are blood


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_stops_or_is_killed_ends_as_if_it_had_not(world, trained, donors, tmp_path):
    base = world.checkpoint()
    found = read_labelled([str(donors)], base, Reading("cell_type", "cell_type_ontology_term_id", "donor"))
    settings = PluginSettings(n_experts=2, rank=2, n_classes=6, epochs=4, learning_rate=0.01)
    given, _ = plan_training(base, found.cells, settings, hold_out=0.2, by_group=True, term_ids=found.term_ids)
    with pytest.raises(Stopped):
        train_plugin_here(given, Stopping(tmp_path, 2))
    rest = Stopping(tmp_path)
    (stopped, facts), (whole, others) = train_plugin_here(given, rest), train_plugin_here(given)
    assert rest.checkpoints == settings.epochs - 2
    assert facts == others
    killed = trained.get("liver", trained.promoted("liver")).build()
    assert trained.versions("liver") == [trained.promoted("liver")]
    for one, two, three in zip(*(one.parameters() for one in (stopped, whole, killed)), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(two, three)


def update(world, registry, runs, *more):
    given = ["--tissue", "liver", "--new", world.new, "--base", world.base, "--registry", registry, "--runs", runs]
    return job(update_plugin, *given, "--threads", 1, "--json", "--learning-rate", 0.02, "--epochs", 8, *more)


def test_an_update_is_promoted_and_rolled_back(world, trained, tmp_path, capsys):
    before = trained.promoted("liver")
    given = ["--label", "monocyte", "--margin", 0.2]
    assert update(world, trained.uri, tmp_path, *given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["promoted"]
    assert told["class"] == 3
    assert told["new_recall"] > 0.5
    assert trained.promoted("liver") == told["version"]
    assert trained.get("liver", told["version"]).parent == before
    runner = CliRunner()
    shown = json.loads(runner.invoke(app, ["plugins", "show", "liver", "--registry", trained.uri, "--json"]).stdout)
    assert shown["classes"][-1] == "monocyte"
    assert shown["parent"] == before
    assert shown["reserved"] == 2
    assert runner.invoke(app, ["plugins", "rollback", "liver", "--registry", trained.uri]).exit_code == 0
    assert trained.promoted("liver") == before
    listed = runner.invoke(app, ["plugins", "list", "--registry", trained.uri]).stdout
    assert before[:12] in listed
    promoted = runner.invoke(app, ["plugins", "promote", "liver", before[:12], "--registry", trained.uri])
    assert promoted.exit_code == 0
    assert "metrics" in runner.invoke(app, ["plugins", "show", "liver", "--registry", trained.uri]).stdout


def test_a_refused_update_is_stored_and_not_promoted(world, trained, tmp_path, capsys):
    before = trained.promoted("liver")
    assert update(world, trained.uri, tmp_path, "--label", "odd", "--margin", -1) == 3
    told = json.loads(capsys.readouterr().out)
    assert "stored but not promoted: accuracy on known types fell" in told["refused"]
    assert trained.promoted("liver") == before
    assert told["version"] in trained.versions("liver")


@pytest.mark.parametrize(
    ("module", "given", "says"),
    [
        (train_plugin, ["--data", "KNOWN"], "which tissue"),
        (train_plugin, ["--data", "KNOWN", "--tissue", "../x"], "no usable name"),
        (train_plugin, ["--data", "KNOWN", "--tissue", "tissues"], "tissue-assignment"),
        (train_plugin, ["--data", "KNOWN", "--tissue", "x", "--label-key", "nothing"], "obs has no 'nothing'"),
        (train_plugin, ["--data", "KNOWN", "--tissue", "x", "--classes", "2"], "3 labels"),
        (train_plugin, ["--data", "KNOWN", "--tissue", "x", "--base", "mini"], "plugins are of scGPT"),
        (train_plugin, ["--data", "nothing.h5ad", "--tissue", "x"], "nothing.h5ad"),
        (update_plugin, ["--tissue", "brain", "--new", "KNOWN", "--label", "x"], "there is: blood, liver"),
        (
            update_plugin,
            ["--tissue", "liver", "--new", "KNOWN", "--label", "T Cell"],
            "known to the plugin as 'T cell'",
        ),
        (update_plugin, ["--tissue", "liver", "--new", "OTHER", "--label", "x"], "0 of the model's 200 genes"),
        (update_plugin, ["--tissue", "liver", "--new", "KNOWN", "--label", "x", "--hold-out", "2"], "--hold-out is 2"),
    ],
)
def test_a_users_mistake_is_one_line(world, trained, tmp_path, capsys, module, given, says):
    other = tmp_path / "other.h5ad"
    if "OTHER" in given:
        data = anndata.read_h5ad(world.new)
        data.var = data.var.set_axis([f"NONE{number}" for number in range(data.n_vars)])[[]]
        data.write_h5ad(other)
    paths = {"KNOWN": world.known, "OTHER": other}
    base = [] if "--base" in given else ["--base", world.base]
    given = [paths.get(part, part) for part in given]
    assert job(module, *given, *base, "--registry", trained.uri, "--runs", tmp_path) in (1, 2)
    told = capsys.readouterr().err
    assert says in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_a_plugin_of_another_base(world, trained, tmp_path, capsys):
    from jobs.bench.synthetic import write_scgpt

    other = write_scgpt(tmp_path / "other", 200, seed=5)
    given = ["--tissue", "liver", "--new", world.new, "--label", "x", "--base", other, "--registry", trained.uri]
    assert job(update_plugin, *given, "--runs", tmp_path) == 2
    assert "was trained on base 'base'" in capsys.readouterr().err


def test_annotation_with_plugins(world, trained, tmp_path, capsys):
    runner = CliRunner()
    given = ["annotate", str(world.known), "--model", str(world.base), "--plugins", trained.uri, "--refine", "none"]
    done = runner.invoke(app, [*given, "--out", str(tmp_path / "each"), "--json"])
    assert done.exit_code == 0, done.output
    found = anndata.read_h5ad(tmp_path / "each" / "known.h5ad")
    assert np.mean(found.obs["cellray_cell_type"].astype(str) == found.obs["cell_type"].astype(str)) > 0.7
    record = json.loads((tmp_path / "each" / "run.json").read_text())
    assert dict(record["plugins"]["versions"])["blood"] == trained.promoted("blood")
    one = runner.invoke(app, [*given, "--tissue", "liver", "--out", str(tmp_path / "one"), "--json"])
    assert one.exit_code == 0, one.output
    wrong = runner.invoke(app, [*given, "--tissue", "brain", "--out", str(tmp_path / "none")])
    assert "there is no plugin of tissue 'brain'" in str(wrong.exception)
    wrong = runner.invoke(app, ["annotate", str(world.known), "--tissue", "liver", "--out", str(tmp_path / "none")])
    assert "--plugins" in str(wrong.exception)
