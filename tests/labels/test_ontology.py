import time

import pytest

from cellray.errors import LabelError
from cellray.labels.ontology import Ontology, is_id, normal

T_CELL, B_CELL, CELL, LYMPHOCYTE = "CL:0000084", "CL:0000236", "CL:0000000", "CL:0000542"


@pytest.fixture(scope="module")
def ontology():
    return Ontology()


def all_terms(ontology):
    from cellxgene_ontology_guide.ontology_parser import OntologyParser

    parser = OntologyParser()
    names = parser.get_term_label_to_id_map("CL")
    return parser, {term: name for name, term in names.items()}


def test_names_and_definitions(ontology):
    assert ontology.name(T_CELL) == "T cell"
    assert "T cell receptor" in ontology.definition(T_CELL)
    undefined = ontology.find("CL:0000022")
    assert undefined is None or isinstance(ontology.definition(undefined), str)


def test_a_term_without_a_definition_has_an_empty_one(ontology):
    parser, terms = all_terms(ontology)
    term = next(t for t in sorted(terms) if not parser.get_term_description(t) and not parser.is_term_deprecated(t))
    assert ontology.definition(term) == ""


@pytest.mark.parametrize(
    "text", ["T cell", "t CELL", " T  cell ", "T-lymphocyte", "t lymphocyte", "CL:0000084", "cl:0000084"]
)
def test_finds_by_id_name_and_synonym(ontology, text):
    assert ontology.find(text) == T_CELL


@pytest.mark.parametrize(
    "text", ["", "T cells", "no such cell", "CL:9999999", "CL:84", "UBERON:0000178", "CL_0000084x"]
)
def test_does_not_guess(ontology, text):
    assert ontology.find(text) is None


def test_every_current_name_finds_its_term_and_every_found_synonym_a_term_that_has_it(ontology):
    parser, terms = all_terms(ontology)
    for term, name in terms.items():
        if parser.is_term_deprecated(term):
            continue
        assert ontology.find(name) == term
        for synonym in parser.get_term_synonyms(term):
            found = ontology.find(synonym)
            assert (
                found is None
                or normal(ontology.name(found)) == normal(synonym)
                or synonym.casefold() in {s.casefold() for s in parser.get_term_synonyms(found)}
            )


def test_obsolete_terms_are_replaced_or_refused(ontology):
    parser, terms = all_terms(ontology)
    assert ontology.find("CL:0000003") == CELL
    assert ontology.name("CL:0000003") == "cell"
    assert ontology.is_a(T_CELL, "CL:0000003")
    outcomes = {True: 0, False: 0}
    for term in filter(parser.is_term_deprecated, terms):
        found = ontology.find(term)
        outcomes[found is None] += 1
        if found is None:
            with pytest.raises(LabelError, match=term):
                ontology.name(term)
        else:
            assert not parser.is_term_deprecated(found)
            assert found.startswith("CL:")
    assert min(outcomes.values()) > 20


def test_ancestors_include_the_term_and_the_root(ontology):
    ancestors = ontology.ancestors(B_CELL)
    assert {B_CELL, LYMPHOCYTE, CELL} <= ancestors
    assert T_CELL not in ancestors
    assert ontology.is_a(B_CELL, B_CELL)
    assert ontology.is_a(B_CELL, LYMPHOCYTE)
    assert not ontology.is_a(LYMPHOCYTE, B_CELL)


def test_unknown_ids_are_refused(ontology):
    for question in (ontology.name, ontology.definition, ontology.ancestors):
        with pytest.raises(LabelError, match="CL:9999999"):
            question("CL:9999999")


def test_suggests_close_names(ontology):
    assert "t cell" in [name.casefold() for name in ontology.suggest("T cells")]
    assert any("monocyte" in name for name in ontology.suggest("CD14+ monocytes"))
    assert ontology.suggest("qqqqqqqqqqqqqqqq") == []


def test_is_id():
    assert is_id("CL:0000084")
    assert is_id(" cl:0000084")
    assert not is_id("CL:84")
    assert not is_id("T cell")


def test_loads_only_when_asked():
    start = time.perf_counter()
    for _ in range(100):
        Ontology()
    assert time.perf_counter() - start < 0.05
