"""A causal language model that is trained: all of it or a low-rank adapter, and the log-probabilities it gives.

Contract: weights are read from safetensors, and no code of a model folder is run. ``trained`` holds the parameters that
change and nothing else, by their names, so that checkpoints are small. An adapter's folder names its base by content
hash (``revision`` of its configuration); on another base it is a ``ModelError``. Logits are computed for the tokens
that count alone, in chunks that the backward pass computes again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cellray import storage
from cellray.errors import LOADING, ModelError, boundary
from cellray.puzzles.engine import check_model, locate
from cellray.train.loop import Alone
from cellray.train.posttraining.config import Adapter, Training
from cellray.train.posttraining.examples import IGNORED, Packed

_CHUNK = 4096


class Trained(nn.Module):
    """The parameters of a module that want a gradient, by name; and what they belong to, so that states do not mix."""

    def __init__(self, module: nn.Module, identity: str) -> None:
        super().__init__()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)
        told = torch.tensor(list(bytes.fromhex(identity)), dtype=torch.uint8)
        self.register_buffer("identity", told.to(next(module.parameters()).device))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load; refuses the state of another model."""
        own = self.state_dict()
        same = state_dict.keys() == own.keys() and all(state_dict[key].shape == own[key].shape for key in own)
        if not same or not torch.equal(state_dict["identity"].cpu(), own["identity"].cpu()):
            msg = "the checkpoint is of another model or adapter; give another --runs folder or name"
            raise ModelError(msg)
        return super().load_state_dict(state_dict, *args, **kwargs)


class Policy(nn.Module):
    """The model in ``config.model``, with a fresh adapter if one is asked for."""

    causal: Any
    model: Any

    def __init__(self, config: Training) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        super().__init__()
        logging.disable_progress_bar()
        folder = locate(config.model)
        check_model(folder)
        half = config.dtype == "bfloat16"
        stored = torch.bfloat16 if half and config.adapter is not None else torch.float32
        with boundary(ModelError, f"model {config.model!r}", *LOADING):
            base = AutoModelForCausalLM.from_pretrained(folder, dtype=stored, use_safetensors=True)
        self.digest = storage.content_hash(folder)
        self.autocast = torch.bfloat16 if half else None
        if config.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        base.config.use_cache = False
        self.causal = base
        torch.manual_seed(config.seed)
        self.model = base if config.adapter is None else with_adapter(base, config.adapter, self.digest)
        self.eval()

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained and not all weights."""
        return self.model is not self.causal

    def trained(self) -> Trained:
        """Return the parameters that change."""
        return Trained(self, self.digest)

    def forward(self, batch: Packed, temperature: float = 1.0) -> Tensor:
        """Return the log-probabilities of the targets of ``batch``, float32, in the order of its rows."""
        device = next(self.causal.parameters()).device
        batch = batch.to(device)
        counted = batch.target != IGNORED
        with torch.autocast(device.type, self.autocast) if self.autocast else nullcontext():
            body = self.causal.base_model
            hidden = body(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).last_hidden_state
            head = self.causal.get_output_embeddings()
            return log_probabilities(hidden[counted], batch.target[counted], head, temperature)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """While inside, the adapter is off: the model is the one that training began with."""
        if not self.has_adapter:
            msg = "without an adapter the first weights are gone; keep a second policy"
            raise ValueError(msg)
        with self.model.disable_adapter():
            yield

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as peft has it."""
        self.model.save_pretrained(str(folder), save_embedding_layers=False)

    def save_model(self, folder: Path, tokenizer: Any, dtype: torch.dtype | None = None) -> None:
        """Write a whole model folder, an adapter merged in; ``dtype`` None is that of the base's own folder.

        The policy is of no use afterwards.
        """
        whole = self.model.merge_and_unload() if self.has_adapter else self.causal
        whole.to(dtype or stored_dtype(self.causal)).save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def opened(config: Training, workers: Alone) -> Policy:
    """Return the policy of ``config`` where ``workers`` compute, whole or this worker's share of it."""
    policy = Policy(config)
    if config.sharded:  # part by part from here to there: all of it may not fit
        names = policy.causal._no_split_modules or ()
        workers.share(policy, [one for one in policy.causal.modules() if type(one).__name__ in names])
    return policy.to(workers.device)


def with_adapter(base: Any, adapter: Adapter, digest: str) -> Any:
    """Return ``base`` with a fresh low-rank adapter on all linear layers."""
    from peft import LoraConfig, get_peft_model

    wanted = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_dora=adapter.dora,
        bias="none",
        target_modules="all-linear",
    )
    model = get_peft_model(base, wanted)
    model.peft_config["default"].revision = digest
    return model


def log_probabilities(hidden: Tensor, target: Tensor, head: nn.Module, temperature: float) -> Tensor:
    """Return log-probabilities (n,) float32 of ``target`` (n,) under ``head`` of ``hidden`` (n, width)."""

    def some(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head(states).float() / temperature
        return torch.log_softmax(logits, -1).gather(-1, wanted[:, None]).squeeze(-1)

    pieces = list(zip(hidden.split(_CHUNK), target.split(_CHUNK), strict=True))
    if len(pieces) == 1:
        return some(*pieces[0])
    return torch.cat([checkpoint(some, *piece, use_reentrant=False) for piece in pieces])


def stored_dtype(model: Any) -> torch.dtype:
    """Return the type that a model's own folder stores its weights in."""
    from transformers import AutoConfig

    told = AutoConfig.from_pretrained(model.config.name_or_path).dtype
    return told if isinstance(told, torch.dtype) else torch.float32


def open_tokenizer(model: str) -> Any:
    """Return the tokenizer of a model folder.

    Raises
    ------
    ModelError
        If there is none, or no chat template or end token.
    """
    from transformers import AutoTokenizer

    check_model(model)
    with boundary(ModelError, f"model {model!r}", *LOADING):
        tokenizer = AutoTokenizer.from_pretrained(locate(model))
    if tokenizer.eos_token_id is None:
        msg = f"model {model!r}: its tokenizer has no end token; take an instruction-tuned model"
        raise ModelError(msg)
    return tokenizer


def context_of(model: str) -> int:
    """Return the longest prompt and answer of a model, tokens."""
    from transformers import AutoConfig

    with boundary(ModelError, f"model {model!r}", *LOADING):
        return int(AutoConfig.from_pretrained(locate(model)).max_position_embeddings)
