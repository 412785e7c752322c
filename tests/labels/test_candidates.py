import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellray.errors import LabelError
from cellray.labels.candidates import MAX_CHARS, Label, match_truth, prompt, read_labels
from cellray.labels.ontology import Ontology

KNOWN = (
    Label("T cell", "CL:0000084", "cell type: T cell. the model's own; "),
    Label("Liver Weirdo", "", "cell type: Liver Weirdo. "),
)


def test_prompts_have_the_format_of_langcell():
    assert prompt("T cell", "A lymphocyte.") == "cell type: T cell. A lymphocyte.; "
    assert prompt("platelet", "") == "cell type: platelet. "


def test_every_kind_of_line():
    text = "\ufeff# my labels\r\n\r\nB-cell\r\nCL:0000623\r\nMy cell\t a text, verbatim; \r\nplatelet\tshort"
    b_cell, nk_cell, mine, platelet = read_labels(text, "labels.txt")
    definition = Ontology().definition("CL:0000236")
    assert b_cell == Label("B-cell", "CL:0000236", f"cell type: B cell. {definition}; ")
    assert (nk_cell.name, nk_cell.term_id) == ("natural killer cell", "CL:0000623")
    assert mine == Label("My cell", "", " a text, verbatim; ")
    assert platelet == Label("platelet", "CL:0000233", "short")


def test_the_models_own_labels_come_first():
    labels = read_labels("t CELL\nliver weirdo\nB cell\n", "labels.txt", KNOWN)
    assert labels[0] == Label("t CELL", "CL:0000084", KNOWN[0].text)
    assert labels[1] == Label("liver weirdo", "", KNOWN[1].text)
    assert labels[2].term_id == "CL:0000236"
    for alias in ("CL:0000084", "cl:0000084"):
        assert read_labels(f"{alias}\nB cell", "labels.txt", KNOWN)[0] == KNOWN[0]
    assert read_labels("T lymphocyte\nB cell", "f", KNOWN)[0] == Label("T lymphocyte", "CL:0000084", KNOWN[0].text)


def test_an_obsolete_id_stands_for_its_replacement():
    label = read_labels("CL:0000003\nB cell", "labels.txt")[0]
    assert (label.name, label.term_id) == ("cell", "CL:0000000")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"f holds 0 label\(s\)"),
        ("T cell\n# B cell\n", r"f holds 1 label\(s\)"),
        ("T cell\nT cells\n", r"f line 2: 'T cells' is the label of line 1 again"),
        ("T cell\nT cello\n", r"f line 2: 'T cello' is neither.*close: .*t cell.*label<TAB>text"),
        ("T cell, B cell, NK cell\n", r"line 1: 'T cell, B cell, NK cell' holds several labels.*one label a line"),
        ("label,description\nT cell,CD3 positive\n", r"line 1: 'label,description' holds several.*one label a line"),
        ("T cell\nCL:9999999", "f line 2: 'CL:9999999'"),
        ("T cell\nCL:0000002", "f line 2: 'CL:0000002'"),
        ("T cell\n\nt  CELL", r"f line 3: .*line 1 again"),
        ("T cell\nCL:0000084", r"f line 2: .*line 1 again"),
        ("T cell\nT lymphocyte\tmy own", r"f line 2: .*line 1 again"),
        ("T cell\nmine\t ", "f line 2: the text is empty"),
        ("T cell\n\ttext", "f line 2: the label is empty"),
        ("T cell\nmine\ta\tb", r"f line 2: the text holds the control character U\+0009"),
        ("T cell\nmi\x00ne\ttext", r"f line 2: the label holds the control character U\+0000"),
        ("T cell\rB cell", r"f line 1: .*U\+000D"),
        ("T cell\nmine\tline\u2028break", r"U\+2028"),
        ("T cell\nmine\t" + "x" * (MAX_CHARS + 1), "f line 2: the text has 2001 characters"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(text, message):
    with pytest.raises(LabelError, match=message) as caught:
        read_labels(text, "f")
    assert "\n" not in str(caught.value)


PRINTABLE = st.characters(exclude_categories=["C", "Z"])
NAMES = st.text(PRINTABLE, min_size=1, max_size=12).filter(lambda name: not name.startswith("#"))
TEXTS = st.text(st.one_of(PRINTABLE, st.just(" ")), min_size=1, max_size=60).filter(str.strip)


def parsed(content, known=()):
    """Labels, or the message of the LabelError."""
    try:
        return read_labels(content, "f", known), ""
    except LabelError as error:
        return [], str(error)


@given(st.dictionaries(NAMES, TEXTS, min_size=2, max_size=8), st.sampled_from(["\n", "\r\n", "\n\n", "\n# x\n"]))
@example({"a": "1", "A": "2"}, "\n")
@settings(max_examples=60, deadline=None)
def test_labels_with_texts_survive_the_round_trip(entries, ending):
    labels, message = parsed(ending.join(f"{name}\t{text}" for name, text in entries.items()))
    if "again" in message:  # two spellings of one label
        return
    assert message == ""
    assert {label.name: label.text for label in labels} == entries
    assert [label.name for label in labels] == list(entries)


@given(st.one_of(st.text(max_size=80), st.text(st.sampled_from("aT cel\t\n\r#\ufeff:CL0084"), max_size=60)))
@settings(max_examples=60, deadline=None)
def test_any_content_gives_labels_or_a_label_error(content):
    labels, message = parsed(content, KNOWN)
    assert "\n" not in message
    assert bool(message) == (len(labels) < 2)
    assert len({label.name for label in labels}) == len(labels)
    assert all(label.text.strip() for label in labels)


def test_truth_is_matched_by_name_then_by_term():
    labels = [Label("Mono", "CL:0000576", ""), Label("B cell", "CL:0000236", ""), Label("odd", "", "")]
    values = ["mono", "monocyte", "B-cell", "B cells", "B cells", "odd", "T cell", "?", "cell"]
    ids = ["", "", "", "CL:0000236", "", "", "", "unknown", "CL:0000003"]
    assert match_truth(values, ids, labels, Ontology()) == [0, 0, 1, 1, 1, 2, -1, -1, -1]
    assert match_truth(values, None, labels, Ontology()) == [0, 0, 1, 1, 1, 2, -1, -1, -1]
    assert match_truth([], None, labels, Ontology()) == []


def test_a_name_beats_an_id_and_an_obsolete_id_is_resolved():
    labels = [Label("alpha", "CL:0000171", ""), Label("cell", "CL:0000000", "")]
    assert match_truth(["cell"], ["CL:0000171"], labels, Ontology()) == [1]
    assert match_truth(["x"], ["CL:0000003"], labels, Ontology()) == [1]
