"""Cells routed among plugins: by the user's word or cell by cell, as if each plugin were alone."""

import numpy as np
import pytest
import torch

from cellray import schema
from cellray.encode import tokenizer_of
from cellray.errors import ModelError, PluginError, TissueError
from cellray.ingest import GeneIndex, find_sources, inspect_dataset
from cellray.models import checkpoints
from cellray.pipeline.scoring import token_shard
from cellray.plugins.registry import TISSUES, Registry
from cellray.plugins.router import Chosen, PluginEncoder, open_plugins, union_labels
from cellray.plugins.serving import Loaded, TokenCells, label_cells
from tests.plugins.conftest import version


@pytest.fixture(scope="module")
def blood(world):
    return version(world, world.every, tissue="blood", seed=1)


@pytest.fixture(scope="module")
def shard(world):
    base = world.checkpoint()
    plan = inspect_dataset(find_sources([str(world.every)])[0], GeneIndex(base.genes, base.symbols))
    return token_shard(plan, 0, 60, tokenizer=tokenizer_of(base), min_genes=5)


def probabilities(encoder, shard):
    return np.array(encoder.score(shard)[schema.PROBABILITIES].to_pylist())


def test_each_cell_is_labelled_by_the_plugin_of_its_tissue(world, liver, blood, tissues, shard):
    base = world.checkpoint()
    labels = [label["name"] for label in union_labels([liver, blood])]
    found = probabilities(PluginEncoder(base, [liver, blood], tissues), shard)
    assert found.shape == (60, len(labels))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    alone = {}
    for plugin in (liver, blood):
        scores = probabilities(PluginEncoder(base, [plugin]), shard)
        alone[plugin.tissue] = np.zeros_like(found)
        alone[plugin.tissue][:, [labels.index(name) for name in plugin.names]] = scores
    by_tissue = [np.abs(found - alone[name]).max(1) < 1e-5 for name in ("liver", "blood")]
    assert (by_tissue[0] | by_tissue[1]).all()
    assert by_tissue[0].sum() > 5
    assert by_tissue[1].sum() > 5
    assert PluginEncoder(base, [liver, blood], tissues, batch_tokens=100).score(shard).num_rows == 60


def test_a_cell_of_a_tissue_without_a_plugin_gets_no_label(world, blood, tissues, shard):
    found = probabilities(PluginEncoder(world.checkpoint(), [blood], tissues), shard)
    nothing = found.max(1) == 0
    assert 5 < nothing.sum() < 55
    np.testing.assert_allclose(found[~nothing].sum(1), 1, atol=1e-5)


def test_requests_of_several_plugins_share_a_pass(world, liver, blood, shard):
    encoder = PluginEncoder(world.checkpoint(), batch_tokens=500)
    cells = TokenCells.of(shard)
    loaded = [
        Loaded(one.build(), one.names, [label["term_id"] for label in one.labels], np.array(one.thresholds))
        for one in (liver, blood)
    ]
    requests = [
        (loaded[0], cells.take(np.arange(10))),
        (loaded[1], cells.take(np.arange(10, 35))),
        (loaded[0], cells.take(np.arange(35, 60))),
    ]
    together = label_cells(encoder, requests)
    assert [len(one.labels) for one in together] == [10, 25, 25]
    for request, found in zip(requests, together, strict=True):
        (alone,) = label_cells(encoder, [request])
        assert alone.labels == found.labels
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-5)
    rows = together[1].rows()
    assert set(rows[0]) == {"label", "ontology_id", "score", "doubtful"}
    assert sum(row["doubtful"] for row in rows) < 12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(world, liver, blood, tissues, shard, dtype):
    base = world.checkpoint()
    exact = probabilities(PluginEncoder(base, [liver, blood], tissues), shard)
    found = probabilities(PluginEncoder(base, [liver, blood], tissues, dtype=dtype), shard)
    assert 0 < np.abs(found - exact).max() < (0.02 if dtype == torch.float16 else 0.1)
    assert (found.argmax(1) == exact.argmax(1)).mean() > 0.95


def test_what_is_chosen_is_what_is_promoted(tmp_path, world, liver, blood, tissues):
    registry = Registry(str(tmp_path / "registry"))
    with pytest.raises(PluginError, match="no promoted plugin"):
        Chosen.of(registry.uri)
    digests = {one.tissue: registry.put(one) for one in (liver, blood)}
    with pytest.raises(TissueError, match=r"'liver' \(there is: none\)"):
        Chosen.of(registry.uri, "liver")
    for tissue, digest in digests.items():
        registry.promote(tissue, digest)
    with pytest.raises(PluginError, match=r"name the tissue .*blood, liver"):
        Chosen.of(registry.uri)
    with pytest.raises(TissueError, match=r"'brain' \(there is: blood, liver\)"):
        Chosen.of(registry.uri, "brain")
    assert Chosen.of(registry.uri, " Liver").versions == (("liver", digests["liver"]),)
    registry.promote(TISSUES, registry.put(tissues))
    chosen = Chosen.of(registry.uri)
    assert dict(chosen.versions) == digests
    assert open_plugins(world.checkpoint(), chosen).n_labels == 4
    with pytest.raises(ModelError, match="plugins are of scGPT"):
        open_plugins(checkpoints.load("mini"), chosen)
