"""Made-up cells and models of any size, for benchmarks and tests: a few cell types with genes of their own.

Everything is a pure function of the arguments and the seed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy import sparse
from tokenizers import BertWordPieceTokenizer, Tokenizer

from cellray import schema
from cellray.labels.candidates import prompt
from cellray.models import checkpoints
from cellray.models.bert import BertConfig
from cellray.models.langcell import LangCell, LangCellConfig
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.models.scgpt import ScGPT, ScGPTConfig
from cellray.models.scgpt_folder import ScGPTCheckpoint

TYPES = {
    "B cell": "CL:0000236",
    "T cell": "CL:0000084",
    "natural killer cell": "CL:0000623",
    "monocyte": "CL:0000576",
}
_FIRST_GENE = 2


def gene_ids(n_genes: int) -> list[str]:
    """Made-up Ensembl ids."""
    return [f"ENSG{number:011d}" for number in range(1, n_genes + 1)]


def write_cells(path: Path, n_cells: int, n_genes: int, genes_per_cell: int, seed: int = 0) -> Path:
    """Write an ``.h5ad`` of raw counts; each cell type draws half of its genes from a block of its own."""
    import anndata

    rng = np.random.default_rng(seed)
    kind = rng.integers(len(TYPES), size=n_cells)
    block = n_genes // len(TYPES)
    own = kind[:, None] * block + rng.integers(block, size=(n_cells, genes_per_cell // 2))
    other = rng.integers(n_genes, size=(n_cells, genes_per_cell - genes_per_cell // 2))
    columns = np.concatenate([own, other], 1)
    values = 1 + rng.geometric(0.5, columns.shape)
    rows = np.repeat(np.arange(n_cells), genes_per_cell)
    counts = sparse.coo_matrix((values.ravel().astype(np.float32), (rows, columns.ravel())), (n_cells, n_genes))
    names, terms = np.array(list(TYPES)), np.array(list(TYPES.values()))
    columns_of_obs = {
        "cell_type": pd.Categorical(names[kind]),
        "cell_type_ontology_term_id": pd.Categorical(terms[kind]),
    }
    obs = pd.DataFrame(columns_of_obs, [f"cell{row}" for row in range(n_cells)])
    var = pd.DataFrame({schema.ENSEMBL_ID: gene_ids(n_genes)}, [f"GENE{number}" for number in range(n_genes)])
    anndata.AnnData(counts.tocsr(), obs, var).write_h5ad(path)
    return path


def write_model(
    folder: Path, n_genes: int, *, hidden: int = 16, layers: int = 2, max_tokens: int = 64, seed: int = 0
) -> Path:
    """Write a model folder with random weights whose label set is ``TYPES``."""
    texts = [prompt(name, "") for name in TYPES]
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator(texts, vocab_size=200, min_frequency=1, show_progress=False)
    tokenizer = Tokenizer.from_str(wordpiece.to_str())
    cls_token = n_genes + _FIRST_GENE
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
    }
    cell = BertConfig(vocab_size=cls_token + 1, max_position_embeddings=max_tokens, hidden_act="relu", **sizes)
    text = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=32,
        hidden_act="gelu",
        token_types=False,
        encoder_width=hidden,
        **sizes,
    )
    config = LangCellConfig(cell, text, max_tokens, cls_token)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    ids = gene_ids(n_genes)
    tokens = np.arange(_FIRST_GENE, cls_token, dtype=np.int32)
    genes = pa.table([ids, tokens, rng.lognormal(size=n_genes)], schema=schema.genes())
    symbols = pa.table([[f"GENE{number}" for number in range(n_genes)], ids], schema=schema.symbols())
    labels = [
        {"name": name, "term_id": term, "text": text} for (name, term), text in zip(TYPES.items(), texts, strict=True)
    ]
    state = LangCell(config).state_dict()
    checkpoints.save(folder, LangCellCheckpoint(folder.name, "", config, state, genes, symbols, tokenizer, labels))
    return folder


def write_scgpt(folder: Path, n_genes: int, *, hidden: int = 16, layers: int = 2, seed: int = 0) -> Path:
    """Write an scGPT-architecture base without classes: random weights, but genes of one type share a direction."""
    config = ScGPTConfig(
        vocab_size=n_genes + 2,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=2,
        ffn_size=2 * hidden,
        cls_token=n_genes + 1,
        pad_value=0.0,
        max_tokens=65,
        ties="upper",
        gene_choice="weight",
    )
    torch.manual_seed(seed)
    model = ScGPT(config)
    block = torch.arange(n_genes) * len(TYPES) // n_genes
    with torch.no_grad():
        model.encoder.embedding.weight[:n_genes] += 2 * torch.randn(len(TYPES), hidden)[block]
    symbols = [f"GENE{number}" for number in range(n_genes)]
    columns = [symbols, gene_ids(n_genes), np.arange(n_genes), np.ones(n_genes)]
    genes = pa.table(columns, schema=schema.weighted_genes())
    checkpoints.save(folder, ScGPTCheckpoint(folder.name, "", config, model.state_dict(), genes, []))
    return folder
