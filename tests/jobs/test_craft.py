"""CRAFT end to end: three stages on a toy, and the model asked about cells in both modes by a real engine."""

import contextlib
import io
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scanpy as sc
import torch
import yaml
from scipy import sparse
from transformers import Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

from cellray.cli import app
from cellray.errors import InputError
from cellray.reasoner.form import SentenceForm
from cellray.reasoner.prompt import INSTRUCTIONS
from cellray.train.posttraining.craft import CraftConfig, lessons, read_examples
from cellray.train.puzzle_tokens import gene_pieces, puzzle_tokenizer
from jobs import craft
from tests.killing import killed_worker

TYPES = ["B cell", "NK cell", "T cell", "monocyte"]
GENES = [f"G{number}" for number in range(16)]
SENTENCE = 4


def write_cells(path, n, seed):
    """Cells of four types with four genes each; counts elsewhere are rare. Row 3 is empty, row 5 has no label."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % len(TYPES)
    rate = np.where(np.arange(16) // 4 == kind[:, None], 15, 0.3)
    counts = rng.poisson(rate).astype(np.float32)
    counts[3] = 0
    labels = [TYPES[one] for one in kind]
    labels[5] = ""
    obs = pd.DataFrame({"cell_type": labels}, index=[f"c{row}" for row in range(n)])
    anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(path)
    return path


def write_reasons(path, n, seed):
    """Examples with reasons that name the first gene of the sentence."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(n):
        kind = at % len(TYPES)
        genes = [GENES[4 * kind + one] for one in rng.permutation(4)]
        rows.append(
            {
                "instruction": "not read",
                "input": ", ".join(genes),
                "output": f"<think> {genes[0]} is high.</think>\n{TYPES[kind]}",
            }
        )
    path.write_text(json.dumps(rows))
    return path


