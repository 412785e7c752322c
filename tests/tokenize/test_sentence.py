"""Cell sentences against the definition, one row at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from cellray.ingest import find_sources
from cellray.puzzles.cells import Ranking, open_by_names
from cellray.tokenize.sentence import cell_sentences, list_places, sentence_genes

DENSE = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 7), st.integers(1, 25)), elements=st.sampled_from([0, 0, 1, 1, 2, 5, -1])
)


@settings(max_examples=60, deadline=None)
@given(DENSE, st.integers(1, 30), st.randoms(use_true_random=False))
def test_both_forms_equal_the_loop(dense, n, random):
    genes = dense.shape[1]
    names = [f"G{number}" for number in range(genes)]
    names[random.randrange(genes)] = ""
    ranked = random.sample([*filter(None, names), "NOT-THERE"], random.randint(1, genes))
    counts = sparse.csr_matrix(dense)
    listed = [", ".join([name for name in ranked if name in names and row[names.index(name)] > 0][:n]) for row in dense]
    assert cell_sentences(counts, names, n, places=list_places(names, ranked)) == listed
    expressed = [
        ", ".join([names[at] for at in np.argsort(-row, kind="stable") if row[at] > 0 and names[at]][:n])
        for row in dense
    ]
    assert cell_sentences(counts, names, n) == expressed


def test_stored_zeros_and_unsorted_columns():
    counts = sparse.csr_matrix((np.array([3, 0, 7], np.float32), np.array([2, 0, 1]), np.array([0, 3, 3])), (2, 3))
    assert cell_sentences(counts, ["A", "B", "C"], 5) == ["B, C", ""]
    assert cell_sentences(counts, ["A", "B", "C"], 5, places=list_places(["A", "B", "C"], ["C", "B", "C"])) == [
        "C, B",
        "",
    ]


def test_the_released_list_on_real_cells(shared):
    ranked = (shared / "data" / "cellreasoner" / "ranked_hvg.list").read_text().split()
    (source,) = find_sources([str(shared / "data" / "datasets" / "pancreas_baron2016_mini.h5ad")])
    names, _ = open_by_names(source, Ranking())
    places = list_places(names, ranked)
    assert len(set(ranked)) == 10_000
    assert np.count_nonzero(places >= 0) > 5_000
    rng = np.random.default_rng(0)
    counts = sparse.random(40, len(names), 0.2, "csr", np.float32, rng, data_rvs=lambda size: rng.poisson(3, size))
    genes, offsets = sentence_genes(counts, 1000, places=places)
    assert np.diff(offsets).max() == 1000
    for row in range(40):
        told = places[genes[offsets[row] : offsets[row + 1]]]
        assert (np.diff(told) > 0).all()
        expressed = np.sort(places[counts[row].indices[counts[row].data > 0]])
        np.testing.assert_array_equal(told, expressed[expressed >= 0][:1000])


@pytest.mark.parametrize("names", [["A"], ["A", "A"]])
def test_places_of_the_first_listing(names):
    assert list_places(names, ["B", "A", "A"]).tolist() == [1] * len(names)
