"""An official LangCell checkpoint folder to our model folder; and the one reader of foreign weights.

Contract: everything unsafe happens here and nowhere else. ``.bin`` and ``.pt`` files are read with
``weights_only=True``; Geneformer's pickled dictionaries by an unpickler that knows dict, str, int, float and NumPy's
scalars and refuses every other name.

The text tokenizer is not part of the official checkpoint (upstream takes PubMedBERT's from the hub), nor are the gene
dictionaries, so both folders are given by the caller. Nothing is downloaded.
"""

import io
import json
import pickle  # only as the base of the restricted unpickler below
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer

from cellray import schema
from cellray.errors import ModelError, one_line
from cellray.models.bert import BertConfig
from cellray.models.langcell import LangCellConfig
from cellray.models.langcell_folder import LangCellCheckpoint, check

_MODULES = ("cell_bert", "text_bert")
_HEADS = ("cell_proj", "text_proj", "ctm_head")
_IGNORED = ("pooler.", "cls.")


def read_official(folder: Path, tokenizer: Path, dictionaries: Path) -> LangCellCheckpoint:
    """Read the official form.

    Parameters
    ----------
    folder
        ``cell_bert/``, ``text_bert/`` (each ``config.json`` and ``pytorch_model.bin``), ``cell_proj.bin``,
        ``text_proj.bin``, ``ctm_head.bin``.
    tokenizer
        Folder with ``tokenizer.json``, or ``vocab.txt`` and optionally ``tokenizer_config.json``.
    dictionaries
        Folder with ``token_dictionary.pkl``, ``gene_median_dictionary.pkl`` and ``gene_name_id_dict.pkl``.

    Raises
    ------
    ModelError
        Naming the file and what is wrong with it; missing and extra tensors included.
    """
    try:
        state: dict[str, torch.Tensor] = {}
        for module in _MODULES:
            state |= {
                f"{module}.{key}": value for key, value in _bert_state(folder / module / "pytorch_model.bin").items()
            }
        for head in _HEADS:
            state |= {f"{head}.{key}": value for key, value in load_tensors(folder / f"{head}.bin").items()}
        genes, symbols, n_tokens = _gene_tables(dictionaries)
        config = _official_config(folder, n_tokens)
        check(state, config)
        return LangCellCheckpoint(
            folder.name or "langcell", "", config, state, genes, symbols, _tokenizer(tokenizer), []
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        msg = f"official checkpoint {str(folder)!r}: {one_line(error)}"
        raise ModelError(msg) from error


def _official_config(folder: Path, n_tokens: int) -> LangCellConfig:
    cell = BertConfig.from_dict(json.loads((folder / "cell_bert" / "config.json").read_text()))
    raw = json.loads((folder / "text_bert" / "config.json").read_text())
    text = BertConfig.from_dict(raw, token_types=False, encoder_width=raw.get("encoder_width", cell.hidden_size))
    if n_tokens >= cell.vocab_size:
        msg = f"token_dictionary.pkl ({n_tokens} entries) leaves no id for <cls> among {cell.vocab_size} embeddings"
        raise ValueError(msg)
    # Upstream adds <cls> in memory under the next free id.
    return LangCellConfig(cell, text, max_tokens=cell.max_position_embeddings, cls_token=n_tokens)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of an official ``.bin`` or ``.pt`` file."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _bert_state(path: Path) -> dict[str, torch.Tensor]:
    state = {key.removeprefix("bert."): value for key, value in load_tensors(path).items()}
    return {
        key: value for key, value in state.items() if key != "embeddings.position_ids" and not key.startswith(_IGNORED)
    }


def _gene_tables(folder: Path) -> tuple[pa.Table, pa.Table, int]:
    tokens = _unpickle(folder / "token_dictionary.pkl")
    medians = _unpickle(folder / "gene_median_dictionary.pkl")
    names = _unpickle(folder / "gene_name_id_dict.pkl")
    ids = sorted((gene for gene in medians if gene in tokens), key=lambda gene: tokens[gene])
    columns = [ids, [tokens[gene] for gene in ids], [float(medians[gene]) for gene in ids]]
    genes = pa.table(columns, schema=schema.genes())
    known = {symbol: gene for symbol, gene in names.items() if gene in tokens and gene in medians}
    symbols = pa.table([list(known), list(known.values())], schema=schema.symbols())
    return genes, symbols, len(tokens)


def _tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    options: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        options = json.loads((folder / "tokenizer_config.json").read_text())
    wordpiece = BertWordPieceTokenizer(
        str(folder / "vocab.txt"),
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    return Tokenizer.from_str(wordpiece.to_str())


class _Scalar:
    """Stands in for NumPy's dtype while a scalar is unpickled: keeps the type code, knows integers and floats only."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in "<>" else "<"

    def unpack(self, raw: bytes) -> int | float:
        formats = {
            "i1": "b",
            "i2": "h",
            "i4": "i",
            "i8": "q",
            "u1": "B",
            "u2": "H",
            "u4": "I",
            "u8": "Q",
            "f4": "f",
            "f8": "d",
        }
        return struct.unpack(self.order + formats[self.code], raw)[0]


def _scalar(dtype: _Scalar, raw: bytes) -> int | float:
    return dtype.unpack(raw)


class _GeneDictionary(pickle.Unpickler):
    """Admits dict, str, int, float and NumPy scalars; any other name is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the two names that a NumPy scalar needs, to stand-ins of ours."""
        if (module, name) == ("numpy", "dtype"):
            return _Scalar
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return _scalar
        msg = f"pickled name {module}.{name} is not allowed in a gene dictionary"
        raise pickle.UnpicklingError(msg)


def _unpickle(path: Path) -> dict[str, Any]:
    value = _GeneDictionary(io.BytesIO(path.read_bytes())).load()
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and isinstance(item, str | int | float) for key, item in value.items()
    ):
        msg = f"{path.name} is not a dictionary from names to numbers or names"
        raise ValueError(msg)
    return value
