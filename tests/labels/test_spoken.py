"""Cell types in free text."""

import csv
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.labels.ontology import Ontology
from cellray.labels.spoken import _SHORT, _T_KINDS, LONGEST, spoken


def test_every_abbreviation_stands_for_a_term():
    forms = [*_SHORT.values(), *(form.format(number) for _, form in _T_KINDS for number in "48")]
    assert [form for form in forms if Ontology().find(form) is None] == []


@pytest.mark.parametrize(
    ("text", "names", "terms"),
    [
        ("T cell", ["T cell"], ["T cell"]),
        ("The final answer is: **CD14+ Monocyte**", ["CD14+ Monocyte"], ["CD14-positive monocyte"]),
        ("Cell type: B cells.", ["B cells"], ["B cell"]),
        ("These cells are likely plasma cells", ["plasma cells"], ["plasma cell"]),
        ("B cell (likely B cell lymphoma or activated B cell)", ["B cell"], ["B cell"]),
        (
            "natural killer (NK) cells or CTLs",
            ["natural killer cells", "CTLs"],
            ["natural killer cell", "cytotoxic T cell"],
        ),
        ("naive or memory B cells", ["naive B cells", "memory B cells"], ["naive B cell", "memory B cell"]),
        ("Mono/Macro", ["Mono", "Macro"], ["monocyte", "macrophage"]),
        ("CD4+/CD25 T Reg", ["CD4+/CD25 T Reg"], ["regulatory T cell"]),
        ("Hepatocyte_6", ["Hepatocyte_6"], ["hepatocyte"]),
        ("Treg FOXP3", ["Treg FOXP3"], ["regulatory T cell"]),
        ("tumor-associated macrophages", ["tumor-associated macrophages"], ["macrophage"]),
        ("CD8+ T cells</answer>", ["CD8+ T cells"], ["CD8-positive, alpha-beta T cell"]),
        ("CL:0000084", ["T cell"], ["T cell"]),
        ("non-T cell", ["non-T cell"], [""]),
        ("some cell", ["some cell"], [""]),
        ("unknown", [], []),
        ("", [], []),
    ],
)
def test_readings(text, names, terms):
    ontology = Ontology()
    found = spoken(text)
    assert list(found.names) == names
    assert list(found.term_ids) == [ontology.find(term) or "" for term in terms]
    assert found.hedged == (len(names) > 1)


@given(st.text())
def test_any_text_is_read_and_names_are_safe(text):
    found = spoken(text)
    assert len(found.names) == len(found.term_ids)
    for name in found.names:
        assert 0 < len(name) <= LONGEST
        assert name.isprintable()
        assert not set(name) & set("<>|{}\\`\n")


def test_most_published_labels_are_found(shared):
    with gzip.open(shared / "data" / "cellreasoner" / "pair_scores.csv.gz", "rt") as file:
        labels = sorted({row["Ground Truth"] for row in csv.DictReader(file)})
    found = [label for label in labels if any(spoken(label).term_ids)]
    assert len(found) / len(labels) > 0.8
