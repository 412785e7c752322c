"""The official reading of answers, the lenient one, and what is accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.puzzles import Puzzle
from cellray.puzzles.answer import accepted, lenient, official, reasoning, written
from cellray.puzzles.puzzle import one_each

LABELS = ("B cell", "CD4-positive, alpha-beta T cell", "NK_cell", "B", "monocyte")
PUZZLE = Puzzle("x ", tuple((f"G{number}",) for number in range(5)), LABELS)
RIGHT = ("monocyte", "B", "B cell", "NK_cell", "CD4-positive, alpha-beta T cell")


def test_the_official_format():
    read = official(written("why", RIGHT))
    assert read.valid
    assert read.items == RIGHT


@pytest.mark.parametrize(
    "text",
    [
        "<answer>a | b</answer>",
        "<think>x</think><answer>a | b</answer>",
        "<think>x</think>\n\n<answer>a | b</answer>",
        "<think>x</think>\n<answer>a | b</answer>\n",
        " <think>x</think>\n<answer>a | b</answer>",
        "<think>x</think>\n<answer>a | b</answer> done",
        "<think>x</think>\n<answer>a</answer>",
        "<think>x <think></think>\n<answer>a | b</answer>",
        "<think>x</think>\n<answer>a | b",
        "<think>x</think>\n<answer>\na | b\n</answer>",
        "a | b",
        "",
    ],
)
def test_malformed_answers_are_invalid(text):
    assert not official(text).valid


def test_the_official_items_are_those_of_one_line():
    assert official("<answer>a | b").items == ("a", "b")
    assert official("I say\na | b | c\nd | e").items == ("a", "b", "c")
    assert official("<think>x</think>\n<answer>a || b | </answer>").items == ("a", "b")
    assert official("<answer>\na | b</answer>").items == ()


@pytest.mark.parametrize(
    "text",
    [
        " | ".join(RIGHT),
        "<answer>" + "\n".join(RIGHT) + "</answer>",
        "<answer>\n" + "\n".join(f"Cell {n}: {label}" for n, label in enumerate(RIGHT, 1)) + "\n</answer>",
        "<answer>" + "\n".join(f"{n}) {label}" for n, label in enumerate(RIGHT, 1)),
        "<answer>" + "; ".join(label.upper() for label in RIGHT) + "</answer>",
        "<answer>x</answer> no: <answer>" + " | ".join(RIGHT) + ".</answer>",
        "<think>B | B</think>" + " | ".join(label.replace("_", "-").replace("-", " ") for label in RIGHT),
        "**" + "** | **".join(RIGHT) + "**",
    ],
)
def test_malformed_answers_are_found_leniently(text):
    assert accepted(text, PUZZLE) == RIGHT


@pytest.mark.parametrize(
    "text",
    ["", "B | B | B cell | NK_cell | monocyte", "B | B cell", "T cell | x | y | z | w", "<answer></answer>"],
)
def test_what_is_no_permutation_is_not_accepted(text):
    assert accepted(text, PUZZLE) is None


@given(st.text(st.sampled_from("<>/|\n :;,.1 thinkanswer") | st.characters(), max_size=200))
def test_no_text_ends_in_anything_but_candidates(text):
    assert set(lenient(text, LABELS)) <= set(LABELS)
    found = accepted(text, PUZZLE)
    assert found is None or one_each(found, PUZZLE)
    official(text)
    reasoning(text)


@given(st.permutations(LABELS), st.text(max_size=50))
def test_written_answers_are_read_back(labels, thoughts):
    text = written(thoughts.replace("<", ""), labels)
    assert accepted(text, PUZZLE) == tuple(labels)
    assert reasoning(text) == thoughts.replace("<", "").strip()


def test_candidates_that_differ_in_dashes_alone_keep_their_own_spelling():
    puzzle = Puzzle("x ", (("A",), ("B",), ("C",)), ("T cell", "T-cell", "T cell-"))
    answer = ("T cell-", "T cell", "T-cell")
    assert accepted(written("", answer), puzzle) == answer
