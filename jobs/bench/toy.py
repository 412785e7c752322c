"""A task whose optimum is known: name the listed cell type that comes first in the alphabet.

Contract: a random model of some sixty thousand weights is first taught to name any listed type, so that the format
is there and the reward is chance; GRPO has to find the rule from rewards alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellray.puzzles.answer import official, written
from cellray.puzzles.puzzle import Puzzle
from cellray.train.config import Sizes
from cellray.train.loop import Alone
from cellray.train.posttraining.config import GRPOConfig, SFTConfig
from cellray.train.posttraining.examples import Dialogue, examples, prompt_tokens
from cellray.train.posttraining.learner import GRPO, GRPOInput, Prompt
from cellray.train.posttraining.policy import open_tokenizer
from cellray.train.posttraining.sft import SFTInput, train
from cellray.train.puzzle_lm import random_model
from cellray.train.puzzle_tokens import puzzle_tokenizer

TYPES = ["B cell", "NK cell", "T cell", "erythrocyte", "fibroblast", "hepatocyte", "monocyte", "platelet"]
_LISTED = 3
_BATCH = 8
_CONTEXT = "The cell is from blood. "


def first_named(text: str, puzzle: Puzzle) -> float:
    """Return the toy's reward: 1 for the first candidate in the alphabet, else 0."""
    return float(official(text).items == (min(puzzle.candidates),))


def toy_puzzles(n: int, seed: int) -> list[Puzzle]:
    """Return puzzles that list three types."""
    rng = np.random.default_rng(seed)
    listed = [tuple(str(one) for one in rng.choice(TYPES, _LISTED, replace=False)) for _ in range(n)]
    return [Puzzle(_CONTEXT, (("GENE",),), names, (min(names),)) for names in listed]


def toy_model(folder: Path, *, steps: int = 800) -> Path:
    """Write a model that names a listed type at random."""
    tokenizer = puzzle_tokenizer(["GENE"], TYPES, [_CONTEXT])
    torch.manual_seed(0)
    sizes = Sizes(hidden=64, layers=1, heads=2, ffn=128, max_tokens=128)
    model = random_model(tokenizer, sizes, initializer_range=0.1, tie_word_embeddings=False)
    model.save_pretrained(folder / "random")
    tokenizer.save_pretrained(folder / "random")
    rng = np.random.default_rng(1)
    config = SFTConfig(
        name="toy", model=str(folder / "random"), adapter=None, epochs=1, batch=_BATCH, learning_rate=2e-3, warm_up=0.1
    )
    dialogues = [
        Dialogue(one.messages(), written("", [str(rng.choice(one.candidates))]))
        for one in toy_puzzles(steps * _BATCH, 2)
    ]
    found, _ = examples(tokenizer, dialogues, 128)
    policy, _, _ = train(SFTInput(config, found, [], tokenizer.pad_token_id))
    policy.save_model(folder / "taught", tokenizer)
    return folder / "taught"


def toy_config(model: Path, steps: int) -> GRPOConfig:
    """Return how the toy is learned."""
    return GRPOConfig(
        name="toy",
        model=str(model),
        adapter=None,
        steps=steps,
        prompts=32,
        group=8,
        micro=256,
        max_prompt=64,
        max_tokens=8,
        learning_rate=1e-3,
        placement="appended",
        save_steps=steps,
        cache_bytes=32 << 20,
    )


def toy_loop(config: GRPOConfig, actor: Any, reward: Callable[[str, Puzzle], float] = first_named) -> GRPO:
    """Return the loop of the toy, not yet run."""
    tokenizer = open_tokenizer(config.model)
    prompts = [Prompt(prompt_tokens(tokenizer, one.messages(config.placement)), one) for one in toy_puzzles(2048, 3)]
    return GRPO(GRPOInput(config, prompts, reward, [actor], tokenizer.pad_token_id, None), Alone())
