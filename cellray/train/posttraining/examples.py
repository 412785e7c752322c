"""Dialogues to tokens, and tokens to batches without padding between examples.

Contract: an example is the tokens of a prompt, as the model's chat template renders it, and those of what is to be said
after it, ended by the end token. Prompt and completion are tokenised apart, as they meet in generation. Examples that
are longer than the context are left out and counted: cutting the front, as the release does, would cut the puzzle.
``packed`` lays examples behind one another in rows of some 512 tokens or the longest example;
positions start anew with each, by which the attention of ``transformers`` keeps them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellray.errors import InputError
from cellray.puzzles.answer import solution, written
from cellray.puzzles.engine import Messages, rendered
from cellray.puzzles.puzzle import Puzzle

IGNORED = -100
_ROW = 512  # attention within a row is computed for all pairs of its tokens


@dataclass(frozen=True)
class Dialogue:
    """A chat and what is to be said next, behind the ``opening`` that the prompt ends with, if it has one."""

    messages: Messages
    said: str
    opening: str | None = None


@dataclass(frozen=True)
class Example:
    """Tokens of a prompt and of its completion, int32."""

    prompt: np.ndarray
    said: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt) + len(self.said)


@dataclass(frozen=True)
class Packed:
    """Rows of whole examples: tokens and positions, and the token that comes next where it counts, else ``IGNORED``.

    Attributes
    ----------
    ids, positions, target
        (rows, longest) int64.
    example
        (rows, longest) int64, the number of the example that a token is of; -1 in the padding behind the last.
    """

    ids: Tensor
    positions: Tensor
    target: Tensor
    example: Tensor

    def to(self, device: torch.device) -> "Packed":
        """Return it on a device."""
        return Packed(*(one.to(device) for one in (self.ids, self.positions, self.target, self.example)))


def dialogue(puzzle: Puzzle, said: str, placement: Any) -> Dialogue:
    """Return what a solved puzzle teaches; ``said`` as in ``SFTConfig``.

    Raises
    ------
    InputError
        If the puzzle has no answer, or no trace where one is asked for.
    """
    if len(puzzle.answer) != len(puzzle):
        msg = f"puzzle {puzzle.key}: {len(puzzle.answer)} answers for {len(puzzle)} cells; give records with answers"
        raise InputError(msg)
    if said == "trace" and not puzzle.trace:
        msg = f"puzzle {puzzle.key}: no reasoning trace; distil one (jobs.distill), or set said: list or answer"
        raise InputError(msg)
    text = {"trace": puzzle.trace, "answer": written("", puzzle.answer), "list": solution(puzzle)}[said]
    return Dialogue(puzzle.messages(placement), text)


def thinned(puzzle: Puzzle, most: float, rng: np.random.Generator) -> Puzzle:
    """Return the puzzle without a share of each cell's genes, at random up to ``most``; a cell keeps one at least."""
    kept = []
    for genes in puzzle.cells:
        shown = np.flatnonzero(rng.random(len(genes)) >= rng.uniform(0, most))
        kept.append(tuple(genes[at] for at in shown) or genes[:1])
    return replace(puzzle, cells=tuple(kept))


def prompt_tokens(tokenizer: Any, messages: Messages, opening: str | None = None) -> list[int]:
    """Return the tokens of a chat that the model is to go on with; the served engine renders it alike."""
    return tokenizer.encode(rendered(tokenizer, messages, opening), add_special_tokens=False)


def examples(tokenizer: Any, dialogues: Sequence[Dialogue], longest: int) -> tuple[list[Example], int]:
    """Tokenise dialogues; returns those of at most ``longest`` tokens, and how many were longer.

    Raises
    ------
    InputError
        If there is nothing to learn.
    """
    found = []
    for one in dialogues:
        said = [*tokenizer.encode(one.said, add_special_tokens=False), tokenizer.eos_token_id]
        prompt = prompt_tokens(tokenizer, one.messages, one.opening)
        found.append(Example(np.array(prompt, np.int32), np.array(said, np.int32)))
    kept = [one for one in found if len(one) <= longest]
    if not kept:
        what = f"all {len(found)} examples are longer than {longest} tokens" if found else "there are no examples"
        msg = f"{what}; give puzzles of fewer cells or genes, or a larger max_length"
        raise InputError(msg)
    return kept, len(found) - len(kept)


def packed(chosen: Sequence[Example], pad: int, row_tokens: int = _ROW) -> Packed:
    """Pack examples, each into the first row that has room, the longest first."""
    most = max(row_tokens, *map(len, chosen))
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(chosen)), key=lambda at: -len(chosen[at])):
        size = len(chosen[number])
        row = next((at for at, free in enumerate(left) if free >= size), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(most)
        rows[row].append(number)
        left[row] -= size
    room = most - min(left)
    ids = np.full((len(rows), room), pad, np.int64)
    positions = np.zeros((len(rows), room), np.int64)
    target = np.full((len(rows), room), IGNORED, np.int64)
    example = np.full((len(rows), room), -1, np.int64)
    for row, numbers in enumerate(rows):
        start = 0
        for number in numbers:
            one = chosen[number]
            stop, begins = start + len(one), start + len(one.prompt)
            ids[row, start:stop] = np.concatenate([one.prompt, one.said])
            positions[row, start:stop] = np.arange(len(one))
            target[row, begins - 1 : stop - 1] = one.said
            example[row, start:stop] = number
            start = stop
        positions[row, start:] = np.arange(room - start)
    return Packed(*map(torch.from_numpy, (ids, positions, target, example)))
