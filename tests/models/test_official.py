"""The official checkpoint: converted, parity with the official code's numbers, and every way it can be wrong."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from cellray.encode.langcell import LangCellEncoder
from cellray.errors import ModelError
from cellray.models import checkpoints
from cellray.models.official import read_official


def test_text_ids(golden):
    expected = np.load(golden.folder / "expected" / "text.npz")
    ids = golden.checkpoint.text_ids(golden.texts).numpy()
    for row, start, stop in zip(ids, expected["offsets"][:-1], expected["offsets"][1:], strict=True):
        np.testing.assert_array_equal(row[row != 0], expected["ids"][start:stop])


def test_text_embeddings(golden):
    expected = np.load(golden.folder / "expected" / "text.npz")
    with torch.inference_mode():
        texts = golden.checkpoint.build().encode_texts(golden.checkpoint.text_ids(golden.texts))
    np.testing.assert_allclose(texts.embeddings.numpy(), expected["text_embs"], atol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.3, 0.5, 1, 0])
def test_scores(golden, alpha):
    expected = np.load(golden.folder / "expected" / "scores.npz")
    flat, offsets = golden.tokens(2047)
    scorer = LangCellEncoder(golden.checkpoint, golden.texts, alpha=alpha)
    probabilities, embeddings = scorer.score_tokens({"tokens": flat}, offsets, np.arange(48))
    np.testing.assert_allclose(embeddings, expected["cell_embs"], atol=1e-5)
    np.testing.assert_allclose(probabilities, expected[f"mix_alpha_{alpha}"], atol=1e-4)
    if alpha:  # alone, the match probabilities saturate and their winner is rounding
        np.testing.assert_array_equal(probabilities.argmax(1), expected[f"pred_alpha_{alpha}"])


def test_similarity_and_matching_branches(golden):
    expected = np.load(golden.folder / "expected" / "scores.npz")
    flat, offsets = golden.tokens(2047)
    similarity, _ = LangCellEncoder(golden.checkpoint, golden.texts, alpha=1).score_tokens(
        {"tokens": flat}, offsets, np.arange(48)
    )
    matching, _ = LangCellEncoder(golden.checkpoint, golden.texts, alpha=0).score_tokens(
        {"tokens": flat}, offsets, np.arange(48)
    )
    np.testing.assert_allclose(similarity, expected["sim_softmax"], atol=1e-4)
    np.testing.assert_allclose(matching, expected["ctm_softmax"], atol=1e-4)


def test_saved_folder_gives_the_same_model(golden, tmp_path):
    checkpoints.save(tmp_path / "model", golden.checkpoint)
    loaded = checkpoints.load(str(tmp_path / "model"))
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in golden.checkpoint.state.items())
    assert loaded.genes.equals(golden.checkpoint.genes)
    assert loaded.symbols.equals(golden.checkpoint.symbols)
    assert loaded.text_ids(golden.texts).equal(golden.checkpoint.text_ids(golden.texts))
    checkpoints.save(tmp_path / "again", loaded)
    assert checkpoints.load(str(tmp_path / "again")).digest == loaded.digest


@pytest.fixture
def official(golden, tmp_path):
    """A copy of the official checkpoint to damage, and a function that reads it."""
    folder = tmp_path / "official"
    shutil.copytree(golden.folder / "ckpt", folder / "ckpt")
    shutil.copytree(golden.folder / "geneformer", folder / "geneformer")
    return folder, lambda: read_official(folder / "ckpt", golden.folder / "tokenizer", folder / "geneformer")


def edit(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_missing_tensor(official):
    folder, read = official
    edit(folder / "ckpt" / "cell_bert" / "pytorch_model.bin", lambda state: state.pop("embeddings.LayerNorm.bias"))
    with pytest.raises(ModelError, match=r"missing.*cell_bert\.embeddings\.LayerNorm\.bias"):
        read()


def test_extra_tensor(official):
    folder, read = official
    edit(folder / "ckpt" / "text_bert" / "pytorch_model.bin", lambda state: state.update(surprise=torch.zeros(1)))
    with pytest.raises(ModelError, match=r"extra.*text_bert\.surprise"):
        read()


def test_text_encoder_without_cross_attention(official):
    folder, read = official

    def plain(state):
        for name in [name for name in state if "crossattention" in name]:
            del state[name]

    edit(folder / "ckpt" / "text_bert" / "pytorch_model.bin", plain)
    with pytest.raises(ModelError, match="plain Hugging Face BertModel"):
        read()


def test_wrong_shape_and_nan(official):
    folder, read = official
    edit(folder / "ckpt" / "ctm_head.bin", lambda state: state.update(bias=torch.zeros(3)))
    with pytest.raises(ModelError, match=r"ctm_head\.bias.*\(3,\).*\(2,\)"):
        read()
    edit(folder / "ckpt" / "ctm_head.bin", lambda state: state.update(bias=torch.tensor([0, torch.nan])))
    with pytest.raises(ModelError, match="NaN"):
        read()


def test_accepts_a_bert_prefix_and_a_pooler(official, golden):
    folder, read = official
    path = folder / "ckpt" / "cell_bert" / "pytorch_model.bin"
    state = {f"bert.{name}": value for name, value in torch.load(path, weights_only=True).items()}
    torch.save({**state, "bert.pooler.dense.weight": torch.zeros(1), "cls.predictions.bias": torch.zeros(1)}, path)
    assert torch.equal(read().state["cell_proj.weight"], golden.checkpoint.state["cell_proj.weight"])


class _Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_that_calls_something_is_refused(official, capsys):
    folder, read = official
    (folder / "geneformer" / "token_dictionary.pkl").write_bytes(pickle.dumps({"a": _Evil()}))
    with pytest.raises(ModelError, match="not allowed"):
        read()
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cell_proj.bin", "text_bert/config.json", "cell_bert/pytorch_model.bin"])
def test_missing_file(official, name):
    folder, read = official
    (folder / "ckpt" / name).unlink()
    with pytest.raises(ModelError, match=name.rsplit("/", 1)[-1]):
        read()


def test_folder_with_a_missing_tensor(golden, tmp_path):
    from safetensors.torch import load_file, save_file

    checkpoints.save(tmp_path / "model", golden.checkpoint)
    state = load_file(tmp_path / "model" / "model.safetensors")
    del state["ctm_head.weight"]
    save_file(state, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing.*ctm_head\.weight"):
        checkpoints.load(str(tmp_path / "model"))


def test_model_paths_that_are_none(golden, tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        checkpoints.load(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="convert-model"):
        checkpoints.load(str(golden.folder / "ckpt"))
    (tmp_path / "config.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ModelError, match="format 'other', which is none of"):
        checkpoints.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"format": "cellray-langcell"}))
    with pytest.raises(ModelError, match="is missing"):
        checkpoints.load(str(tmp_path))


def test_more_tokens_than_positions(golden, tmp_path):
    checkpoints.save(tmp_path / "model", golden.checkpoint)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "max_tokens": 3000}))
    with pytest.raises(ModelError, match="max_tokens 3000 is more than the 2048 positions"):
        checkpoints.load(str(tmp_path / "model"))
