"""Reject codes in words: the most frequent first, and a way out for each."""

import pytest

from cellray.ingest.rejects import advice, reasons, way_out
from cellray.schema import RejectCode


def test_reasons_are_sorted_by_their_number():
    assert reasons({"not_finite": 5, "too_few_genes": 2_000, "empty_cell": 0}) == "too_few_genes 2,000, not_finite 5"
    assert reasons({}) == ""


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("not_finite", "fill_value=0"),
        ("negative_count", "scaled"),
        ("non_integer_count", "--round"),
        ("no_known_gene", "gene names"),
        ("too_few_genes", "--min-genes"),
    ],
)
def test_every_code_has_a_way_out(code, says):
    assert says in advice(code)
    assert all(advice(str(one)) and "\n" not in advice(str(one)) for one in RejectCode)
    assert advice("of another version") == ""


def test_the_way_out_is_named_when_many_are_rejected():
    assert way_out({"too_few_genes": 9}, 100) == ""
    assert way_out({}, 0) == ""
    assert way_out({"not_finite": 2, "too_few_genes": 8}, 100) == f"most are too_few_genes: {advice('too_few_genes')}"
