"""Datasets opened for sentences, and how a model wants them."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.errors import GeneError, InputError, ModelError, SettingError
from cellray.ingest import find_sources
from cellray.reasoner.cells import NamedCells
from cellray.reasoner.form import FORM_FILE, SentenceForm, read_ranked_genes

SYMBOLS = ["CD3D", "LYZ", "MS4A1", "NKG7", "GNLY", "CD14"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three cells, the second empty; the index holds Ensembl ids, ``name`` the symbols."""
    path = tmp_path_factory.mktemp("named") / "cells.h5ad"
    counts = sparse.csr_matrix(np.array([[0, 5, 0, 1, 2, 9], [0] * 6, [3, 0, 1, 0, 0, 0]], np.float32))
    var = pd.DataFrame({"name": SYMBOLS}, index=[f"ENSG0000000000{number}" for number in range(6)])
    anndata.AnnData(counts, obs=pd.DataFrame(index=["a", "b", "c"]), var=var).write_h5ad(path)
    return find_sources([str(path)])[0]


def test_the_column_with_the_listed_genes_is_found(source):
    cells = NamedCells.of(source, SentenceForm(form="hvg_rank", ranked=("CD14", "GNLY", "CD3D", "OTHER"), genes=2))
    assert cells.plan.gene_key == "name"
    shard, sentences = cells.read(0, 3, 1)
    assert sentences == ["CD14, GNLY", "", "CD3D"]
    assert shard.reject_codes == [None, "empty_cell", None]
    assert cells.expression(shard, 0) == {"LYZ": 5, "NKG7": 1, "GNLY": 2, "CD14": 9}
    assert cells.genes.keys() == set(SYMBOLS)


def test_ranges_give_the_same_sentences(source):
    cells = NamedCells.of(source, SentenceForm(), gene_key="name")
    _, whole = cells.read(0, 3, 1)
    assert whole == [*cells.read(0, 1, 1)[1], *cells.read(1, 3, 1)[1]]
    assert whole == ["CD14, LYZ, GNLY, NKG7", "", "CD3D, MS4A1"]


@pytest.mark.parametrize(
    ("form", "key", "says"),
    [
        (SentenceForm(), None, "Ensembl ids; pass --gene-key"),
        (SentenceForm(form="hvg_rank", ranked=tuple(f"X{number}" for number in range(20))), "name", "only 0 of the 20"),
    ],
)
def test_genes_that_no_model_knows(source, form, key, says):
    with pytest.raises(GeneError, match=says):
        NamedCells.of(source, form, gene_key=key)


def test_what_the_user_names_goes_before_the_model(tmp_path):
    model, ranked = tmp_path / "model", tmp_path / "ranked.txt"
    assert SentenceForm.of(str(model)) == SentenceForm(form="expr_rank", genes=1000)
    own = SentenceForm(form="hvg_rank", genes=7, ranked=("A", "B"))
    own.write(str(model))
    ranked.write_text("C\r\n\nD\nC\n")
    assert SentenceForm.of(str(model)) == own
    assert SentenceForm.of(str(model), form="expr_rank") == SentenceForm(genes=7)
    found = SentenceForm.of(str(model), ranked_genes=str(ranked), genes=9)
    assert found == SentenceForm(form="hvg_rank", genes=9, ranked=("C", "D"))
    with pytest.raises(SettingError, match="form"):
        SentenceForm.of(str(model), form="zscore")
    with pytest.raises(SettingError, match="hvg_rank needs a list"):
        SentenceForm.of(str(tmp_path), form="hvg_rank")
    (model / FORM_FILE).write_text('{"form": "hvg_rank", "more": 1}')
    with pytest.raises(ModelError, match="more"):
        SentenceForm.of(str(model))


@pytest.mark.parametrize(("text", "says"), [("", "it is empty"), ("A\nB, C\n", "line 'B, C' is no gene")])
def test_what_is_no_list(tmp_path, text, says):
    (tmp_path / "list").write_text(text)
    with pytest.raises(InputError, match=says):
        read_ranked_genes(str(tmp_path / "list"))
