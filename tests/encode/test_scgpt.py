"""scGPT as a stage: official numbers from our own tokens, neighbours that do not matter, memory that runs out."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from cellray import schema
from cellray.encode import open_encoder, tokenizer_of
from cellray.encode.scgpt import ScGPTEncoder
from cellray.errors import EncodeError
from cellray.ingest import GeneIndex, find_sources, inspect_dataset
from cellray.models.official_scgpt import read_official_scgpt
from cellray.pipeline.scoring import token_shard


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "scgpt-tiny"


def tokens(shared, checkpoint, start=0, stop=48, layer=None, **more):
    genes = GeneIndex(checkpoint.genes, checkpoint.symbols)
    source = find_sources([str(shared / "golden" / "input.h5ad")])[0]
    plan = inspect_dataset(source, genes, layer=layer, integers=layer is None)
    return token_shard(plan, start, stop, tokenizer=tokenizer_of(checkpoint, **more), min_genes=1)


def embedded(table, width=32):
    return table[schema.EMBEDDING].combine_chunks().flatten().to_numpy().reshape(-1, width)


def test_embeddings_of_values_without_ties_are_the_official_ones(shared, folder):
    checkpoint = read_official_scgpt(folder / "ckpt")
    encoder = open_encoder(checkpoint, (), scoring=False, alpha=0.2, max_tokens=3000)
    found = encoder.score(tokens(shared, checkpoint, layer="tiefree", max_tokens=3000))
    assert found.schema.equals(schema.embeddings(32))
    expected = np.load(folder / "expected" / "embed_tiefree_full.npz")["X_scGPT"]
    certain = np.arange(48) != 23  # a cell of one gene, whose bin upstream draws
    np.testing.assert_allclose(embedded(found)[certain], expected[certain], atol=1e-5)
    assert checkpoint.EMBEDDING_KEY == "X_scgpt"


@pytest.mark.parametrize("zeros", [False, True])
def test_classes_of_values_without_ties_are_the_official_ones(shared, folder, zeros):
    name = "withzeros" if zeros else "nonzero"
    expected = np.load(folder / "expected" / f"finetuned_tiefree_{name}.npz")
    more = {"max_length": 3001, "normalise": "total", "zero_genes": zeros}
    checkpoint = read_official_scgpt(folder / "finetuned", weights="model_fa2_layout.pt", **more)
    encoder = open_encoder(checkpoint, (), scoring=True, alpha=0.2)
    found = encoder.score(tokens(shared, checkpoint, layer="tiefree"))
    assert found.schema.equals(schema.scores(32))
    certain = np.arange(48) != 23
    probabilities = np.array(found[schema.PROBABILITIES].to_pylist())
    np.testing.assert_allclose(probabilities[certain], expected["probs"][certain], atol=1e-4)
    np.testing.assert_array_equal(probabilities.argmax(1)[certain], expected["pred"][certain])


@pytest.mark.parametrize("budget", [1, 700, 1 << 20])
def test_shards_and_batches_do_not_matter(shared, folder, budget):
    checkpoint = read_official_scgpt(folder / "ckpt")
    whole = ScGPTEncoder(checkpoint, classify=False, batch_tokens=5000).score(
        tokens(shared, checkpoint, max_tokens=400)
    )
    encoder = ScGPTEncoder(checkpoint, classify=False, batch_tokens=budget)
    parts = [encoder.score(tokens(shared, checkpoint, start, start + 12, max_tokens=400)) for start in range(0, 48, 12)]
    np.testing.assert_allclose(embedded(pa.concat_tables(parts)), embedded(whole), atol=1e-5)
    order = np.random.default_rng(0).permutation(48)
    mixed = encoder.score(tokens(shared, checkpoint, max_tokens=400).take(order))
    np.testing.assert_allclose(embedded(mixed), embedded(whole)[order], atol=1e-5)


def test_the_seed_is_of_the_draws(shared, folder):
    checkpoint = read_official_scgpt(folder / "ckpt")
    encoder = ScGPTEncoder(checkpoint, classify=False)
    first, again, other = (embedded(encoder.score(tokens(shared, checkpoint, seed=seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


class Short(ScGPTEncoder):
    """An encoder with memory for so many tokens only."""

    memory = 0

    def encode(self, columns, offsets, rows):
        if self.cost(offsets[rows + 1] - offsets[rows]).sum() > self.memory:
            raise torch.cuda.OutOfMemoryError
        return super().encode(columns, offsets, rows)


def test_memory_that_runs_out_halves_the_budget(shared, folder):
    checkpoint = read_official_scgpt(folder / "ckpt")
    shard = tokens(shared, checkpoint)
    expected = embedded(ScGPTEncoder(checkpoint, classify=False).score(shard))
    encoder = Short(checkpoint, classify=False, batch_tokens=1 << 20)
    encoder.memory = 3000
    np.testing.assert_allclose(embedded(encoder.score(shard)), expected, atol=1e-5)
    assert encoder.batch_tokens < 6000
    encoder.memory = 100
    with pytest.raises(EncodeError, match="does not fit"):
        encoder.score(shard)


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.999), (torch.float16, 0.9999)])
def test_half_precision_is_close(shared, folder, dtype, least):
    checkpoint = read_official_scgpt(folder / "ckpt")
    shard = tokens(shared, checkpoint)
    full, half = (
        embedded(ScGPTEncoder(checkpoint, classify=False, dtype=one).score(shard)) for one in (torch.float32, dtype)
    )
    assert (np.sum(full * half, axis=1) > least).all()
