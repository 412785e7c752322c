import numpy as np
import pyarrow as pa
import pytest

from cellray import schema
from cellray.errors import ModelError
from cellray.ingest import GeneIndex


def test_attributes_follow_the_gene_table(genes):
    assert genes.n_genes == 60


@pytest.mark.parametrize(
    ("names", "kind", "slots"),
    [
        (["ENSG00000000007", "ENSG00000000002", "x"], "ensembl", [7, 2, -1]),
        (["ENSG00000000007.12", "ENSG00000000002.x", "ENSG00000000002."], "ensembl", [7, -1, -1]),
        (["GENE7", "gene7", "NOT-IN-MODEL"], "symbol", [7, -1, -1]),
        (["GENE1", "GENE2", "ENSG00000000003"], "symbol", [1, 2, -1]),
        (["GENE1", "ENSG00000000003"], "ensembl", [-1, 3]),
        ([], "ensembl", []),
    ],
)
def test_match(genes, names, kind, slots):
    match = genes.match(names)
    assert match.kind == kind
    assert match.slots.dtype == np.int32
    assert match.slots.tolist() == slots


def test_duplicates_share_a_slot_and_count_once(genes):
    match = genes.match(["ENSG00000000007", "ENSG00000000007.1", "ENSG00000000008"])
    assert match.slots.tolist() == [7, 7, 8]
    assert match.n_known == 2


def test_duplicate_ensembl_id_in_the_model_is_an_error(genes):
    table = pa.table({"ensembl_id": ["E1", "E2", "E1"], "token": [1, 2, 3], "median": [1.0, 1.0, 1.0]})
    with pytest.raises(ModelError, match="'E1'"):
        GeneIndex(table.cast(schema.genes()), schema.symbols().empty_table())


def test_genes_known_by_symbol():
    table = pa.table([["MS4A1", "CD3E"], [7, 9]], schema=schema.symbol_tokens())
    index = GeneIndex(table, schema.symbols().empty_table())
    match = index.match(["CD3E", "ENSG00000198851", "MS4A1"])
    assert (match.kind, match.slots.tolist(), index.n_genes) == ("symbol", [1, -1, 0], 2)
    twice = pa.table([["MS4A1", "MS4A1"], [7, 9]], schema=schema.symbol_tokens())
    with pytest.raises(ModelError, match="'MS4A1' is there more than once"):
        GeneIndex(twice, schema.symbols().empty_table())
