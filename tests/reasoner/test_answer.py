"""Prompts of both modes, and what is read of an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.reasoner.answer import read_answer
from cellray.reasoner.prompt import INSTRUCTIONS, messages, sampling


def test_the_modes_differ_in_instruction_opening_and_decoding():
    system, user = messages("CD3D, IL7R", "reasoning")
    assert system == {"role": "system", "content": INSTRUCTIONS["reasoning"]}
    assert user == {"role": "user", "content": "CD3D, IL7R"}
    assert "<think></think>" in INSTRUCTIONS["reasoning"]
    assert "<think>" not in INSTRUCTIONS["direct"]
    direct, reasoning = (sampling("CD3D", mode, 0) for mode in ("direct", "reasoning"))
    assert (direct.temperature, direct.top_p, direct.repetition_penalty, direct.opening) == (0.01, 0.01, 1.1, "")
    assert (reasoning.temperature, reasoning.top_p, reasoning.max_tokens) == (0.6, 0.4, 4096)
    assert reasoning.opening == "<think> "


def test_draws_belong_to_the_sentence_and_the_seed():
    seeds = {sampling(sentence, "reasoning", seed).seed for sentence in ("A", "B") for seed in (0, 1)}
    assert len(seeds) == 4
    assert sampling("A", "reasoning", 0) == sampling("A", "reasoning", 0)


@pytest.mark.parametrize(
    ("text", "mode", "reasons", "label", "names"),
    [
        ("CD3D is high.</think>\n\nT cell", "reasoning", "CD3D is high.", "T cell", ("T cell",)),
        (
            "<think>a</think>b</think> NK cells or T cells\nmore",
            "reasoning",
            "ab",
            "NK cells or T cells",
            ("NK cells", "T cells"),
        ),
        ("CD3D is high, and so on", "reasoning", "CD3D is high, and so on", "", ()),
        ("why</think>", "reasoning", "why", "", ()),
        ("B cell", "direct", "", "B cell", ("B cell",)),
        ("\n **B cell** \n", "direct", "", "**B cell**", ("B cell",)),
        ("First, I will go through " + "the genes " * 40, "direct", "", "", ()),
        ("unknown", "direct", "", "unknown", ()),
    ],
)
def test_readings(text, mode, reasons, label, names):
    found = read_answer(text, mode)
    assert (found.reasons, found.label, found.said.names) == (reasons, label, names)


@given(st.text(), st.sampled_from(["direct", "reasoning"]))
def test_any_text_is_read(text, mode):
    found = read_answer(text, mode)
    assert "\n" not in found.label
    assert "</think>" not in found.reasons
