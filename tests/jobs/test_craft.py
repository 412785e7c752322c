"""CRAFT end to end: three stages on a toy, and the model asked about cells in both modes by a real engine."""

import json

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scipy import sparse
from transformers import Qwen2Config, Qwen2ForCausalLM

from cellray.errors import InputError
from cellray.reasoner.form import SentenceForm
from cellray.reasoner.prompt import INSTRUCTIONS
from cellray.train.posttraining.craft import CraftConfig, lessons
from cellray.train.puzzle_tokens import puzzle_tokenizer
from jobs import craft

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
    """Examples with reasons that name two genes of the sentence, chosen without a look at the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(n):
        kind = at % len(TYPES)
        genes = [GENES[4 * kind + one] for one in rng.permutation(4)]
        rows.append(
            {
                "instruction": "not read",
                "input": ", ".join(genes),
                "output": f"<think> {genes[0]} and {genes[1]} are high.</think>\n{TYPES[kind]}",
            }
        )
    path.write_text(json.dumps(rows))
    return path


def write_model(folder):
    """Write a language model of a few thousand weights that knows the words of the task."""
    phrases = [text.replace("<think>", "") for text in INSTRUCTIONS.values()]
    tokenizer = puzzle_tokenizer(GENES, TYPES, [*phrases, "</think>\n", "<think> ", " and ", " are high."])
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=96,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
