"""A low-rank adapter into its base: a model folder of its own, which any engine loads without knowing of adapters.

Contract: the base must be the one that the adapter was trained on, by content hash where the adapter names it. LoRA and
DoRA alike; the sum is computed in float32 and stored in the base's own type.
"""

import json
from pathlib import Path

import torch

from cellray import storage
from cellray.errors import LOADING, ModelError, boundary
from cellray.puzzles.engine import locate
from cellray.train.posttraining.policy import open_tokenizer, stored_dtype


def merge(model: str, adapter: Path, out: Path) -> None:
    """Write the model folder ``out``.

    Raises
    ------
    ModelError
        If the adapter is of another model, or either cannot be read.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = locate(model)
    tokenizer = open_tokenizer(model)
    with boundary(ModelError, f"adapter {adapter}", *LOADING):
        told = json.loads((adapter / "adapter_config.json").read_text())
        if told.get("revision") and told["revision"] != storage.content_hash(folder):
            msg = f"adapter {adapter}: trained on another model than {model!r}; give the one it names as its base"
            raise ModelError(msg)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        whole = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    whole.to(stored_dtype(base)).save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
