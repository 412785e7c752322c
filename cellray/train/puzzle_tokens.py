"""The tokenizer of the small puzzle model: a token a gene, a cell type, and a phrase that every prompt has.

Contract: a ``Qwen2Tokenizer``, which is what the libraries take for a Qwen2 model, whose own vocabulary are the 256
bytes; everything else is an added token, found before and longest first. Any text can be encoded and comes back, so
labels and contexts that training never saw can be read and written. Names outside ASCII have no token of their own.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel

from cellray.puzzles.puzzle import MATCH, SEPARATOR, SYSTEM

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_MOST_CELLS = 64
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def gene_pieces(gene: str) -> tuple[str, str]:
    """Return the two tokens of a gene: where it stands first, and behind another."""
    return gene, f", {gene}"


def puzzle_tokenizer(genes: Iterable[str], labels: Iterable[str], contexts: Iterable[str] = ()) -> "Qwen2Tokenizer":
    """Return a tokenizer that knows ``genes``, ``labels`` and whole ``contexts``."""
    from transformers import Qwen2Tokenizer

    cells = [f"{before}Cell {number}: " for number in range(1, _MOST_CELLS + 1) for before in ("", "\n")]
    phrases = ["<think>", "</think>\n<answer>", "</think>", "<answer>", "</answer>", SEPARATOR, f"\n\n{MATCH}\n"]
    phrases += ["\n" + SYSTEM, SYSTEM, "Context: ", "user\n", "system\n", "assistant\n", "\n"]
    pieces = [*phrases, *cells, *contexts, *labels, *(piece for gene in genes for piece in gene_pieces(gene))]
    tokenizer = Qwen2Tokenizer(
        vocab={letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))},
        merges=[],
        unk_token=PAD,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(START, special=True, normalized=False)], special_tokens=True)
    own = [piece for piece in dict.fromkeys(pieces) if piece.isascii() and len(piece) > 1]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    return tokenizer
