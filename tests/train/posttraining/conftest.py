"""A language model of some ten thousand weights, and puzzles in its words."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from cellray.puzzles import records
from cellray.puzzles.puzzle import Puzzle
from cellray.train.puzzle_tokens import puzzle_tokenizer

TYPES = ["B cell", "NK cell", "T cell", "monocyte", "platelet"]
GENES = [f"G{number}" for number in range(10)]
CONTEXT = "The cell is from blood. "
SMALL_GRPO = {
    "name": "small",
    "steps": 4,
    "prompts": 4,
    "group": 3,
    "max_prompt": 100,
    "max_tokens": 12,
    "learning_rate": 0.01,
    "adapter": {"rank": 4, "alpha": 8},
    "cache_bytes": 16 << 20,
    "sequences": 16,
}


def made_up(n, seed=0, sizes=(2, 3, 4, 5)):
    """Puzzles of types with two genes each."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        answer = [TYPES[at] for at in rng.permutation(len(TYPES))[: rng.choice(sizes)]]
        cells = tuple((f"G{2 * TYPES.index(one)}", f"G{2 * TYPES.index(one) + 1}") for one in answer)
        offered = tuple(answer[at] for at in rng.permutation(len(answer)))
        found.append(Puzzle(CONTEXT, cells, offered, tuple(answer)))
    return found


def write_language_model(folder, *, seed=0, hidden=32):
    """Write a model folder."""
    tokenizer = puzzle_tokenizer(GENES, TYPES, [CONTEXT])
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("lm") / "tiny")


@pytest.fixture(scope="session")
def solved(tmp_path_factory):
    """A file of puzzles with answers."""
    path = tmp_path_factory.mktemp("solved") / "train.parquet"
    records.write(str(path), made_up(48))
    return path
