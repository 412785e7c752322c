"""scGPT: the official folder in every layout, parity with the official numbers, and every way it can be wrong."""

import json
import shutil

import numpy as np
import pytest
import torch

from cellray.errors import ModelError
from cellray.models import checkpoints
from cellray.models.official_scgpt import read_official_scgpt
from cellray.models.packed import Segments

LAYOUTS = ["model.pt", "model_pytorch_layout.pt", "model_fa2_layout.pt"]


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "scgpt-tiny"


def packed(genes, values, pad):
    """The official collator's batch without its padding."""
    kept = genes != pad
    cells = Segments.of(kept.sum(1).tolist())
    return torch.from_numpy(genes[kept]).long(), torch.from_numpy(values[kept]), cells


def official_batches(expected):
    for number in range(sum(name.startswith("gene_") and name[5:].isdigit() for name in expected.files)):
        yield expected[f"gene_{number}"], expected[f"expr_{number}"]


@pytest.mark.parametrize(
    "name",
    [
        "embed_tiefree_full",
        "embed_tiefree_maxlen300_seed0",
        "embed_counts_full_seed0",
        "embed_counts_maxlen1200_seed0",
    ],
)
def test_cls_states_of_the_official_tokens(folder, name):
    expected = np.load(folder / "expected" / f"{name}.npz")
    model = read_official_scgpt(folder / "ckpt").build()
    with torch.inference_mode():
        states = torch.cat([model.encode_cells(*packed(*batch, 2540)) for batch in official_batches(expected)]).numpy()
    np.testing.assert_allclose(states, expected["cls_unnormalised"], atol=1e-4)
    np.testing.assert_allclose(states / np.linalg.norm(states, axis=1)[:, None], expected["X_scGPT"], atol=1e-5)


@pytest.mark.parametrize("weights", LAYOUTS)
@pytest.mark.parametrize("name", ["tiefree_nonzero", "tiefree_withzeros", "counts_nonzero_seed0"])
def test_classes_of_the_official_tokens(folder, weights, name):
    expected = np.load(folder / "expected" / f"finetuned_{name}.npz")
    checkpoint = read_official_scgpt(folder / "finetuned", weights=weights)
    assert [label["name"] for label in checkpoint.labels] == list(expected["types"])
    model = checkpoint.build()
    with torch.inference_mode():
        states = model.encode_cells(*packed(expected["tok_genes"], expected["tok_values"], 2540))
        logits, probabilities = model.cls_decoder(states), model.classify(states)
    np.testing.assert_allclose(states, expected["cell_emb"], atol=1e-4)
    np.testing.assert_allclose(logits, expected["cls_logits"], atol=1e-4)
    np.testing.assert_allclose(probabilities, expected["probs"], atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(1), expected["pred"])


def test_saved_folder_gives_the_same_model(folder, tmp_path):
    checkpoint = read_official_scgpt(folder / "finetuned", max_length=3001, zero_genes=True)
    checkpoints.save(tmp_path / "model", checkpoint)
    again = checkpoints.load(str(tmp_path / "model"))
    assert again.config == checkpoint.config
    assert (again.config.max_tokens, again.config.normalise, again.config.zero_genes) == (3001, "log1p", True)
    assert again.labels == checkpoint.labels
    assert again.genes.equals(checkpoint.genes)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in checkpoint.state.items())


@pytest.fixture
def official(folder, tmp_path):
    """A copy of the fine-tuned checkpoint to damage."""
    shutil.copytree(folder / "finetuned", tmp_path / "official", copy_function=shutil.copyfile)
    (tmp_path / "official").chmod(0o755)
    return tmp_path / "official"


def edit(path, change):
    found = torch.load(path, weights_only=True) if path.suffix == ".pt" else json.loads(path.read_text())
    change(found)
    torch.save(found, path) if path.suffix == ".pt" else path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("args.json", lambda args: args.update(nlayers=3), r"missing.*layers\.2"),
        ("args.json", lambda args: args.update(embsize=64), r"shape \(\d+, 32\).*64"),
        ("args.json", lambda args: args.update(nheads=5), "does not divide"),
        ("args.json", lambda args: args.pop("d_hid"), "'d_hid' is missing"),
        ("args.json", lambda args: args.update(input_emb_style="category"), "continuous"),
        ("vocab.json", lambda vocab: vocab.pop("<cls>"), "ids are not"),
        ("vocab.json", lambda vocab: vocab.update(surplus=0), "ids are not"),
        ("vocab.json", lambda vocab: vocab.update(surplus=len(vocab)), r"2544 tokens.*2543"),
        ("model.pt", lambda state: state.pop("encoder.enc_norm.bias"), r"missing.*enc_norm\.bias"),
        ("model.pt", lambda state: state.update({"dsbn.bns.0.weight": torch.zeros(1)}), "dsbn.*not supported"),
        (
            "model.pt",
            lambda state: state["value_encoder.norm.bias"].fill_(torch.nan),
            r"value_encoder\.norm\.bias.*NaN",
        ),
        ("id2type.json", lambda names: names.pop("5"), "'5' is missing"),
    ],
)
def test_what_does_not_fit_is_named(official, file, change, said):
    edit(official / file, change)
    with pytest.raises(ModelError, match=said):
        read_official_scgpt(official)


def test_missing_specials_are_added_where_the_weights_have_rows_for_them(official):
    """As upstream's loader does for the older checkpoints."""
    edit(official / "vocab.json", lambda vocab: [vocab.pop(name) for name in ("<pad>", "<cls>", "<eoc>")])
    checkpoint = read_official_scgpt(official)
    assert checkpoint.config.cls_token == 2541
    assert checkpoint.genes.num_rows == 2540


def test_labels_must_be_known(official):
    (official / "id2type.json").unlink()
    with pytest.raises(ModelError, match="--labels"):
        read_official_scgpt(official)
    with pytest.raises(ModelError, match="1 labels for the 6 classes"):
        read_official_scgpt(official, names=["B cell"])


def test_missing_files(official):
    (official / "model.pt").unlink()
    with pytest.raises(ModelError, match="--weights"):
        read_official_scgpt(official)
    with pytest.raises(ModelError, match="convert-model"):
        checkpoints.load(str(official))
    with pytest.raises(ModelError, match=r"args\.json"):
        read_official_scgpt(official.parent)


def test_a_folder_of_the_other_kind(folder, golden, tmp_path):
    checkpoints.save(tmp_path / "scgpt", read_official_scgpt(folder / "ckpt"))
    with pytest.raises(ModelError, match="'cellray-scgpt'; this needs 'cellray-langcell'"):
        checkpoints.load_langcell(str(tmp_path / "scgpt"))
    checkpoints.save(tmp_path / "langcell", golden.checkpoint)
    (tmp_path / "langcell" / "config.json").write_bytes((tmp_path / "scgpt" / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"genes\.parquet has columns"):
        checkpoints.load(str(tmp_path / "langcell"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_bins": 2}, "n_bins is 2"),
        ({"normalise": "sqrt"}, "normalise 'sqrt' is not one of"),
        ({"n_classes": 7}, "shape"),
        ({"num_heads": 3}, "does not divide"),
    ],
)
def test_a_folder_with_settings_that_cannot_be(folder, tmp_path, change, said):
    checkpoints.save(tmp_path / "model", read_official_scgpt(folder / "finetuned"))
    edit(tmp_path / "model" / "config.json", lambda config: config.update(change))
    with pytest.raises(ModelError, match=said):
        checkpoints.load(str(tmp_path / "model"))
