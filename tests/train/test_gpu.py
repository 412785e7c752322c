"""Bases and plugins trained on a GPU: the steps that a CPU takes. Needs neither Ray nor AnnData."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import sparse

from cellray.models.packed import Segments, attention
from cellray.models.scgpt import ScGPT, ScGPTConfig
from cellray.tokenize.cells import Cells
from cellray.train.config import ScGPTPretrainConfig
from cellray.train.loop import Alone
from cellray.train.plugins import PluginInput, PluginSettings, predict, train
from cellray.train.scgpt_corpus import ScGPTCorpus
from cellray.train.scgpt_pretrain import ScGPTInput, pretrain
from cellray.train.update import UpdateInput, UpdateSettings, update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CLASSES = ["B cell", "T cell", "monocyte"]
N_GENES = 60


def made_up(n, label=None, seed=0):
    """Cells whose type draws half of its genes from its own."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 30, n)
    kind = rng.integers(len(CLASSES), size=n)
    own = rng.integers(20, size=lengths.sum()) + 20 * np.repeat(kind, lengths)
    tokens = np.where(rng.random(lengths.sum()) < 0.5, own, rng.integers(N_GENES, size=lengths.sum()))
    labels = np.array(CLASSES)[kind] if label is None else np.full(n, label)
    names = np.array([f"cell{number}" for number in range(n)])
    bins, offsets = rng.integers(1, 50, lengths.sum()), np.r_[0, lengths.cumsum()].astype(np.int64)
    return Cells(names, labels, labels, tokens.astype(np.uint16), bins.astype(np.int16), offsets)


def base():
    torch.manual_seed(7)
    return ScGPT(ScGPTConfig(N_GENES + 2, 32, 3, 4, 64, N_GENES + 1, max_tokens=40)).eval()


def on_both(run):
    return [run(device) for device in ("cpu", "cuda")]


def test_attention_in_float32():
    torch.manual_seed(0)
    lengths = [3, 17, 1, 8]
    given = [torch.randn(sum(lengths), 32) for _ in range(3)]

    def run(device):
        cells = Segments.of(lengths, device)
        query, key, value = (one.to(device, copy=True).requires_grad_() for one in given)
        mixed = attention(query, key, value, cells, cells, 4)
        one = attention(query[cells.first], key, value, cells.of_one(), cells, 4)
        (mixed.square().sum() + one.square().sum()).backward()
        return [found.detach().cpu() for found in (mixed, one, query.grad, key.grad, value.grad)]

    for cpu, gpu in zip(*on_both(run), strict=True):
        torch.testing.assert_close(gpu, cpu, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("below", [None, np.eye(3, dtype=bool)])
def test_a_plugin(below):
    cells, apart = made_up(200), made_up(50, seed=1)
    settings = PluginSettings(n_experts=2, rank=2, alpha=2, n_classes=5, epochs=3, learning_rate=1e-3)

    def run(device):
        given = PluginInput(base(), cells, apart, CLASSES, settings, below)
        plugin, facts = train(given, Alone(device))
        assert given.base.device.type == device
        return predict(given.base, plugin, apart), facts["loss"]

    (cpu, cpu_loss), (gpu, gpu_loss) = on_both(run)
    assert gpu_loss == pytest.approx(cpu_loss, abs=1e-3)
    np.testing.assert_allclose(gpu, cpu, atol=5e-3)


@pytest.mark.parametrize("recipe", ["imprint", "paper"])
def test_an_update(recipe):
    known, new, apart = made_up(120), made_up(20, "new type", seed=2), made_up(50, seed=1)
    settings = PluginSettings(n_experts=2, rank=2, alpha=2, n_classes=5, epochs=1)
    plugin, _ = train(PluginInput(base(), known, apart, CLASSES, settings))

    def run(device):
        todo = UpdateSettings(recipe, epochs=2, learning_rate=1e-3)
        given = UpdateInput(base(), plugin, CLASSES, known, new, "new type", todo)
        updated, facts = update(given, Alone(device))
        return predict(given.base, updated, apart), facts["classes"]

    (cpu, cpu_loss), (gpu, gpu_loss) = on_both(run)
    assert gpu_loss == pytest.approx(cpu_loss, abs=1e-3)
    np.testing.assert_allclose(gpu, cpu, atol=5e-3)


def test_a_base():
    cells, rng = made_up(100), np.random.default_rng(0)
    genes = pa.table({"token": np.arange(N_GENES)})
    corpus = ScGPTCorpus(
        cells.tokens,
        cells.bins,
        cells.offsets,
        sparse.csr_matrix((100, N_GENES), dtype=np.float32),
        np.zeros(N_GENES, np.float32),
        rng.normal(size=(100, 8)).astype(np.float32),
        rng.normal(size=(N_GENES, 8)).astype(np.float32),
        np.zeros(100, int),
        np.array([CLASSES.index(label) for label in cells.labels]),
        np.arange(100) < 20,
        np.ones((1, 3), bool),
        genes,
    )
    config = ScGPTPretrainConfig.model_validate(
        {
            "architecture": "scgpt",
            "name": "gpu",
            "sets": [{"file": "cells.h5ad", "label_key": "cell_type"}],
            "sizes": {"hidden": 32, "layers": 2, "heads": 4, "ffn": 64, "max_tokens": 40},
            "epochs": 2,
            "batch_cells": 32,
        }
    )
    cpu, gpu = on_both(lambda device: pretrain(ScGPTInput(config, corpus), Alone(device))[1])
    assert gpu == pytest.approx(cpu, abs=2e-3)
