"""Labels as people write them, read whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.labels.candidates import Label, close_labels, match_truth, read_labels
from cellray.labels.names import joined, singular, term_of
from cellray.labels.ontology import Ontology

ONTOLOGY = Ontology()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("T cells", "T cell"),
        ("B cells", "B cell"),
        ("B-cells", "B cell"),
        ("b_cells", "B cell"),
        ("NK cells", "natural killer cell"),
        ("NK", "natural killer cell"),
        ("CD14+ Monocytes", "CD14-positive monocyte"),
        ("CD14+ Monocyte", "CD14-positive monocyte"),
        ("FCGR3A+ Monocytes", "CD14-low, CD16-positive monocyte"),
        ("HSPC", "hematopoietic precursor cell"),
        ("Macrophages", "macrophage"),
        ("Dendritic cells", "dendritic cell"),
        ("pDC", "plasmacytoid dendritic cell"),
        ("Treg", "regulatory T cell"),
        ("Tregs", "regulatory T cell"),
        ("CD4 T cells", "CD4-positive, alpha-beta T cell"),
        ("CD8+ T", "CD8-positive, alpha-beta T cell"),
        ("CD8 T", "CD8-positive, alpha-beta T cell"),
        ("Endothelial cells", "endothelial cell"),
        ("Fibroblasts", "fibroblast"),
        ("CD4 TCM", "CD4-positive, alpha-beta memory T cell"),
        ("AT2", "pulmonary alveolar type 2 cell"),
        ("Plasma cells", "plasma cell"),
        ("CL:0000084", "T cell"),
        ("cl:0000236", "B cell"),
    ],
)
def test_usual_names(text, name):
    term = term_of(text, ONTOLOGY)
    assert term, text
    found = ONTOLOGY.name(term)
    assert found == name or name in [ONTOLOGY.name(one) for one in ONTOLOGY.ancestors(term)], found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?",
        "unknown",
        "Unassigned",
        "doublets",
        "T cell doublet",
        "low quality",
        "T or NK cells",
        "cluster 7",
        "tumor-associated macrophages of nowhere",
        "IL21+ CD4 T cells",
        "cells",
        "CL:9999999",
    ],
)
def test_what_names_no_single_type(text):
    assert term_of(text, ONTOLOGY) == ""


def test_a_finer_truth_is_not_a_coarser_label():
    labels = [Label("T cell", "CL:0000084", ""), Label("CD4 T cells", "CL:0000624", "")]
    assert match_truth(["IL21+ CD4 T cells", "CD4+ naive T cells", "T-cells"], None, labels, ONTOLOGY) == [-1, -1, 0]


def test_labels_that_are_no_type_match_their_plural_unless_two_do():
    labels = [Label("Odd cell", "", ""), Label("even_cell", "", ""), Label("even cells", "", "")]
    assert match_truth(["odd cells", "ODD-CELL", "even cells", "even-cell"], None, labels, ONTOLOGY) == [0, 0, 2, -1]
    assert close_labels("od cells", labels)[0] == "Odd cell"


def test_every_label_of_the_ontology_means_itself():
    for term in ONTOLOGY.terms()[::97]:
        assert term_of(ONTOLOGY.name(term), ONTOLOGY) == term


@given(st.text(max_size=60))
def test_any_text_is_read(text):
    term = term_of(text, ONTOLOGY)
    assert term == "" or ONTOLOGY.find(term) == term
    assert singular(text) == singular(singular(text)) or len(text) > 3
    assert joined(joined(text)) == joined(text)


def test_label_files_as_people_write_them():
    labels = read_labels("T cells\nB cells\nNK cells\nMonocytes\nHSPC\n", "plurals.txt")
    assert [label.name for label in labels] == ["T cells", "B cells", "NK cells", "Monocytes", "HSPC"]
    assert all(label.term_id and label.text for label in labels)


def test_the_bundled_table_is_current():
    from cellray.labels.names import _tool_names

    names = _tool_names()
    assert len(names) > 500
    assert all(ONTOLOGY.find(term) == term for term in names.values())
    assert not [name for name in names if ONTOLOGY.find(name)]