def write_model(folder):
    """Write a small language model; the vectors of its words say which gene goes with which type."""
    phrases = [text.replace("<think>", "") for text in INSTRUCTIONS.values()]
    tokenizer = puzzle_tokenizer(GENES, TYPES, [*phrases, "</think>\n", "<think> ", " is high."])
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        num_attention_heads=1,  # vLLM on a CPU takes no heads narrower than 32
        num_key_value_heads=1,
        max_position_embeddings=96,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for kind, label in enumerate(TYPES):
            words = [label, *(piece for gene in GENES[4 * kind : 4 * kind + 4] for piece in gene_pieces(gene))]
            model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(words)] += 0.2 * torch.randn(32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(folder, **more):
    return {
        "name": "toy",
        "model": str(folder / "base"),
        "adapter": None,
        "dtype": "float32",
        "batch": 8,
        "accumulate": 1,
        "max_length": 96,
        "warm_up": 0,
        "genes": SENTENCE,
        "min_genes": 1,
        "stages": [
            {"name": "scaffold", "reasoned": [str(folder / "reasons.json")], "learning_rate": 0.01, "epochs": 4},
            {"name": "infusion", "direct": [str(folder / "cells.h5ad")], "learning_rate": 0.01, "epochs": 2},
            {
                "name": "fusion",
                "reasoned": [str(folder / "reasons.json")],
                "replay": 0.5,
                "learning_rate": 0.01,
                "epochs": 4,  # after 2 some processors' sums leave a model that reasons where it was not asked to
            },
        ],
        **more,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model, training cells, reasons, and other cells."""
    folder = tmp_path_factory.mktemp("craft")
    write_model(folder / "base")
    write_cells(folder / "cells.h5ad", 256, 0)
    write_reasons(folder / "reasons.json", 160, 0)
    write_cells(folder / "other.h5ad", 40, 1)
    return folder


@pytest.fixture(scope="module")
def job(folder):
    """Arguments of the job."""
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(folder)))
    told = ["--config", folder / "config.yaml", "--out", folder / "out", "--runs", folder / "runs", "--threads", 1]
    return [*map(str, told), "--json"]


@pytest.fixture(scope="module")
def crafted(job, folder, ray):
    """The trained model's folder, and what the job told; a worker is killed meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()) as out, killed_worker(folder / "runs") as killed:
        assert craft.main(job) == 0
    assert killed
    told = json.loads(out.getvalue())
    return told["model"], told


def ask(crafted, files, *options, failed=()):
    """Run ``cellray reason``; returns the rows and facts of ``other``."""
    arguments = ["reason", *files, "--model", crafted[0], "--min-genes", 1, "--truth-key", "cell_type"]
    shown = CliRunner().invoke(app, [*map(str, [*arguments, *options]), "--json"])
    assert shown.exit_code == (3 if failed else 0), shown.output
    told = json.loads(shown.stdout)
    assert list(told["failed"]) == list(failed)
    facts = told["datasets"]["other"]
    return pq.read_table(facts["file"]).to_pylist(), facts


def check(rows, facts):
    assert [row["row"] for row in rows] == list(range(40))
    assert (rows[3]["status"], rows[3]["reject_code"]) == ("rejected", "empty_cell")
    assert facts["n_cells"] == facts["n_annotated"] + facts["n_abstained"] + facts["n_rejected"] == 40
    assert facts["n_rejected"] == 1
    assert facts["score"]["cells"] == 38
    assert facts["score"]["graded"] >= facts["score"]["exact"] > 0.8


@pytest.mark.timeout(900)
def test_three_stages_and_both_modes(crafted, folder, job, tmp_path, capsys):
    model, told = crafted
    assert list(told["stages"]) == ["scaffold", "infusion", "fusion"]
    assert [stage["examples"] for stage in told["stages"].values()] == [160, 254, 287]
    assert told["left_out"] == {"empty_cell": 1, "no_label": 1}
    assert SentenceForm.of(model) == SentenceForm(genes=SENTENCE)

    before = Path(model, "model.safetensors").stat().st_mtime_ns
    assert craft.main(job) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert Path(model, "model.safetensors").stat().st_mtime_ns == before

    reasoning = ["--mode", "reasoning", "--out", tmp_path / "reasons", "--max-tokens", 24, "--shard-cells", 16]
    files = [folder / "other.h5ad"]
    rows, facts = ask(crafted, files, *reasoning)
    check(rows, facts)
    asked = [row for row in rows if row["status"] == "annotated"]
    assert all(row["reasoning"].endswith(" is high.") for row in asked)
    assert facts["markers"] == len(asked)
    assert facts["markers_held"] / facts["markers"] > 0.8
    counts = anndata.read_h5ad(folder / "other.h5ad").to_df()
    for row in asked:
        (made,) = row["markers"]
        assert made["expressed"]
        assert made["count"] == counts.loc[row["cell_id"], made["gene"]]
        assert row["support"] == float(made["count"] > 0)
    # Again in other shards, beside a dataset that cannot be read: the same rows, and the other one fails alone.
    (tmp_path / "broken.h5ad").write_bytes(b"no file of this kind")
    options = ["--mode", "reasoning", "--out", tmp_path / "reasons", "--max-tokens", 24]
    assert ask(crafted, [*files, tmp_path / "broken.h5ad"], *options, failed=["broken"]) == (rows, facts)

    rows, facts = ask(crafted, files, "--out", tmp_path / "direct")
    check(rows, facts)
    assert facts["markers"] == 0
    assert {row["reasoning"] for row in rows if row["status"] == "annotated"} == {""}
    assert {row["cell_type_ontology_term_id"] for row in rows if row["answer"] == "T cell"} == {"CL:0000084"}


def test_examples_of_either_kind(tmp_path, folder):
    (tmp_path / "some.jsonl").write_text(json.dumps({"input": "A, B", "output": "T cell"}))
    stages = [
        {"name": "one", "direct": [str(tmp_path / "some.jsonl")], "learning_rate": 1, "epochs": 1},
        {"name": "two", "reasoned": [str(folder / "reasons.json")], "replay": 1, "learning_rate": 1, "epochs": 1},
    ]
    config = CraftConfig(**settings(folder, stages=stages))
    first, second = lessons(config, SentenceForm()).stages
    assert [one.said for one in first] == ["T cell"]
    assert second[-1] == first[0]
    assert second[0].opening == "<think> "
    assert second[0].said.count("</think>\n") == 1
    assert "<think>" not in second[0].said


def test_a_listed_form_and_held_out_cells(folder, tmp_path):
    (tmp_path / "ranked.txt").write_text("\n".join(["G9", "G1", "G0", "NOT-THERE"]))
    config = CraftConfig(
        **settings(folder, ranked_genes=str(tmp_path / "ranked.txt"), hold_out={"fraction": 0.5}, genes=2)
    )
    form = config.sentence_form()
    assert (form.form, form.genes) == ("hvg_rank", 2)
    found = lessons(config, form)
    assert 60 < found.left_out["held_out"] < 190
    for one in found.stages[1]:
        assert one.messages[1]["content"] in {"G9", "G1", "G0", "G9, G1", "G9, G0", "G1, G0"}


def test_a_list_made_of_the_training_cells(folder):
    """The list is scanpy's order of highly variable genes; columns stored by gene are read too."""
    data = anndata.read_h5ad(folder / "cells.h5ad")
    data.X = sparse.csc_matrix(data.X)
    data.obs["cell_type"] = data.obs["cell_type"].astype(str).replace("NK cell", "")
    data.write_h5ad(folder / "by_gene.h5ad")
    stages = [{"name": "one", "direct": [str(folder / "by_gene.h5ad")], "learning_rate": 1, "epochs": 1}]
    config = CraftConfig(**settings(folder, stages=stages, ranked_from_cells=9, genes=3))
    form = config.sentence_form()
    trained = data[(data.obs["cell_type"] != "") & (data.X.sum(axis=1).A1 > 0)].copy()
    trained.X = sparse.csr_matrix(trained.X)
    sc.pp.normalize_total(trained, target_sum=1e4)
    sc.pp.log1p(trained)
    sc.pp.highly_variable_genes(trained, n_top_genes=9)
    by_scanpy = trained.var["dispersions_norm"].sort_values(ascending=False, kind="stable").index[:9]
    assert (form.form, form.genes, form.ranked[:4]) == ("hvg_rank", 3, tuple(by_scanpy[:4]))
    assert set(form.ranked) == set(by_scanpy)
    found = lessons(config, form)
    assert found.left_out["no_label"] == 64
    places = {gene: at for at, gene in enumerate(form.ranked)}
    for one in found.stages[0]:
        told = [places[gene] for gene in one.messages[1]["content"].split(", ")]
        assert told == sorted(told)


@pytest.mark.parametrize(
    ("output", "mode", "says"),
    [
        ("no reasons here", "reasoning", "record 0 has no reasons before </think>"),
        ("<think>why</think>T cell", "direct", "record 0 holds </think>"),
        ("<think>why</think>", "reasoning", "record 0 needs input"),
        (7, "direct", "record 0 needs input"),
    ],
)
def test_examples_of_the_wrong_kind(tmp_path, output, mode, says):
    (tmp_path / "x.json").write_text(json.dumps([{"input": "A", "output": output}]))
    with pytest.raises(InputError, match=says):
        read_examples(str(tmp_path / "x.json"), mode)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": 3}, "epoch: Extra inputs"),
        ({"form": "hvg_rank"}, "hvg_rank needs a list"),
        ({"model": "nowhere"}, "no config.json"),
        ({"ranked_from_cells": 9, "form": "expr_rank"}, "leave ranked_genes and form expr_rank away"),
        ({"label_key": "type"}, "obs has no 'type'"),
        ({"stages": [{"name": "one", "learning_rate": 1, "epochs": 1}]}, "nothing to learn"),
        ({"stages": [{"name": "one", "direct": ["a.json"], "replay": 1, "learning_rate": 1, "epochs": 1}]}, "replay"),
        ({"stages": [{"name": "one", "reasoned": ["no.json"], "learning_rate": 1, "epochs": 1}]}, "no.json"),
    ],
)
def test_a_users_mistake_is_one_line(folder, tmp_path, capsys, change, says):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(folder, **change)))
    assert craft.main(["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
