"""``cellray convert-model`` on the command line."""

import json

import pytest
from typer.testing import CliRunner

from cellray.cli import app
from cellray.errors import CellRayError
from cellray.models import checkpoints


def convert(*arguments):
    result = CliRunner().invoke(app, ["convert-model", *map(str, arguments)])
    if isinstance(result.exception, CellRayError):
        raise result.exception
    return result


def test_scgpt(shared, tmp_path):
    assert convert(shared / "golden" / "scgpt-tiny" / "finetuned", tmp_path / "out").exit_code == 0
    labels = checkpoints.load(str(tmp_path / "out")).labels
    assert labels[0] == {"name": "B cell", "term_id": "CL:0000236", "text": ""}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config[key] for key in ("format", "n_bins", "normalise", "max_tokens", "zero_genes")} == {
        "format": "cellray-scgpt",
        "n_bins": 51,
        "normalise": "log1p",
        "max_tokens": 1200,
        "zero_genes": False,
    }


def test_scgpt_with_labels_of_the_user(shared, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\nf\n")
    more = ["--labels", tmp_path / "labels.txt", "--weights", "model_pytorch_layout.pt", "--zero-genes"]
    assert convert(shared / "golden" / "scgpt-tiny" / "finetuned", tmp_path / "out", *more).exit_code == 0
    assert [label["name"] for label in checkpoints.load(str(tmp_path / "out")).labels] == list("abcdef")


def test_langcell_needs_more(shared, tmp_path):
    golden = shared / "golden" / "langcell-tiny"
    with pytest.raises(CellRayError, match="--tokenizer and --gene-dictionaries"):
        convert(golden / "ckpt", tmp_path / "out")
    more = ["--tokenizer", golden / "tokenizer", "--gene-dictionaries", golden / "geneformer"]
    assert convert(golden / "ckpt", tmp_path / "out", *more).exit_code == 0
