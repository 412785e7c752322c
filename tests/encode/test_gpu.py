"""Encoders on a GPU: the official numbers in float32, the same labels in half precision; without Ray or AnnData."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from cellray import schema
from cellray.encode import open_encoder, tokenizer_of
from cellray.encode.langcell import LangCellEncoder
from cellray.ingest import GeneIndex, find_sources, inspect_dataset, read_shard
from cellray.models import checkpoints
from cellray.models.fused import add_norm
from cellray.models.official_scgpt import read_official_scgpt
from cellray.plugins.registry import Registry
from cellray.plugins.router import PluginEncoder
from cellray.plugins.serving import Loaded, TokenCells, label_cells
from cellray.tokenize.shards import token_table
from jobs.bench.serving import made_up

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("budget", [1500, 32768])
def test_langcell(golden, dtype, budget):
    expected = np.load(golden.folder / "expected" / "scores.npz")
    flat, offsets = golden.tokens(2047)
    encoder = LangCellEncoder(golden.checkpoint, golden.texts, alpha=0.2, dtype=dtype, batch_tokens=budget)
    assert encoder.device == "cuda"
    probabilities, embeddings = encoder.score_tokens({schema.TOKENS: flat}, offsets, np.arange(48))
    gap = np.abs(probabilities - expected["mix_alpha_0.2"])
    same = probabilities.argmax(1) == expected["pred_alpha_0.2"]
    if dtype == torch.float32:
        np.testing.assert_allclose(embeddings, expected["cell_embs"], atol=1e-5)
        assert gap.max() < 1e-4
        assert same.all()
    else:  # random weights make more of rounding than trained ones: `jobs.bench.encode --only precision`
        np.testing.assert_allclose(embeddings, expected["cell_embs"], atol=1e-2)
        assert gap.mean() < 5e-3
        assert same.mean() > 0.95
        best, second = np.sort(expected["mix_alpha_0.2"])[:, [-1, -2]].T
        clear = best - second > 1e-2
        assert clear.mean() > 0.5
        assert same[clear].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scgpt(shared, dtype):
    folder = shared / "golden" / "scgpt-tiny"
    checkpoint = read_official_scgpt(folder / "ckpt")
    tokenizer = tokenizer_of(checkpoint, max_tokens=3000)
    source = find_sources([str(shared / "golden" / "input.h5ad")])[0]
    plan = inspect_dataset(source, GeneIndex(checkpoint.genes, checkpoint.symbols), layer="tiefree", integers=False)
    cells = token_table(read_shard(plan, 0, 48, min_genes=1, n_slots=len(tokenizer.tokens)), tokenizer, plan.slots)
    encoder = open_encoder(checkpoint, (), scoring=False, alpha=0.2, max_tokens=3000, dtype=dtype)
    assert encoder.device == "cuda"
    found = encoder.score(cells)[schema.EMBEDDING].combine_chunks().flatten().to_numpy().reshape(48, -1)
    expected = np.load(folder / "expected" / "embed_tiefree_full.npz")["X_scGPT"]
    certain = np.arange(48) != 23  # a cell of one gene, whose bin upstream draws
    atol = 1e-5 if dtype == torch.float32 else 5e-3
    np.testing.assert_allclose(found[certain], expected[certain], atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_sums_and_norms(dtype):
    norm = nn.LayerNorm(512).to("cuda", dtype)
    with torch.inference_mode():
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        for rows in (1, 3, 1000, 70_000):
            update, states = torch.randn(2, rows, 512, device="cuda", dtype=dtype)
            expected = norm.double()(update.double() + states.double())
            found = add_norm(update, states, norm.to(dtype))
            assert found.dtype == dtype
            assert (found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 2e-2)


def test_there_is_no_compiler(tmp_path):
    code = """
import torch
from cellray.models.fused import add_norm
with torch.inference_mode():
    norm, states = torch.nn.LayerNorm(64).cuda(), torch.randn(8, 64, device="cuda")
    for _ in range(2):
        assert torch.equal(add_norm(states, states, norm), norm(states + states))
"""
    nowhere = {"CC": "/nowhere/cc", "TRITON_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("encoding goes on without fused kernels") == 1


def test_served_plugins(tmp_path):
    base, registry = checkpoints.load("mini-scgpt"), Registry(str(tmp_path))
    versions = {}
    for tissue in ("blood", "liver"):
        plugin = made_up(base, tissue)
        for name, weights in plugin.state.items():
            if name.endswith("lora_B"):
                nn.init.normal_(weights, std=0.02)
        versions[tissue] = registry.put(plugin)
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.permutation(base.genes.num_rows)[:100] for _ in range(60)]).astype(np.uint16)
    cells = TokenCells(tokens, rng.integers(1, 50, len(tokens)).astype(np.int16), np.arange(61) * 100)
    found = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.float16)):
        encoder = PluginEncoder(base, device=device, dtype=dtype)
        loaded = [Loaded.read(registry, base, tissue, digest, encoder) for tissue, digest in versions.items()]
        requests = [(loaded[0], cells.take(np.arange(30))), (loaded[1], cells.take(np.arange(30, 60)))]
        found[device, dtype] = np.concatenate([one.scores for one in label_cells(encoder, requests)])
    exact = found.pop(("cpu", torch.float32))
    for (_, dtype), scores in found.items():
        np.testing.assert_allclose(scores, exact, atol=1e-5 if dtype == torch.float32 else 2e-3)
