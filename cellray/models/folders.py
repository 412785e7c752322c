"""Where a model folder lies and what it is called by: known without loading it, and without torch.

Contract: the digest of a folder is the SHA-256 over the names and contents of its files, the card left out, and is the
same wherever the folder lies. Whatever is missing is a ``ModelError`` that names it. It does not check weights.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cellray import storage
from cellray.errors import ModelError, one_line

BUNDLED: Final = {"mini": Path(__file__).parent / "mini", "mini-scgpt": Path(__file__).parent / "mini_scgpt"}

LANGCELL: Final = "cellray-langcell"
SCGPT: Final = "cellray-scgpt"
TABLES: Final = {LANGCELL: ("genes.parquet", "symbols.parquet", "tokenizer.json"), SCGPT: ("genes.parquet",)}
"""Files of each kind of folder besides ``config.json``, weights and labels."""


@dataclass(frozen=True)
class Identity:
    """What a model is called by, its kind, and its label set (dicts with ``name``, ``term_id`` and ``text``)."""

    digest: str
    format: str
    labels: list[dict[str, str]]


def locate(model: str) -> str:
    """Return the folder of ``model``: a bundled name, a local path or an ``s3://`` URI; else a ``ModelError``."""
    if model in BUNDLED:
        return str(BUNDLED[model])
    try:
        found = storage.exists(storage.join(model, "config.json"))
        official = not found and any(
            storage.exists(storage.join(model, name)) for name in ("cell_proj.bin", "args.json")
        )
    except (OSError, ValueError) as error:
        msg = f"model {model!r}: {one_line(error)}"
        raise ModelError(msg) from error
    if official:
        msg = f"model {model!r} is an official checkpoint; convert it once with `cellray convert-model`"
        raise ModelError(msg)
    if not found:
        msg = f"model {model!r}: no config.json there; give one of {sorted(BUNDLED)} or a folder made by convert-model"
        raise ModelError(msg)
    return model


def identify(model: str) -> Identity:
    """Read what a model is called by; its weights are hashed and not loaded."""
    uri = locate(model)
    try:
        config = storage.read_json(storage.join(uri, "config.json"))
        labels = storage.read_json(storage.join(uri, "labels.json"))
        return Identity(digest(uri, files(config)), str(config["format"]), labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"model {model!r}: {one_line(error)}"
        raise ModelError(msg) from error


def files(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of a folder's files, in the order of the digest, by the content of its ``config.json``."""
    tables = TABLES.get(str(config.get("format")))
    if tables is None:
        msg = f"config.json says format {config.get('format')!r}, which is none of {sorted(TABLES)}"
        raise ValueError(msg)
    return ("config.json", "model.safetensors", *tables, "labels.json")


def digest(uri: str, names: Sequence[str]) -> str:
    """Return the SHA-256 over the names and contents of files in the folder ``uri``, read once in a process."""
    found = hashlib.sha256()
    for name in names:
        found.update(f"{name}\0{storage.file_digest(storage.join(uri, name))}\n".encode())
    return found.hexdigest()
