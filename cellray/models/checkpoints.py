"""Our model folders: one self-contained form for every kind of model, without pickle.

::

    config.json          format, name, sizes and everything that inference depends on
    model.safetensors    weights (float32 or float16)
    labels.json          the label set used when the user names none; may be empty
    README.md            model card, optional

and the tables of its kind (``langcell_folder``, ``scgpt_folder``). Contract: a folder either loads whole or is a
``ModelError`` that names the file, tensor or field. The digest covers every file but the card. Official checkpoints
are another form: ``cellray.models.official`` converts them.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import save as serialise

from cellray import schema, storage
from cellray.errors import ModelError, one_line
from cellray.models.folders import BUNDLED, digest, files, locate
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.targets import check_model_folder

__all__ = ["BUNDLED", "Checkpoint", "load", "load_langcell", "locate", "save"]

Checkpoint = LangCellCheckpoint | ScGPTCheckpoint

_KINDS: dict[str, type[LangCellCheckpoint] | type[ScGPTCheckpoint]] = {
    kind.FORMAT: kind for kind in (LangCellCheckpoint, ScGPTCheckpoint)
}


def load(model: str) -> Checkpoint:
    """Load a model folder by bundled name, path or URI."""
    uri = locate(model)
    with storage.local_copy(uri) as folder:
        try:
            return _read(folder)
        except (ValueError, KeyError, TypeError, OSError, SafetensorError, pa.ArrowException) as error:
            msg = f"model {model!r}: {one_line(error)}"
            raise ModelError(msg) from error


def load_langcell(model: str) -> LangCellCheckpoint:
    """Load a model folder that must be LangCell's."""
    checkpoint = load(model)
    if not isinstance(checkpoint, LangCellCheckpoint):
        msg = f"model {model!r} is {checkpoint.FORMAT!r}; this needs {LangCellCheckpoint.FORMAT!r}"
        raise ModelError(msg)
    return checkpoint


def save(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
    """Write ``checkpoint`` as a model folder, weights in ``dtype``; a folder with other content is refused."""
    check_model_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": checkpoint.FORMAT,
        "schema_version": schema.SCHEMA_VERSION,
        "name": checkpoint.name,
        **asdict(checkpoint.config),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "labels.json").write_text(json.dumps(checkpoint.labels, indent=1) + "\n")
    state = {name: tensor.to(dtype).contiguous() for name, tensor in checkpoint.state.items()}
    (folder / "model.safetensors").write_bytes(serialise(state, metadata={"format": "pt"}))
    checkpoint.write_tables(folder)


def _read(folder: Path) -> Checkpoint:
    raw = json.loads((folder / "config.json").read_text())
    names = files(raw)
    for name in names:
        if not (folder / name).is_file():
            msg = f"{name} is missing; convert or download the model again"
            raise ValueError(msg)
    labels = json.loads((folder / "labels.json").read_text())
    return _KINDS[str(raw["format"])].read(folder, raw, labels, digest(str(folder), names))
