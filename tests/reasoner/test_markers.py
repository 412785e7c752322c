"""Statements about genes: found, turned the right way round, and checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.reasoner.markers import statements, support

GENES = {
    gene: at
    for at, gene in enumerate(
        [
            "CD3D",
            "CD3E",
            "CD8A",
            "CD14",
            "LYZ",
            "MS4A1",
            "CD79A",
            "NKG7",
            "GNLY",
            "HLA-DRA",
            "FOXP3",
            "C1orf43",
            "T",
            "CD4",
        ]
    )
}
COUNTS = {"CD14": 3.0, "LYZ": 40.0, "HLA-DRA": 1.0}


@pytest.mark.parametrize(
    ("reasons", "made"),
    [
        ("The cell expresses CD14 and LYZ.", {"CD14": True, "LYZ": True}),
        ("CD14: monocyte marker\nLYZ: lysozyme", {"CD14": True, "LYZ": True}),
        (
            "CD14 and LYZ are high, but CD3D and CD3E are absent.",
            {"CD14": True, "LYZ": True, "CD3D": False, "CD3E": False},
        ),
        ("There is no expression of MS4A1 or CD79A.", {"MS4A1": False, "CD79A": False}),
        ("It lacks CD3D, CD3E and expresses HLA-DRA", {"CD3D": False, "CD3E": False, "HLA-DRA": True}),
        ("CD3D is not detected, CD14 is expressed", {"CD3D": False, "CD14": True}),
        ("Expression of LYZ without NKG7 or GNLY suggests a myeloid cell", {"LYZ": True, "NKG7": False, "GNLY": False}),
        ("The cell does not express FOXP3.", {"FOXP3": False}),
        ("It is negative for MS4A1; LYZ is strong", {"MS4A1": False, "LYZ": True}),
        ("Neither NKG7 nor GNLY is there", {"NKG7": False, "GNLY": False}),
        ("Typical markers of B cells include MS4A1 and CD79A. Here LYZ is found.", {"LYZ": True}),
        ("LYZ is a typical marker of monocytes", {"LYZ": True}),
        ("In a T cell CD3D would be expected. CD3D is missing.", {"CD3D": False}),
        ("CD4+ T cells and CD8A-positive T cells are ruled out", {}),
        ("NOTAGENE, T and lyz are no names here", {}),
        ("", {}),
    ],
)
def test_readings(reasons, made):
    found = statements(reasons, COUNTS, GENES)
    assert {one.gene: one.expressed for one in found} == made
    for one in found:
        assert one.count == COUNTS.get(one.gene, 0)
        assert one.holds == (one.expressed == (one.gene in COUNTS))


def test_support_is_the_share_that_holds():
    found = statements("It expresses CD14, LYZ, CD3D and lacks MS4A1.", COUNTS, GENES)
    assert [one.holds for one in found] == [True, True, False, True]
    assert support(found) == 0.75
    assert support([]) is None


def test_a_contradiction_does_not_replace_the_first_statement():
    found = statements("LYZ is expressed. LYZ is absent.", COUNTS, GENES)
    assert [(one.gene, one.expressed) for one in found] == [("LYZ", True)]


@given(st.text(alphabet=st.sampled_from("CD14 LYZ,.;no lacks\n-+"), max_size=200))
def test_any_text_gives_each_gene_at_most_once(text):
    found = [one.gene for one in statements(text, COUNTS, GENES)]
    assert len(found) == len(set(found))
    assert set(found) <= GENES.keys()
