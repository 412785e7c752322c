"""A type added to a plugin in this process: found afterwards, next reserved class, nothing else moved."""

import numpy as np
import pytest
import torch

from cellray.errors import SettingError
from cellray.plugins.gate import Limits
from cellray.plugins.making import next_version, plan_update
from cellray.plugins.reading import Reading, read_labelled
from cellray.train.losses import distillation, hierarchical
from cellray.train.update import UpdateSettings, balanced, update

LABEL = "monocyte"


@pytest.fixture(scope="module")
def new(world):
    return read_labelled([str(world.new)], world.checkpoint(), Reading(), label=LABEL).cells


def updated(world, liver, new, recipe="imprint", label=LABEL, epochs=30):
    settings = UpdateSettings(recipe, epochs, learning_rate=None if recipe == "paper" else 1e-2)
    given, judged = plan_update(world.checkpoint(), liver, new, label, settings, 0.25)
    plugin, _ = update(given)
    return given, plugin, next_version(liver, "p" * 64, given, judged, plugin, Limits(0.1, 0.1))


def test_the_new_type_is_found_and_the_old_ones_are_kept(world, liver, new):
    given, plugin, (version, verdict) = updated(world, liver, new.take(np.arange(40)))
    assert verdict.passed, verdict
    assert verdict.recall > 0.8
    assert verdict.n_new == 10
    assert version.names == [*liver.names, LABEL]
    assert version.labels[-1]["term_id"] == "CL:0000576"
    assert version.parent == "p" * 64
    assert plugin.used == given.plugin.used + 1
    assert (version.replay.labels == LABEL).sum() == 30
    head, before = plugin.cls_decoder, given.plugin.cls_decoder
    others = torch.arange(6) != len(liver.names)
    assert torch.equal(head.out_layer.weight[others], before.out_layer.weight[others])
    assert torch.equal(head.out_layer.bias[others], before.out_layer.bias[others])
    for one, other in zip(head._decoder.parameters(), before._decoder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(plugin.layers[0].lora_B, given.plugin.layers[0].lora_B)


def test_two_updates_take_two_classes(world, liver, new):
    _, _, (once, _) = updated(world, liver, new.take(np.arange(30)), epochs=1)
    _, _, (twice, _) = updated(world, once, new.take(np.arange(30)), label="another type", epochs=1)
    assert twice.names == [*liver.names, LABEL, "another type"]


def test_the_papers_recipe_leaves_the_head_alone(world, liver, new):
    given, plugin, _ = updated(world, liver, new.take(np.arange(30)), "paper", epochs=2)
    before = given.plugin.cls_decoder.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in plugin.cls_decoder.state_dict().items())


@pytest.mark.parametrize("label", ["T cell", "t CELL ", "", "  "])
def test_a_label_must_be_new(world, liver, new, label):
    with pytest.raises(SettingError, match=r"known to the plugin as 'T cell'|is empty"):
        plan_update(world.checkpoint(), liver, new, label, UpdateSettings(), 0.2)


def test_a_full_head_takes_no_more(world, liver, new):
    labels = [*liver.labels, *({"name": f"type {number}", "term_id": ""} for number in range(3))]
    full = liver.changed(labels=labels, thresholds=[0.0] * 6)
    with pytest.raises(SettingError, match="all 6 classes"):
        plan_update(world.checkpoint(), full, new, LABEL, UpdateSettings(), 0.2)


def test_too_few_cells(world, liver, new):
    with pytest.raises(SettingError, match="too few"):
        plan_update(world.checkpoint(), liver, new.take(np.arange(1)), LABEL, UpdateSettings(), 0.0)


def test_replay_is_balanced(liver):
    replay = balanced(liver.replay, 7, 0)
    names, sizes = np.unique(replay.labels, return_counts=True)
    assert names.tolist() == sorted(liver.names)
    assert (sizes == 7).all()


def test_hierarchical_loss():
    torch.manual_seed(0)
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    plain = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(hierarchical(logits, target, torch.eye(3, dtype=torch.bool)), plain)
    below = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])  # 1 is a kind of 0
    shares = logits.softmax(1)
    wanted = torch.stack([shares[0, :2].sum(), shares[1, 1], shares[2, 2], shares[3, :2].sum(), shares[4, 1]])
    torch.testing.assert_close(hierarchical(logits, target, below), -wanted.log().mean())


def test_distillation_is_a_divergence():
    torch.manual_seed(0)
    one, other = torch.randn(4, 3), torch.randn(4, 3)
    assert distillation(one, one, 2.0).item() == pytest.approx(0, abs=1e-6)
    p, q = (other / 2).softmax(1), (one / 2).softmax(1)
    torch.testing.assert_close(distillation(one, other, 2.0), 4 * (p * (p / q).log()).sum(1).mean())
