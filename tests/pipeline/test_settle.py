"""Answers of a language model on the cells they are about."""

import numpy as np

from cellray.pipeline.reasoning import Inquiry, Question, candidate_names, settle
from cellray.puzzles.groups import Group
from cellray.puzzles.puzzle import Puzzle

LABELS = ["B cell | naive", "B cell / naive", "T cell", "T  cell", "x" * 200 + "1", "x" * 200 + "2"]


def test_labels_that_clean_to_the_same_text_stay_apart():
    names = candidate_names(LABELS)
    assert len(set(names)) == len(LABELS)
    assert candidate_names(["T cell", "B cell"]) == ["T cell", "B cell"]
    assert len(set(candidate_names(["a|b", "a/b", "a/b (1)"]))) == 3


def test_an_answer_means_one_of_them():
    names = candidate_names(LABELS)
    for number in (0, 1, 4, 5):
        puzzle = Puzzle(context="", cells=(("A", "B"),), candidates=tuple(names), dataset="d", group="g")
        group = Group(np.array([3, 7]), "g", (2, number), 0.1)
        scores = np.full((2, len(LABELS)), 0.1, np.float32)
        answers = {
            puzzle.key: {"status": "solved", "answer": [names[number]], "support": [1.0], "reasoning": "so it is"}
        }
        found = settle(Inquiry((group,), (scores,), (Question(puzzle, (0,)),)), answers, LABELS)
        assert found.labels.tolist() == [number, number]
        assert found.table["answer"].to_pylist() == [LABELS[number]]
