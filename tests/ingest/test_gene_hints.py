"""What the message says when genes are not the model's: it names what was seen."""

import anndata
import pytest
from scipy import sparse

from cellray.errors import GeneError


@pytest.fixture
def hint(counts, plan_of, tmp_path):
    """Return a function that names 60 genes and 50 cells and returns the message."""

    def told(genes, cells=None):
        data = anndata.AnnData(counts)
        data.var_names = genes
        data.obs_names = cells or [f"c{n}" for n in range(50)]
        data.write_h5ad(tmp_path / "a.h5ad")
        with pytest.raises(GeneError) as caught:
            plan_of(tmp_path / "a.h5ad")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return told


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([f"ENSMUSG{n:011d}" for n in range(60)], "looks like mouse (ENSMUSG00000000000"),
        ([f"ENSDARG{n:011d}" for n in range(60)], "looks like zebrafish"),
        ([f"Gene{n}" for n in range(60)], "looks like mouse (or rat) (Gene0, Gene1, Gene2)"),
        ([f"gene{n}" for n in range(60)], "symbols are in lower case"),
        ([str(n) for n in range(60)], "names are numbers (0, 1, 2): a converter has lost"),
        ([str(7157 + n) for n in range(60)], "Entrez"),
        ([f"ENST{n:011d}" for n in range(60)], "transcripts"),
        ([f"NM_{n:06d}.2" for n in range(60)], "RefSeq"),
        ([f"probe{n}" for n in range(60)], "names are like probe0, probe1, probe2; pass --gene-key"),
    ],
)
def test_hint_names_what_was_seen(hint, names, says):
    assert says in hint(names)


def test_transposed(hint):
    message = hint([f"cell{n}" for n in range(60)], [f"GENE{n}" for n in range(50)])
    assert "looks transposed" in message
    assert "adata.T" in message
    barcodes = ["".join("ACGT"[(n >> (2 * bit)) & 3] for bit in range(16)) + "-1" for n in range(60)]
    assert "looks transposed" in hint(barcodes)


@pytest.mark.parametrize(
    "form", ["{symbol}_{id}", "{id}|{symbol}", "GRCh38_{symbol}", "{id}.7", "hg19_{id}", "{symbol}-{id}.3"]
)
def test_names_that_hold_the_gene(counts, plan_of, tmp_path, form):
    data = anndata.AnnData(sparse.csr_matrix(counts[:, :55]))
    data.var_names = [form.format(symbol=f"GENE{n}", id=f"ENSG{n:011d}") for n in range(55)]
    data.write_h5ad(tmp_path / "a.h5ad")
    assert plan_of(tmp_path / "a.h5ad").slots.tolist() == list(range(55))
