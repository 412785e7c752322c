"""Encoders on a GPU: the official numbers in float32, the same labels in half precision; without Ray or AnnData."""

import numpy as np
import pytest
import torch

from cellray import schema
from cellray.encode import open_encoder, tokenizer_of
from cellray.encode.langcell import LangCellEncoder
from cellray.ingest import GeneIndex, find_sources, inspect_dataset, read_shard
from cellray.models.official_scgpt import read_official_scgpt
from cellray.tokenize.shards import token_table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("budget", [1500, 32768])
def test_langcell(golden, dtype, budget):
    expected = np.load(golden.folder / "expected" / "scores.npz")
    flat, offsets = golden.tokens(2047)
    encoder = LangCellEncoder(golden.checkpoint, golden.texts, alpha=0.2, dtype=dtype, batch_tokens=budget)
    assert encoder.device == "cuda"
    probabilities, embeddings = encoder.score_tokens({schema.TOKENS: flat}, offsets, np.arange(48))
    exact = dtype == torch.float32
    np.testing.assert_allclose(embeddings, expected["cell_embs"], atol=1e-5 if exact else 5e-3)
    np.testing.assert_allclose(probabilities, expected["mix_alpha_0.2"], atol=1e-4 if exact else 2e-2)
    best, second = np.sort(expected["mix_alpha_0.2"])[:, [-1, -2]].T
    clear = best - second > (0 if exact else 1e-2)  # random weights leave some cells between two labels
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(probabilities.argmax(1)[clear], expected["pred_alpha_0.2"][clear])


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
