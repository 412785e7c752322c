"""Pre-training of an scGPT-architecture base: the job makes a base that tells types apart; held-out cells stay out."""

import numpy as np
import pytest
import yaml

from cellray.models import checkpoints
from cellray.plugins.reading import Reading, read_labelled
from cellray.train.config import ScGPTPretrainConfig
from cellray.train.loop import Plan, fit, shuffled
from cellray.train.plugins import split, states_of
from cellray.train.scgpt_corpus import components, prepare_scgpt
from cellray.train.scgpt_pretrain import ScGPTInput, batches
from jobs import pretrain
from jobs.bench.synthetic import write_cells

CONFIG = {
    "architecture": "scgpt",
    "name": "small-scgpt",
    "sets": [
        {"file": "cells.h5ad", "label_key": "cell_type", "hold_out": {"fraction": 0.2}},
        {"file": "more.h5ad", "label_key": None, "hold_out": {"key": "cell_type", "values": ["B cell"]}},
    ],
    "top_genes": 150,
    "sizes": {"hidden": 16, "layers": 2, "heads": 2, "ffn": 32, "max_tokens": 33},
    "epochs": 6,
    "batch_cells": 32,
    "learning_rate": 5e-3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_cells(folder / "cells.h5ad", 300, 200, 40)
    write_cells(folder / "more.h5ad", 100, 180, 40, seed=3)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module")
def corpus(data):
    return prepare_scgpt(ScGPTPretrainConfig(**CONFIG), data)


def test_the_job_makes_a_base_that_tells_types_apart(data, ray, tmp_path):
    from sklearn.linear_model import LogisticRegression

    given = ["--config", data / "config.yaml", "--data", data, "--out", tmp_path / "base", "--runs", tmp_path / "runs"]
    assert pretrain.main([*map(str, given), "--threads", "1"]) == 0
    base = checkpoints.load(str(tmp_path / "base"))
    assert base.labels == []
    assert base.config.gene_choice == "weight"
    cells = read_labelled([str(data / "cells.h5ad")], base, Reading()).cells
    states = states_of(base.build(), cells, None).numpy()
    test = np.logical_or(*split(cells, 0.2, by_group=False))
    probe = LogisticRegression(max_iter=1000).fit(states[~test], cells.labels[~test])
    assert np.mean(probe.predict(states[test]) == cells.labels[test]) > 0.6  # four types: chance is 0.25


def test_held_out_cells_are_in_no_batch_and_choose_no_gene(data, corpus):
    given = ScGPTInput(ScGPTPretrainConfig(**CONFIG), corpus)
    rows = np.concatenate([batch.rows for batch in batches(given, 0, 0, 1)])
    assert not corpus.held_out[rows].any()
    assert corpus.held_out[300:].sum() > 10
    assert set(rows.tolist()) == set(np.flatnonzero(~corpus.held_out).tolist())
    assert (corpus.label[300:] == -1).all()


def test_expression_is_standardised_on_training_cells(corpus):
    values = corpus.targets(np.flatnonzero(~corpus.held_out))
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-2)
    assert values.max() <= 10


def test_components_come_from_training_cells(corpus):
    scores = corpus.scores[~corpus.held_out]
    np.testing.assert_allclose(np.sqrt((scores**2).mean(0)), 1, atol=1e-2)
    assert corpus.vectors.shape == (corpus.genes.num_rows, scores.shape[1])
    other = components(np.where(corpus.held_out[:, None], 9.0, _values(corpus)), ~corpus.held_out, 8, 0)
    same = components(_values(corpus), ~corpus.held_out, 8, 0)
    np.testing.assert_array_equal(other[1], same[1])
    np.testing.assert_array_equal(other[2], same[2])


def _values(corpus):
    return corpus.targets(np.arange(len(corpus.held_out)))


def test_the_share_of_variance_puts_noise_last():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 30))
    values[:, :10] = 0.9 * rng.standard_normal((200, 1)) + 0.4 * values[:, :10]
    _, _, explained = components(values, np.ones(200, bool), 1, 0)
    assert explained[:10].min() > 5 * explained[10:].max()


def test_batches_depend_on_the_epoch_alone(corpus):
    given = ScGPTInput(ScGPTPretrainConfig(**CONFIG), corpus)
    first, again, other = (batches(given, epoch, 0, 1)[0] for epoch in (1, 1, 2))
    assert first.ids.equal(again.ids)
    assert first.values.equal(again.values)
    assert not np.array_equal(first.rows, other.rows)
    assert (first.ids[first.cells.first] == corpus.genes.num_rows + 1).all()
    assert (first.values[first.masked] == -1).all()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 5, 64, 100])
def test_workers_share_an_epoch(n, world):
    parts = [list(shuffled(n, 8, 0, 0, rank, world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert set(np.concatenate([batch for part in parts for batch in part]).tolist()) == set(range(n))


def test_training_stops_when_validation_does_not_get_better():
    import torch

    module = torch.nn.Linear(1, 1)
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])

    class Loss(torch.nn.Module):
        def forward(self, batch):
            loss = module(batch).pow(2).sum()
            return loss, {"loss": loss.detach()}

    seen = []

    def validate():
        seen.append(module.weight.item())
        return next(scores)

    facts = fit(
        Loss(),
        module,
        torch.optim.SGD(module.parameters(), 0.1),
        lambda *_: [torch.ones(2, 1)],
        Plan(10, patience=2),
        validate=validate,
    )
    assert facts["epoch"] == 2
    assert facts["score"] == 0.5
    assert len(seen) == 4
    assert module.weight.item() == seen[1]


def test_averaged_weights_are_what_is_validated_and_kept():
    import torch

    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(module.weight)
    seen, steps = [], []

    class Loss(torch.nn.Module):
        def forward(self, batch):
            steps.append(module.weight.item())
            loss = module(batch).sum()
            return loss, {"loss": loss.detach()}

    def validate():
        seen.append(module.weight.item())
        return float(len(seen))

    fit(
        Loss(),
        module,
        torch.optim.SGD(module.parameters(), 0.1),
        lambda *_: [torch.ones(1, 1)] * 3,
        Plan(2, schedule=lambda _: 1.0, average_decay=0.5),
        validate=validate,
    )
    means, mean = [], 1.0
    for step, weight in enumerate([*steps[1:], steps[-1] - 0.1]):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
        means.append(mean)
    assert seen == pytest.approx([means[2], means[5]])
    assert steps == pytest.approx([1 - 0.1 * step for step in range(6)])  # training goes on from its own weights
    assert module.weight.item() == pytest.approx(means[5])
