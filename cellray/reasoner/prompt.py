"""What a cell is asked in each mode, and how answers are drawn.

Contract: instructions, the answer's beginning and the decoding parameters are those that the released weights were
trained and evaluated with. The instruction stands in the system message, the cell sentence in the user's.

Deviations from the CellReasoner repository:

1. A direct answer has at most 256 tokens instead of 4,096: no cell type is that long.
2. A prompt longer than the context is a rejected cell; there its end is cut off, and with it the turn to answer.
3. Every cell has a seed of its own, made of its sentence and the run's seed.

The instructions speak of tumour cells whatever the tissue; a model trained with them may do so too.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from cellray.puzzles.engine import Sampling

Mode = Literal["direct", "reasoning"]
THINK, THOUGHT = "<think>", "</think>"

_TASK = (
    "These are highly expressed genes within a certain type of tumor cells; please annotate the cell type based on "
    "these marker genes. Please infer the cell type based on the marker genes, and "
)
INSTRUCTIONS: dict[Mode, str] = {
    "direct": f"{_TASK}directly give the final annotation result.",
    "reasoning": f"{_TASK}place the reason within the {THINK}{THOUGHT} tag.",
}
OPENINGS: dict[Mode, str] = {"direct": "", "reasoning": f"{THINK} "}
"""What an answer begins with; the model goes on from there."""


@dataclass(frozen=True)
class Decoding:
    """Parameters of drawing an answer."""

    temperature: float
    top_p: float
    max_tokens: int
    repetition_penalty: float = 1.1


DECODING: dict[Mode, Decoding] = {
    "direct": Decoding(0.01, 0.01, 256),
    "reasoning": Decoding(0.6, 0.4, 4096),
}


def messages(sentence: str, mode: Mode) -> list[dict[str, str]]:
    """Return the chat that asks for a cell's type."""
    return [{"role": "system", "content": INSTRUCTIONS[mode]}, {"role": "user", "content": sentence}]


def sampling(sentence: str, mode: Mode, seed: int, max_tokens: int | None = None) -> Sampling:
    """Return how the answer for a sentence is drawn."""
    decoding = DECODING[mode]
    digest = hashlib.sha256(f"{seed}\0{sentence}".encode()).digest()
    return Sampling(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        repetition_penalty=decoding.repetition_penalty,
        max_tokens=max_tokens or decoding.max_tokens,
        seed=int.from_bytes(digest[:4], "big") % 2**31,
        stop=(),
        opening=OPENINGS[mode],
    )
