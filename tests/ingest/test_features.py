"""What is no gene expression is left out of tokens, totals and neighbours, and said."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.errors import GeneError, MissingKeyError
from cellray.ingest import needs_staging, read_rows, read_shard, stage
from cellray.ingest.genomes import choose_genome, genomes_of_names, without_prefix


def cite_seq(counts, columns, path, names, types=None, layout=sparse.csr_matrix, key="feature_types"):
    """Write the counts with ``names`` behind the genes, 900 of each in every cell."""
    extra = np.full((counts.shape[0], len(names)), 900, np.float32)
    data = anndata.AnnData(layout(sparse.hstack([counts, extra]).tocsr()))
    data.var_names = [*columns, *names]
    if types is not None:
        data.var[key] = ["Gene Expression"] * len(columns) + list(types)
    data.write_h5ad(path)
    return path


@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_matrix.toarray])
def test_antibodies_of_an_anndata_file(plan_of, counts, columns, expected, tmp_path, layout):
    names = ["ENSG00000000057", "CD4", "CD8A"]  # one is called like a gene of the model
    path = cite_seq(counts, columns, tmp_path / "a.h5ad", names, ["Antibody Capture"] * 3, layout)
    plan = plan_of(path)
    assert plan.notes == ("left out: 3 antibodies",)
    assert plan.n_columns == 60
    if needs_staging(plan):
        plan = stage(plan, str(tmp_path / "staged"), 20)
    np.testing.assert_array_equal(read_rows(plan, 0, 50).counts.toarray(), counts.toarray())
    shard = read_shard(plan, 0, 50, min_genes=1, n_slots=60)
    np.testing.assert_array_equal(shard.counts.toarray(), expected)
    np.testing.assert_array_equal(shard.n_counts, counts.sum(axis=1).A1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ERCC-00002", "spike-ins"),
        ("chr1:10109-10357", "peaks"),
        ("chrX-100-200", "peaks"),
        ("NegControlProbe_00042", "controls of an imaging panel"),
        ("UnassignedCodeword_0001", "controls of an imaging panel"),
        ("BLANK_0001", "controls of an imaging panel"),
        ("Blank-12", "controls of an imaging panel"),
        ("NegPrb5", "controls of an imaging panel"),
        ("AB_CD4", "antibodies"),
        ("ADT_CD19", "antibodies"),
        ("CD3_TotalSeqC", "antibodies"),
        ("HTO1", "hashtags"),
    ],
)
def test_names_that_are_no_gene(plan_of, counts, columns, tmp_path, name, kind):
    plan = plan_of(cite_seq(counts, columns, tmp_path / "a.h5ad", [name]))
    assert plan.notes == (f"left out: 1 {kind}",)


GENES = [
    "CD4",
    "ERCC1",
    "ERCC6L2",
    "MT-CO1",
    "HLA-DRA",
    "AB-HYDROLASE",
    "NEGR1",
    "SPIKE1",
    "BLANKET",
    "HTR1A",
    "ABCA1",
    "PROTEIN",
    "CMOS",
    "CMO1X",
    "NKX2-1",
    "AC012345.1",
    "7SK",
    "1-Mar",
    "SEPT2",
    "RP11-34P13.7",
    "MIR1302-2",
    "HIST1H4C",
    "TRBV5-1",
    "ENSG00000000001",
]


@pytest.mark.parametrize("name", GENES)
def test_names_of_genes_stay(plan_of, counts, columns, tmp_path, name):
    assert plan_of(cite_seq(counts, columns, tmp_path / "a.h5ad", [name])).kept is None


@pytest.mark.parametrize("kind", ["protein_coding", "lncRNA", "gene", "", "protein coding"])
def test_biotypes_are_no_feature_types(plan_of, counts, columns, tmp_path, kind):
    data = anndata.AnnData(counts, var=pd.DataFrame({"feature_type": kind}, index=columns))
    data.write_h5ad(tmp_path / "a.h5ad")
    assert plan_of(tmp_path / "a.h5ad").kept is None


def test_types_of_var_hold_for_raw(plan_of, counts, columns, tmp_path):
    path = tmp_path / "a.h5ad"
    cite_seq(counts, columns, path, ["CD4"], ["Antibody Capture"])
    data = anndata.read_h5ad(path)
    raw = data.copy()
    del raw.var["feature_types"]
    data.raw = raw
    data.write_h5ad(path)
    plan = plan_of(path)
    assert (plan.layer, plan.n_columns) == ("raw.X", 60)


def test_nothing_but_antibodies(plan_of, counts, tmp_path):
    data = anndata.AnnData(counts[:, :3], var=pd.DataFrame({"feature_types": "Antibody Capture"}, index=list("abc")))
    data.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(GeneError, match=r"a\.h5ad: there is no feature of type 'Gene Expression'.*RNA counts"):
        plan_of(tmp_path / "a.h5ad")


def test_symbols_of_proteins_do_not_win_over_ids(plan_of, counts, columns, tmp_path):
    """Untyped proteins called like genes reach a few more symbols than there are ids."""
    symbols = [f"GENE{n}" for n in range(55)] + [f"UNKNOWN{n}" for n in range(5)]
    extra = np.full((50, 1), 900, np.float32)
    data = anndata.AnnData(sparse.hstack([counts, extra]).tocsr())
    data.var_names = [*symbols, "GENE3"]
    data.var["gene_ids"] = [*columns, "CD3"]
    data.write_h5ad(tmp_path / "a.h5ad")
    plan = plan_of(tmp_path / "a.h5ad")
    assert (plan.gene_key, plan.gene_kind) == ("gene_ids", "ensembl")


def test_two_genomes_in_one_table(plan_of, counts, columns, expected, tmp_path):
    names = [f"GRCh38_{name}" for name in columns] + [f"mm10___Gene{n}" for n in range(7)]
    data = anndata.AnnData(sparse.hstack([counts, np.ones((50, 7), np.float32)]).tocsr())
    data.var_names = names
    data.write_h5ad(tmp_path / "a.h5ad")
    plan = plan_of(tmp_path / "a.h5ad")
    assert plan.notes[0] == "genome GRCh38 of GRCh38, mm10 is read; pass --genome for another"
    assert plan.notes[1] == "left out: 7 genes of another genome"
    shard = read_shard(plan, 0, 50, min_genes=1, n_slots=60)
    np.testing.assert_array_equal(shard.counts.toarray(), expected)


def test_choice_of_a_genome():
    assert choose_genome(["hg19", "mm10"], None)[0] == "hg19"
    assert choose_genome(["GRCh38", "GRCm39"], "grcm39")[0] == "GRCm39"
    with pytest.raises(MissingKeyError, match=r"no genome 'rn6' \(there are: hg19, mm10\); pass"):
        choose_genome(["hg19", "mm10"], "rn6")
    with pytest.raises(MissingKeyError, match=r"several genomes \(mm10, rn6\)"):
        choose_genome(["mm10", "rn6"], None)
    assert genomes_of_names(["CD3E", "CD4"]) is None
    assert [without_prefix(name) for name in ("GRCh38_CD3E", "hg19_CD4", "HLA_A", "mm10___Cd4")] == [
        "CD3E",
        "CD4",
        "HLA_A",
        "Cd4",
    ]
