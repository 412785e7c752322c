"""Prompts equal the released records byte for byte, and bad puzzles are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.errors import PuzzleError
from cellray.puzzles import Puzzle
from cellray.puzzles.puzzle import NONE, SYSTEM, clean, one_each

NAME = st.text("ABCdef0123 -+", min_size=1, max_size=12).map(str.strip).filter(bool)


def test_the_released_records_come_back_byte_for_byte(shared):
    records = json.loads((shared / "data" / "cellpuzzles" / "samples.json").read_text())
    assert len(records) == 2
    for record in records:
        puzzle = Puzzle.of_prompt(record["user_msg"])
        assert puzzle.user == record["user_msg"]
        assert record["system_msg"] == SYSTEM
        assert len(puzzle) == len(puzzle.candidates)
        assert all(len(genes) == 50 for genes in puzzle.cells)
        puzzle.check()


def test_placements():
    puzzle = Puzzle("x ", (("A",), ("B",)), ("b", "c"))
    assert puzzle.messages("system") == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": puzzle.user},
    ]
    assert puzzle.messages("appended") == [{"role": "user", "content": f"{puzzle.user}\n{SYSTEM}"}]
    assert puzzle.messages("spaced") == [{"role": "user", "content": f"{puzzle.user} {SYSTEM}"}]


@given(st.lists(st.lists(NAME.filter(lambda n: " " not in n), min_size=1, max_size=4), min_size=1, max_size=6), NAME)
def test_of_prompt_reads_what_user_writes(cells, context):
    puzzle = Puzzle(context, tuple(map(tuple, cells)), tuple(f"type {number}" for number in range(len(cells))))
    assert Puzzle.of_prompt(puzzle.user) == puzzle


@pytest.mark.parametrize("text", ["", "Context: x", "Context: x\n\nCell 2: A\n\nMatch", "no puzzle at all"])
def test_other_text_is_no_puzzle(text):
    with pytest.raises(PuzzleError, match="no puzzle"):
        Puzzle.of_prompt(text)


@pytest.mark.parametrize(
    ("cells", "candidates", "code"),
    [
        ((), ("a",), "cells"),
        ((("A",), ()), ("a", "b"), "no_genes"),
        ((("A",), ("B",)), ("a",), "too_few_candidates"),
        ((("A",), ("B",)), ("a", "A"), "duplicate_candidate"),
        ((("A",), ("B",)), ("a", "b | c"), "bad_candidate"),
        ((("A",), ("B",)), ("a", "b\nc"), "bad_candidate"),
        ((("A",), ("B",)), ("a", "</answer>"), "bad_candidate"),
        ((("A",), ("B",)), ("a", " b"), "bad_candidate"),
    ],
)
def test_what_cannot_be_asked_has_a_code(cells, candidates, code):
    with pytest.raises(PuzzleError) as caught:
        Puzzle("x ", cells, candidates).check()
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_none_may_be_given_to_any_number_of_cells():
    puzzle = Puzzle("x ", (("A",), ("B",), ("C",)), ("a", NONE))
    puzzle.check()
    assert one_each((NONE, "a", NONE), puzzle)
    assert not one_each(("a", "a", NONE), puzzle)
    assert not one_each(("a", NONE), puzzle)


@given(st.text(max_size=300))
def test_clean_text_is_short_and_on_one_line(text):
    found = clean(text)
    assert len(found) <= 64
    assert "\n" not in found
    assert "<" not in found
    assert "|" not in found
    assert found == found.strip()
    assert clean(found) == found
