"""MoE-LoRA against its formula, beside and within the base."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellray.models.moe_lora import Mixed, MoELoRA, MoELoRAConfig, Plugin, merged
from cellray.models.packed import Segments
from cellray.models.scgpt import ScGPT, ScGPTConfig
from cellray.models.state import loaded

BASE = ScGPTConfig(60, 16, 3, 4, 32, 59)


def plugin(seed=0, *, scale=0.5, **more):
    torch.manual_seed(seed)
    made = Plugin(MoELoRAConfig(16, 3, **{"n_experts": 3, "rank": 2, "n_classes": 8, **more}), 5).eval()
    for layer in made.layers:
        torch.nn.init.normal_(layer.lora_B, std=scale)
    return made


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(7)
    return ScGPT(BASE).eval()


def packed(lengths, seed=0):
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    ids = torch.from_numpy(rng.integers(0, 59, total))
    cells = Segments.of(list(lengths))
    ids[cells.first] = 59
    return ids, torch.from_numpy(rng.integers(0, 50, total).astype(np.float32)), cells


@given(seed=st.integers(0, 1000), experts=st.integers(1, 4), rank=st.integers(1, 5), rows=st.integers(1, 6))
def test_the_layer_is_the_formula(seed, experts, rank, rows):
    torch.manual_seed(seed)
    layer = MoELoRA(MoELoRAConfig(8, 1, experts, rank, alpha=3.0))
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(rows, 8)
    read = torch.arange(0, rows, 2)
    queries, values = layer(x, read)
    gates = torch.softmax(x @ layer.gate.T, dim=1)
    for part, (found, asked) in enumerate(((queries, read), (values, torch.arange(rows)))):
        for at, row in enumerate(asked.tolist()):
            expected = sum(
                gates[row, i]
                * (3.0 / rank)
                * (
                    layer.lora_B[i, 8 * part : 8 * part + 8]
                    @ (layer.lora_A[i, rank * part : rank * (part + 1)] @ x[row])
                )
                for i in range(experts)
            )
            torch.testing.assert_close(found[at], expected, atol=1e-5, rtol=1e-4)


def test_a_new_plugin_changes_nothing(base):
    torch.manual_seed(0)
    fresh = Plugin(MoELoRAConfig(16, 3), 5)
    ids, values, cells = packed([5, 9])
    assert torch.equal(base.encode_cells(ids, values, cells), base.encode_cells(ids, values, cells, fresh))


def test_without_a_plugin_the_base_is_bit_equal(base):
    ids, values, cells = packed([5, 9, 3, 7])
    before = base.encode_cells(ids, values, cells)
    found = base.encode_cells(ids, values, cells, Mixed([(None, 2), (plugin(1), 2)], cells))
    assert torch.equal(found[:2], before[:2])
    assert not torch.allclose(found[2:], before[2:], atol=1e-3)
    assert torch.equal(base.encode_cells(ids, values, cells), before)


def test_every_cell_of_a_mixed_batch_uses_its_own(base):
    first, second = plugin(1), plugin(2)
    ids, values, cells = packed([4, 8, 6, 5, 7])
    mixed = base.encode_cells(ids, values, cells, Mixed([(first, 2), (None, 1), (second, 2)], cells))
    for number, own in ((0, first), (1, first), (2, None), (3, second), (4, second)):
        rows = slice(int(cells.offsets[number]), int(cells.offsets[number + 1]))
        alone = base.encode_cells(ids[rows], values[rows], Segments.of([cells.lengths[number]]), own)
        torch.testing.assert_close(mixed[number : number + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("experts", [1, 3])
def test_merging_is_exact_where_the_gate_is_constant(base, experts):
    made = plugin(3, n_experts=experts)
    for layer in made.layers:
        layer.gate.data[:] = layer.gate.data[0]
    whole = loaded(lambda: ScGPT(BASE), merged(base.state_dict(), made), "cpu")
    ids, values, cells = packed([5, 9, 3])
    expected = base.encode_cells(ids, values, cells, made)
    torch.testing.assert_close(whole.encode_cells(ids, values, cells), expected, atol=1e-5, rtol=1e-5)


def test_merging_is_refused_where_it_is_not(base):
    with pytest.raises(ValueError, match=r"layer 0: the gate depends on its input"):
        merged(base.state_dict(), plugin(3))


def test_reserved_classes_take_no_part():
    made = plugin()
    states = torch.randn(4, 16)
    assert made.logits(states).shape == (4, 5)
    made.cls_decoder.out_layer.bias.data[5:] = 1e6
    torch.testing.assert_close(made.classify(states).sum(1), torch.ones(4))
