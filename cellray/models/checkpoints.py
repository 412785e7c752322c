"""Our model folder: one self-contained form of a LangCell checkpoint, without pickle.

::

    config.json          format, sizes of both encoders, temperature, max_tokens, cls_token
    model.safetensors    weights under the official names, prefixed by module (float32 or float16)
    genes.parquet        Ensembl id, token, median            (schema.genes)
    symbols.parquet      symbol -> Ensembl id                 (schema.symbols)
    tokenizer.json       the text tokenizer
    labels.json          the label set used when the user names none; may be empty
    README.md            model card, optional

Contract: a folder either loads whole or is a ``ModelError`` that names the file, tensor or field. The digest covers
every file but the card. Official checkpoints are another form: ``cellray.models.official`` converts them.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from tokenizers import Tokenizer

from cellray import schema, storage
from cellray.errors import ModelError, one_line
from cellray.models.bert import BertConfig, check_finite
from cellray.models.langcell import LangCell, LangCellConfig

FORMAT = "cellray-langcell"
FILES = ("config.json", "model.safetensors", "genes.parquet", "symbols.parquet", "tokenizer.json", "labels.json")
BUNDLED = {"mini": Path(__file__).parent / "mini"}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model folder. ``labels`` are dicts with ``name``, ``term_id`` and ``text``."""

    name: str
    digest: str
    config: LangCellConfig
    state: dict[str, torch.Tensor]
    genes: pa.Table
    symbols: pa.Table
    tokenizer: Tokenizer
    labels: list[dict[str, str]]

    def build(self, device: str = "cpu") -> LangCell:
        """Return the model in float32 and evaluation mode on ``device``."""
        with torch.device("meta"):
            model = LangCell(self.config)
        model.load_state_dict({name: tensor.float() for name, tensor in self.state.items()}, assign=True)
        return model.to(device).eval()

    def text_ids(self, texts: list[str]) -> torch.Tensor:
        """Tokenise texts as the official code does (``[CLS] ... [SEP]``, cut to 512): (k, t) int64, padded."""
        longest = min(512, self.config.text.max_position_embeddings)
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        ids = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in ids]
        padded = torch.full((len(ids), max(map(len, ids))), self.config.text.pad_token_id, dtype=torch.int64)
        for at, row in enumerate(ids):
            padded[at, : len(row)] = torch.tensor(row)
        return padded


def locate(model: str) -> str:
    """Return the folder of ``model``: a bundled name, a local path or an ``s3://`` URI; else a ``ModelError``."""
    if model in BUNDLED:
        return str(BUNDLED[model])
    try:
        found = storage.exists(storage.join(model, "config.json"))
        official = not found and storage.exists(storage.join(model, "cell_proj.bin"))
    except (OSError, ValueError) as error:
        msg = f"model {model!r}: {one_line(error)}"
        raise ModelError(msg) from error
    if official:
        msg = f"model {model!r} is an official LangCell checkpoint; convert it once with `cellray convert-model`"
        raise ModelError(msg)
    if not found:
        msg = f"model {model!r}: no config.json there; give one of {sorted(BUNDLED)} or a folder made by convert-model"
        raise ModelError(msg)
    return model


def load(model: str) -> Checkpoint:
    """Load a model folder by bundled name, path or URI."""
    uri = locate(model)
    with storage.local_copy(uri) as folder:
        for name in FILES:
            if not (folder / name).is_file():
                msg = f"model {model!r}: {name} is missing; convert or download the model again"
                raise ModelError(msg)
        try:
            return _read(model, folder)
        except (ValueError, KeyError, TypeError, OSError, SafetensorError, pa.ArrowException) as error:
            msg = f"model {model!r}: {one_line(error)}"
            raise ModelError(msg) from error


def save(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
    """Write ``checkpoint`` as a model folder, weights in ``dtype``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "schema_version": schema.SCHEMA_VERSION,
        "name": checkpoint.name,
        **asdict(checkpoint.config),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "labels.json").write_text(json.dumps(checkpoint.labels, indent=1) + "\n")
    state = {name: tensor.to(dtype).contiguous() for name, tensor in checkpoint.state.items()}
    (folder / "model.safetensors").write_bytes(serialise(state, metadata={"format": "pt"}))
    pq.write_table(checkpoint.genes.cast(schema.genes()), folder / "genes.parquet", compression="zstd")
    pq.write_table(checkpoint.symbols.cast(schema.symbols()), folder / "symbols.parquet", compression="zstd")
    checkpoint.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def expected_shapes(config: LangCellConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a model of ``config`` has."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in LangCell(config).state_dict().items()}


def check_state(state: dict[str, torch.Tensor], config: LangCellConfig) -> None:
    """Raise ``ValueError`` on a missing, extra, misshapen or non-finite tensor."""
    expected = expected_shapes(config)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        parts = [
            f"{len(names)} {what} (first: {names[0]!r})"
            for what, names in (("missing", missing), ("extra", extra))
            if names
        ]
        hint = (
            "; a text encoder saved as a plain Hugging Face BertModel is not LangCell's"
            if any("text_bert" in n for n in missing)
            else ""
        )
        msg = f"tensors do not fit the configuration: {', '.join(parts)}{hint}"
        raise ValueError(msg)
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            msg = f"tensor {name!r} has shape {tuple(state[name].shape)}, the configuration asks for {shape}"
            raise ValueError(msg)
    check_finite(state)


def _read(model: str, folder: Path) -> Checkpoint:
    raw = json.loads((folder / "config.json").read_text())
    if raw.get("format") != FORMAT:
        msg = f"config.json says format {raw.get('format')!r}, not {FORMAT!r}"
        raise ValueError(msg)
    config = _config(raw)
    state = load_file(folder / "model.safetensors")
    check_state(state, config)
    genes = pq.read_table(folder / "genes.parquet").cast(schema.genes())
    _check_genes(genes, config)
    return Checkpoint(
        name=str(raw["name"]),
        digest=_digest(folder),
        config=config,
        state=state,
        genes=genes,
        symbols=pq.read_table(folder / "symbols.parquet").cast(schema.symbols()),
        tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
        labels=json.loads((folder / "labels.json").read_text()),
    )


def _config(raw: dict[str, Any]) -> LangCellConfig:
    own = {field.name for field in fields(LangCellConfig)} - {"cell", "text"}
    return LangCellConfig(
        cell=BertConfig.from_dict(raw["cell"]),
        text=BertConfig.from_dict(raw["text"]),
        **{name: raw[name] for name in own},
    )


def _check_genes(genes: pa.Table, config: LangCellConfig) -> None:
    tokens = genes[schema.TOKEN].to_numpy()
    medians = genes[schema.MEDIAN].to_numpy()
    if len(tokens) == 0 or tokens.min() < 0 or tokens.max() >= min(config.cell.vocab_size, 1 << 16):
        msg = f"genes.parquet: tokens must lie in 0..{min(config.cell.vocab_size, 1 << 16) - 1}"
        raise ValueError(msg)
    if not ((medians > 0) & (medians < float("inf"))).all():
        msg = "genes.parquet: medians must be positive and finite"
        raise ValueError(msg)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
