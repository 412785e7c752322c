"""The pre-training job on a local Ray: it learns, survives a killed worker, and leaves a model that annotates."""

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cellray.errors import SettingError
from cellray.models import checkpoints
from cellray.train.config import HoldOut, PretrainConfig
from cellray.train.corpus import Corpus, Sampler, held_out
from cellray.train.pretrain import Average, train
from cellray.train.programs import Programs
from cellray.train.terms import Terms
from jobs import pretrain
from jobs.bench.synthetic import TYPES, write_cells
from tests.killing import Stopped, Stopping, killed_worker

SIZES = {"hidden": 16, "layers": 2, "heads": 2, "ffn": 32, "dropout": 0.1}
CONFIG = {
    "name": "small",
    "sets": [{"file": "cells.h5ad", "label_key": "cell_type_ontology_term_id", "hold_out": {"fraction": 0.25}}],
    "min_gene_cells": 2,
    "text_vocab": 300,
    "cell": {**SIZES, "max_tokens": 32},
    "text": {**SIZES, "max_tokens": 16},
    "steps": 120,
    "matching_steps": 20,
    "warmup_steps": 5,
    "batch_cells": 32,
    "learning_rate": 5e-3,
    "checkpoint_steps": 10,
}
# Whole programs of this few made-up genes are whole cell types: a model must not learn to ignore them.
TRAINED = {**CONFIG, "programs_off": 0, "programs_on": 0}

PROGRAMS = Programs(np.vstack([np.zeros((2, 8)), np.random.default_rng(0).normal(size=(48, 8)), np.zeros((1, 8))]), 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_cells(folder / "cells.h5ad", 400, 200, 40)
    (folder / "config.yaml").write_text(yaml.safe_dump(TRAINED))
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, ray):
    """The model that the job leaves when its worker is killed meanwhile."""
    out = tmp_path_factory.mktemp("trained")
    places = ["--data", data, "--out", out / "model", "--runs", out / "runs"]
    with killed_worker(out / "runs") as killed:
        assert pretrain.main([str(part) for part in ("--config", data / "config.yaml", *places, "--threads", 1)]) == 0
    assert killed
    return out / "model"


def test_it_learns(trained, data, capsys):
    from jobs.bench import mini

    given = [
        "--data",
        data,
        "--config",
        data / "config.yaml",
        "--model",
        trained,
        "--label-key",
        CONFIG["sets"][0]["label_key"],
    ]
    assert mini.main([*map(str, given), "--independent", "cells.h5ad", "--json"]) == 0
    rows = yaml.safe_load(capsys.readouterr().out)
    assert rows[0]["model_accuracy"] > 0.6  # four types: chance is 0.25
    assert rows[0]["cells"] < 150


def test_the_model_folder_is_whole(trained):
    loaded = checkpoints.load(str(trained))
    assert {label["term_id"] for label in loaded.labels} == set(TYPES.values())
    assert (loaded.genes["median"].to_numpy() > 0).all()


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_stops_or_is_killed_ends_as_if_it_had_not(data, trained, tmp_path):
    # The vocabulary is that of the job: the library breaks ties at random.
    given, _ = pretrain.langcell_input(PretrainConfig.read(data / "config.yaml"), data, trained.parent / "runs")
    with pytest.raises(Stopped):
        train(given, Stopping(tmp_path, 5))
    rest = Stopping(tmp_path)
    found, expected = train(given, rest).state_dict(), train(given).state_dict()
    assert rest.checkpoints == 14 - 5
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    killed = load_file(trained / "model.safetensors")
    assert killed.keys() == expected.keys()
    assert all(tensor.equal(expected[name].half()) for name, tensor in killed.items())


def test_batches_depend_on_the_step_alone():
    rng = np.random.default_rng(0)
    corpus = Corpus(
        rng.integers(2, 50, 600).astype(np.uint16),
        np.arange(0, 601, 20),
        rng.integers(0, 3, 30),
        np.zeros(30, int),
        np.arange(30) < 10,
    )
    lines = {"a": {"a", "top"}, "b": {"b", "top"}, "c": {"c"}, "top": {"top"}}
    terms = Terms.build(["a", "b", "c"], lambda term: frozenset(lines[term]), 0.9)
    sampler = Sampler(corpus, terms, PretrainConfig(**CONFIG), 50, PROGRAMS)
    first, again, other = sampler.batch(0, 7), sampler.batch(0, 7), sampler.batch(0, 8)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert first.ids.shape != other.ids.shape or (first.ids != other.ids).any()
    assert (first.relations[np.arange(len(first.target)), first.target] == 1).all()
    assert (first.ids[:, 0] == 50).all()
    assert not corpus.held_out[sampler.usable].any()


