"""The scorer as a stage: order, rejects, and independence of a cell from its neighbours."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from cellray import schema
from cellray.encode.langcell import LangCellEncoder
from jobs.bench import official


@pytest.fixture(scope="module")
def scorer(golden):
    return LangCellEncoder(golden.checkpoint, golden.texts, alpha=0.2)


def shard(golden, rows, rejected=()):
    flat, offsets = golden.tokens(2047)
    tokens = [[] if row in rejected else flat[offsets[row] : offsets[row + 1]] for row in rows]
    columns = [rows, [f"c{row}" for row in rows], np.ones(len(rows), np.float32), np.ones(len(rows), np.int32)]
    codes = [schema.RejectCode.EMPTY_CELL if row in rejected else None for row in rows]
    return pa.table([*columns, codes, tokens], schema=schema.token_shard())


def test_rows_keep_their_order_and_rejects_stay_empty(golden, scorer):
    rows = [3, 40, 5, 17, 23]
    table = scorer.score(shard(golden, rows, rejected=(5, 3)))
    assert table.schema.equals(schema.scores())
    assert table[schema.ROW].to_pylist() == rows
    assert [value is None for value in table[schema.PROBABILITIES].to_pylist()] == [True, False, True, False, False]
    assert [value is None for value in table[schema.EMBEDDING].to_pylist()] == [True, False, True, False, False]
    expected = np.load(golden.folder / "expected" / "scores.npz")["mix_alpha_0.2"]
    found = np.array([value for value in table[schema.PROBABILITIES].to_pylist() if value is not None])
    np.testing.assert_allclose(found, expected[[40, 17, 23]], atol=1e-4)


def test_all_cells_rejected(golden, scorer):
    table = scorer.score(shard(golden, [0, 1], rejected=(0, 1)))
    assert table[schema.PROBABILITIES].null_count == 2


def test_empty_shard(golden, scorer):
    assert scorer.score(shard(golden, [])).num_rows == 0


def test_a_sliced_table_is_read_at_its_offset(golden, scorer):
    whole = shard(golden, list(range(6)))
    np.testing.assert_array_equal(
        scorer.score(whole.slice(2, 2))[schema.PROBABILITIES].to_pylist(),
        scorer.score(shard(golden, [2, 3]))[schema.PROBABILITIES].to_pylist(),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(golden, scorer, dtype):
    flat, offsets = golden.tokens(2047)
    half = LangCellEncoder(golden.checkpoint, golden.texts, alpha=0.2, dtype=dtype)
    (exact, _), (found, _) = (one.score_tokens({"tokens": flat}, offsets, np.arange(48)) for one in (scorer, half))
    assert 0 < np.abs(found - exact).mean() < (5e-3 if dtype == torch.float16 else 2e-2)
    assert (found.argmax(1) == exact.argmax(1)).mean() > 0.9


@pytest.mark.parametrize("budget", [1, 500, 1 << 20])
def test_neighbours_do_not_matter(golden, budget):
    flat, offsets = golden.tokens(2047)
    rows = np.random.default_rng(0).permutation(48)
    alone = LangCellEncoder(golden.checkpoint, golden.texts, alpha=0.2, batch_tokens=budget)
    probabilities, embeddings = alone.score_tokens({"tokens": flat}, offsets, rows)
    together = LangCellEncoder(golden.checkpoint, golden.texts, alpha=0.2, batch_tokens=9000)
    expected, expected_embeddings = together.score_tokens({"tokens": flat}, offsets, np.arange(48))
    np.testing.assert_allclose(probabilities, expected[rows], atol=1e-5)
    np.testing.assert_allclose(embeddings, expected_embeddings[rows], atol=1e-5)


def test_fewer_labels_matched(golden):
    flat, offsets = golden.tokens(2047)
    rows = np.arange(48)
    all_labels, _ = LangCellEncoder(golden.checkpoint, golden.texts, alpha=0.2).score_tokens(
        {"tokens": flat}, offsets, rows
    )
    same, some = (
        LangCellEncoder(golden.checkpoint, golden.texts, alpha=0.2, ctm_top_k=top).score_tokens(
            {"tokens": flat}, offsets, rows
        )[0]
        for top in (6, 2)
    )
    np.testing.assert_allclose(same, all_labels, atol=1e-6)
    np.testing.assert_allclose(some.sum(axis=1), 1, atol=1e-5)
    similarity, _ = LangCellEncoder(golden.checkpoint, golden.texts, alpha=1).score_tokens(
        {"tokens": flat}, offsets, rows
    )
    left_out = similarity.argsort(axis=1)[:, :-2]
    np.testing.assert_allclose(
        np.take_along_axis(some, left_out, 1), 0.2 * np.take_along_axis(similarity, left_out, 1), atol=1e-6
    )


def test_embedding_alone(golden):
    flat, offsets = golden.tokens(2047)
    _, embeddings = LangCellEncoder(golden.checkpoint).score_tokens({"tokens": flat}, offsets, np.arange(48))
    expected = np.load(golden.folder / "expected" / "scores.npz")["cell_embs"]
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_the_benchmark_measures_against_the_same_numbers(golden):
    expected = np.load(golden.folder / "expected" / "scores.npz")
    flat, offsets = golden.tokens(2047)
    model = golden.checkpoint.build()
    cls = np.array([golden.checkpoint.config.cls_token])
    cells = [
        torch.from_numpy(np.concatenate([cls, flat[offsets[row] : offsets[row + 1]]]).astype(np.int64))
        for row in range(8)
    ]
    text_ids = golden.checkpoint.text_ids(golden.texts)
    with torch.inference_mode():
        embeddings, states, mask = official.langcell_cells(model, official.padded(cells, 0))
        match = torch.stack([official.langcell_match(model, states, mask, text) for text in text_ids], 1)
        texts = official.langcell_text(model, text_ids)
    np.testing.assert_allclose(embeddings, expected["cell_embs"][:8], atol=1e-5)
    np.testing.assert_allclose(match, expected["ctm_match_prob"][:8], atol=1e-4)
    np.testing.assert_allclose(texts, np.load(golden.folder / "expected" / "text.npz")["text_embs"], atol=1e-5)
