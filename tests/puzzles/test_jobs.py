"""The jobs of puzzles end to end: a small model is trained and learns, and the command for clusters solves puzzles."""

import json

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer, Qwen2ForCausalLM

from cellray.ingest import find_sources
from cellray.puzzles import records
from cellray.puzzles.build import BuildSettings, build
from cellray.puzzles.cells import Ranking, read_ranked
from cellray.puzzles.engine import check_model
from cellray.puzzles.puzzle import one_each
from cellray.train.config import PuzzleLMConfig
from cellray.train.puzzle_lm import Drawn, PuzzleLMTrainer, prepare_puzzles
from jobs import pretrain, solve_puzzles

CONFIG = {
    "architecture": "qwen2",
    "name": "small",
    "files": ["cells.h5ad"],
    "min_cells": 2,
    "max_cells": 3,
    "top_genes": 6,
    "listed_genes": 8,
    "min_gene_cells": 2,
    "sizes": {"hidden": 32, "layers": 1, "heads": 2, "ffn": 64, "max_tokens": 1024, "dropout": 0.0},
    "epochs": 2,
    "steps": 30,
    "drawers": 1,
    "validation_puzzles": 20,
    "learning_rate": 5e-3,
}


@pytest.mark.usefixtures("ray")
def test_the_job_trains_a_model_of_puzzles(labelled, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    where = ["--config", tmp_path / "config.yaml", "--data", labelled.parent, "--out", tmp_path / "model"]
    assert pretrain.main([*map(str, [*where, "--runs", tmp_path / "runs"]), "--threads", "1"]) == 0
    check_model(str(tmp_path / "model"))
    given = prepare_puzzles(PuzzleLMConfig(**CONFIG), labelled.parent)
    torch.manual_seed(0)
    fresh = PuzzleLMTrainer(given)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.get_vocab() == fresh.tokenizer.get_vocab()
    batch = Drawn(given, tokenizer, 9, 0, 1)[0]
    trained = Qwen2ForCausalLM.from_pretrained(tmp_path / "model").float().eval()
    with torch.inference_mode():
        before, after = (
            float(model(input_ids=batch.ids, labels=batch.target).loss) for model in (fresh.model, trained)
        )
    assert after < before / 2


def test_the_command_for_clusters(labelled, tmp_path, capsys):
    (source,) = find_sources([str(labelled)])
    found = build([read_ranked(source, Ranking(top_genes=6))], BuildSettings(min_cells=2, max_cells=3, per_size=20))
    for split in ("train", "test"):
        records.write(str(tmp_path / f"{split}.parquet"), found[split])
    where = [str(tmp_path / "test.parquet"), "--out", str(tmp_path / "out")]
    assert solve_puzzles.main([*where, "--baseline", str(tmp_path / "train.parquet"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["statuses"] == {"baseline": len(found["test"])}
    answers = pq.read_table(tmp_path / "out" / "answers.parquet")["answer"].to_pylist()
    assert all(one_each(answer, puzzle) for answer, puzzle in zip(answers, found["test"], strict=True))
    assert solve_puzzles.main(where) == 2
    assert "--baseline" in capsys.readouterr().err
