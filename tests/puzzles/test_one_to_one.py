"""One-to-one decoding: whatever is drawn from the allowed tokens, the answer is a permutation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.puzzles import Puzzle
from cellray.puzzles.answer import accepted, official
from cellray.puzzles.one_to_one import OneToOne, Vocabulary
from cellray.puzzles.puzzle import NONE

LABELS = ["B", "B cell", "B cell of liver", "T", "TT", "T cell", "γδ T", "γδ", "a, b", "A_b-c", "mono", "monocyte"]
PIECES = ["<think>", "</think>", "</think>\n", ">\n", ">\n\n", "<answer>", "</answer>", "<answer>B", " | ", " |", "| "]
PIECES += [" cell", "cell of", "B cell |", "answer", "think", "er>", "mono", "cyte</", " T | B"]
END = 256 + len(PIECES)
SPECIAL = END + 1
VOCABULARY = Vocabulary(
    [bytes([code]) for code in range(256)] + [piece.encode() for piece in PIECES] + [b"<end>", b"<other>"],
    frozenset({END, SPECIAL}),
    frozenset({END}),
)


def written(labels, n, budget, seed, think=()):
    """Write an answer token by token: ``think`` first as far as it may, then at random."""
    rng = np.random.default_rng(seed)
    state, tokens = OneToOne(VOCABULARY, labels, n, budget), []
    for _ in range(3000):
        state.read(tokens)
        allowed = state.allowed()
        if state.finished:
            assert allowed == [END]
            return b"".join(VOCABULARY.bytes_of[token] for token in tokens).decode()
        if allowed is None:
            tokens.append(think[len(tokens)] if len(tokens) < len(think) else int(rng.integers(END)))
        else:
            assert allowed
            tokens.append(int(rng.choice(allowed)))
    raise AssertionError


def ids(text):
    return [next(iter(VOCABULARY.ids[text]))] if text in VOCABULARY.ids else list(text)


@settings(max_examples=300)
@given(
    st.integers(2, len(LABELS)).flatmap(lambda n: st.permutations(LABELS).map(lambda some: some[:n])),
    st.integers(0, 5),
    st.integers(0, 10_000),
)
def test_answers_are_permutations(labels, fewer, seed):
    n = max(1, len(labels) - fewer)
    puzzle = Puzzle("x ", tuple(("G",) for _ in range(n)), tuple(labels))
    think = [token for piece in (b"<think>", b"abc") for token in ids(piece)]
    text = written(labels, n, len(think), seed, think)
    assert accepted(text, puzzle) is not None
    assert official(text).items == accepted(text, puzzle) or n == 1
    if n > 1:
        assert official(text).valid


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(0, 60))
def test_wild_thoughts_end_in_a_permutation_all_the_same(seed, budget):
    labels = LABELS[:5]
    state, tokens, rng = OneToOne(VOCABULARY, labels, 5, budget), [], np.random.default_rng(seed)
    while not state.finished:
        state.read(tokens)
        allowed = state.allowed()
        if allowed == [END]:
            break
        # Tags and their pieces are drawn often.
        tokens.append(int(rng.choice(allowed)) if allowed else int(rng.integers(250, END)))
        assert len(tokens) < 1000
    text = b"".join(VOCABULARY.bytes_of[token] for token in tokens).decode(errors="replace")
    items = text.rsplit("<answer>", 1)[1].removesuffix("</answer>").split(" | ")
    assert sorted(items) == sorted(labels)


def test_a_closed_thought_leads_straight_to_the_answer():
    think = [*ids(b"<think>"), *ids(b"x"), *ids(b"</think>\n")]
    text = written(["a", "b"], 2, 50, 0, think)
    assert text.startswith("<think>x</think>\n<answer>")
    assert official(text).valid


def test_none_repeats():
    texts = {written(["a", NONE], 3, 0, seed) for seed in range(20)}
    puzzle = Puzzle("x ", (("G",), ("G",), ("G",)), ("a", NONE))
    assert all(accepted(text, puzzle) for text in texts)
    assert any(text.count(NONE) == 3 for text in texts)


def test_bad_arguments():
    with pytest.raises(ValueError, match="1 candidates for 2"):
        OneToOne(VOCABULARY, ["a"], 2, 5)
    for wanted in ({"candidates": "ab", "n": 1, "budget": 1}, {"candidates": ["a"], "n": "1", "budget": 1}):
        with pytest.raises(ValueError, match="needs candidates"):
            OneToOne.of(VOCABULARY, wanted)
