"""An official scGPT checkpoint folder to our model folder.

Contract: ``args.json``, ``vocab.json`` and the weights load as they are, in all three layouts of the attention
projection (flash-attn 1 ``Wqkv``, scGPT >= 0.2.5 ``_impl``, PyTorch ``in_proj``), which hold the same numbers under
other names. Unlike upstream's loader, which keeps what fits and is silent about the rest, every tensor that inference
needs must be there in the shape that ``args.json`` asks for; decoders of pre-training are left behind. Nothing is
downloaded.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from cellray import schema
from cellray.errors import ModelError, one_line
from cellray.models.official import load_tensors
from cellray.models.scgpt import ScGPTConfig
from cellray.models.scgpt_folder import ScGPTCheckpoint, check

WEIGHTS = ("best_model.pt", "model.pt")
_SPECIAL = ("<pad>", "<cls>", "<eoc>")
_NEEDED = ("encoder.", "value_encoder.", "transformer_encoder.", "cls_decoder.")
_IGNORED = ("decoder.", "mvc_decoder.", "flag_encoder.")
_RENAMED = (("self_attn._impl.", "self_attn."), ("self_attn.Wqkv.", "self_attn.in_proj."), ("in_proj_", "in_proj."))


def is_scgpt(folder: Path) -> bool:
    """Whether ``folder`` looks like an official scGPT checkpoint."""
    return (folder / "args.json").is_file() and (folder / "vocab.json").is_file()


def read_official_scgpt(
    folder: Path,
    *,
    weights: str | None = None,
    names: Sequence[str] | None = None,
    max_length: int | None = None,
    normalise: str | None = None,
    zero_genes: bool = False,
) -> ScGPTCheckpoint:
    """Read the official form.

    Parameters
    ----------
    folder
        ``args.json``, ``vocab.json`` and the weights.
    weights
        Name of the weight file; None: ``best_model.pt`` or ``model.pt``.
    names
        Names of the classes in their order; None: those of ``id2type.json``, if it is there. Upstream saves none.
    max_length
        Longest cell, CLS included; None: ``max_seq_len``.
    normalise, zero_genes
        As in ``ScGPTConfig``: what the model was fine-tuned on. Upstream does not save it; by default counts are
        binned as they are, or, for a model with classes, after ``log1p``.

    Raises
    ------
    ModelError
        Naming the file and what is wrong with it; missing and misshapen tensors included.
    """
    try:
        args = json.loads((folder / "args.json").read_text())
        state = _state(folder / _weight_file(folder, weights))
        vocab = _vocab(folder / "vocab.json")
        missing = [name for name in _SPECIAL if name not in vocab]
        rows = state["encoder.embedding.weight"].shape[0] if "encoder.embedding.weight" in state else len(vocab)
        for name in missing:  # as upstream's loader does: at the end, where the embedding has a row for them
            vocab[name] = len(vocab)
        if len(vocab) != rows:
            msg = f"vocab.json has {len(vocab)} tokens with {', '.join(_SPECIAL)}, the weights have {rows}"
            raise ValueError(msg)
        n_classes = state["cls_decoder.out_layer.weight"].shape[0] if "cls_decoder.out_layer.weight" in state else 0
        config = _config(args, vocab, n_classes)
        config = replace(
            config,
            max_tokens=max_length or config.max_tokens,
            normalise=normalise or ("log1p" if n_classes else "none"),
            zero_genes=zero_genes,
        )
        genes = sorted((name for name in vocab if name not in _SPECIAL), key=vocab.__getitem__)
        table = pa.table([genes, [vocab[name] for name in genes]], schema=schema.symbol_tokens())
        labels = [
            {"name": name, "term_id": "", "text": ""}
            for name in (_names(folder, n_classes) if names is None else names)
        ]
        check(state, config, table, labels)
        return ScGPTCheckpoint(folder.name or "scgpt", "", config, state, table, labels)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else one_line(error)
        msg = f"official checkpoint {str(folder)!r}: {what}"
        raise ModelError(msg) from error


def _weight_file(folder: Path, wanted: str | None) -> str:
    names = WEIGHTS if wanted is None else (wanted,)
    for name in names:
        if (folder / name).is_file():
            return name
    msg = f"no {' or '.join(names)} there; name the weight file with --weights"
    raise ValueError(msg)


def _state(path: Path) -> dict[str, torch.Tensor]:
    state = {}
    for key, tensor in load_tensors(path).items():
        name = key.removeprefix("module.")
        for old, new in _RENAMED:
            name = name.replace(old, new)
        if name.startswith(_NEEDED):
            state[name] = tensor.float()
        elif not name.startswith(_IGNORED):
            msg = f"{path.name} holds {key!r}, which changes what the model computes and is not supported"
            raise ValueError(msg)
    return state


def _vocab(path: Path) -> dict[str, int]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
            msg = f"{path.name}: {twice!r} is there more than once"
            raise ValueError(msg)
        return found

    vocab = json.loads(path.read_text(), object_pairs_hook=unique)
    if sorted(vocab.values()) != list(range(len(vocab))):
        msg = f"{path.name}: ids are not 0 to {len(vocab) - 1}, each once"
        raise ValueError(msg)
    return vocab


def _config(args: dict[str, Any], vocab: dict[str, int], n_classes: int) -> ScGPTConfig:
    if args.get("input_emb_style", "continuous") != "continuous" or args.get("pre_norm", False):
        msg = "args.json: only input_emb_style 'continuous' without pre_norm is supported"
        raise ValueError(msg)
    return ScGPTConfig(
        vocab_size=len(vocab),
        hidden_size=int(args["embsize"]),
        num_layers=int(args["nlayers"]),
        num_heads=int(args["nheads"]),
        ffn_size=int(args["d_hid"]),
        cls_token=vocab["<cls>"],
        pad_value=float(args.get("pad_value", -2)),
        n_bins=int(args.get("n_bins", 51)),
        max_tokens=int(args.get("max_seq_len", 1200)),
        n_classes=n_classes,
        class_layers=int(args.get("n_layers_cls", 3)),
    )


def _names(folder: Path, n_classes: int) -> list[str]:
    path = folder / "id2type.json"
    if not n_classes:
        return []
    if not path.is_file():
        msg = f"the names of the {n_classes} classes are not saved with it; give --labels, one a line in their order"
        raise ValueError(msg)
    names = json.loads(path.read_text())
    return [str(names[str(number)]) for number in range(n_classes)]