@pytest.mark.parametrize("admixture", [0.0, 0.8])
def test_foreign_genes_are_mixed_in_as_often_as_asked(admixture):
    """Two kinds of cells without a gene in common: a foreign gene can only have been mixed in."""
    low, high = np.arange(2, 26), np.arange(26, 50)
    flat = np.concatenate([np.tile(low, 15), np.tile(high, 15)]).astype(np.uint16)
    kind = np.arange(30) // 15
    corpus = Corpus(flat, np.arange(0, 721, 24), kind, np.zeros(30, int), np.zeros(30, bool))
    terms = Terms.build(["a", "b"], lambda term: frozenset({term}), 0.9)
    given = {**CONFIG, "admixture": admixture, "panel_share": 0, "mask_share": 0, "ancestor_share": 0}
    given |= {"programs_off": 0, "programs_on": 0}
    given["cell"] = {**SIZES, "max_tokens": 64}
    batch = Sampler(corpus, terms, PretrainConfig(**given), 50, PROGRAMS).batch(0, 0)
    foreign = np.where(batch.target[:, None] == 0, batch.ids >= 26, (batch.ids > 1) & (batch.ids < 26))[:, 1:].sum(1)
    own = (batch.ids > 1).sum(1) - 1 - foreign
    assert (own == 24).all()
    assert (len(set(foreign)) > 3) == (admixture > 0)


def test_programs_are_switched():
    """Two programs of 100 genes each, orthogonal; the cell has genes of the first one and some of the second."""
    vectors = np.zeros((203, 4))
    vectors[2:102, 0] = vectors[102:202, 1] = 1
    programs, rng = Programs(vectors, 2), np.random.default_rng(0)
    cell = np.r_[np.arange(2, 62), np.arange(102, 122)].astype(np.uint16)
    for _ in range(20):
        on = programs.on(rng, cell, 150)
        new = on[~np.isin(on, cell)]
        assert len(on) == len(set(on.tolist()))
        assert ((new >= 102) & (new < 202)).all()
        assert 1 <= len(new) <= 80
        np.testing.assert_array_equal(on[np.isin(on, cell)], cell)
        assert np.flatnonzero(~np.isin(on, cell)).max() < len(cell) / 2 + len(new)
        off = programs.off(rng, cell)
        gone = cell[~np.isin(cell, off)]
        assert len(off) >= 20
        assert len(gone) == 0 or (gone < 102).all() or (gone >= 102).all()


def test_the_average_forgets_where_training_began():
    model = torch.nn.Linear(1, 1)
    average = Average(model, 0.9)
    for value in [5.0, *[1.0] * 100]:
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.model.weight.item() == pytest.approx(1.0, abs=0.02)
    torch.nn.init.constant_(model.weight, 2.0)
    average.update_parameters(model)
    assert average.model.weight.item() == pytest.approx(1.1, abs=0.02)


def test_holding_out_depends_on_names_alone():
    names = [f"cell{number}" for number in range(2000)]
    flags = held_out(HoldOut(fraction=0.2), names, None)
    assert 0.17 < flags.mean() < 0.23
    np.testing.assert_array_equal(held_out(HoldOut(fraction=0.2), names[::-1], None), flags[::-1])
    groups = ["x", "y", "x"]
    assert held_out(HoldOut(key="donor", values=("x",)), names[:3], groups).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("change", "says"), [({"stepz": 3}, "stepz"), ({"steps": "many"}, "steps"), ({"panel_share": 2}, "panel_share")]
)
def test_a_wrong_configuration(tmp_path, change, says):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **change}))
    with pytest.raises(SettingError, match=says):
        PretrainConfig.read(path)


def test_missing_data_is_one_line(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TRAINED))
    assert pretrain.main(["--config", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "--data" in err
    assert err.count("\n") == 1
