"""What post-training may be told. Unknown fields are errors; ``preset`` names values that other fields then override.

Two presets of supervised fine-tuning exist because paper and released script differ: ``paper`` (10 epochs of batches of
8 x 16, 8,192 tokens; it does not name DoRA) and ``released`` (1 epoch of 6 x 16, 4,096 tokens, DoRA). Both: LoRA of
rank 256 and alpha 512 with dropout 0.05 on all linear layers, learning rate 5e-5, bfloat16, a tenth for validation.

Source: Cell-o1 (arXiv 2506.02911) and its released ``sft.sh``; GRPO's defaults are those of its verl script.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cellray.puzzles.puzzle import Placement
from cellray.train.config import FromFile, Strict

_SFT = {"accumulate": 16, "learning_rate": 5e-5, "dtype": "bfloat16", "validation": 0.1, "placement": "system"}
_LORA = {"rank": 256, "alpha": 512, "dropout": 0.05}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**_SFT, "epochs": 10, "batch": 8, "max_length": 8192, "adapter": {**_LORA, "dora": False}},
    "released": {**_SFT, "epochs": 1, "batch": 6, "max_length": 4096, "adapter": {**_LORA, "dora": True}},
}


class Adapter(Strict):
    """A low-rank adapter on all linear layers but the head."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dora: Annotated[bool, Field(description="weight-decomposed (DoRA); vLLM serves it merged only")] = False


class Training(FromFile):
    """What both kinds of training share. ``adapter`` None trains all weights."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    model: Annotated[str, Field(description="Hugging Face model folder, or mini-cell-o1")]
    seed: Annotated[int, Field(ge=0)] = 0
    adapter: Adapter | None = Adapter()
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpointing: Annotated[bool, Field(description="compute activations again in the backward pass")] = False
    sharded: Annotated[bool, Field(description="a worker holds a share of the weights (FSDP) and not all")] = False
    placement: Annotated[Placement, Field(description="of the instruction in the prompt")] = "appended"
    save_steps: Annotated[int | None, Field(ge=1, description="steps between checkpoints")] = None


class SFTConfig(Training):
    """Supervised fine-tuning. A step is ``batch`` examples, times ``accumulate``, times workers."""

    preset: Literal["paper", "released"] | None = None
    said: Annotated[
        Literal["trace", "list", "answer"],
        Field(description="what is learned: the record's trace, a line a cell and the answer, or the answer alone"),
    ] = "trace"
    variants: Annotated[int, Field(ge=1, description="copies of each puzzle, each without some of its genes")] = 1
    most_dropped: Annotated[float, Field(ge=0, lt=1, description="largest share of a cell's genes left out")] = 0.0
    epochs: Annotated[int, Field(ge=1)] = 3
    batch: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 1
    max_length: Annotated[int | None, Field(ge=16, description="prompt and answer; None: the model's context")] = None
    warm_up: Annotated[float, Field(ge=0, lt=1, description="share of the steps")] = 0.0
    validation: Annotated[float, Field(ge=0, lt=1, description="share of the examples; the best weights stay")] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        known = PRESETS.get(given.get("preset") or "", {}) if isinstance(given, dict) else {}
        return {**known, **given} if known else given

    @model_validator(mode="after")
    def _traces_name_genes(self) -> Self:
        if self.most_dropped and self.said == "trace":
            msg = "most_dropped: a trace may name the genes that are left out; set said: list or answer"
            raise ValueError(msg)
        return self


class GRPOConfig(Training):
    """GRPO. A step is ``prompts`` prompts of ``group`` answers each, over all workers."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    placement: Placement = "spaced"
    reward: Literal["batch", "mixed"] = "batch"
    steps: Annotated[int, Field(ge=1)]
    prompts: Annotated[int, Field(ge=1)] = 64
    group: Annotated[int, Field(ge=2, description="answers of each prompt")] = 5
    micro: Annotated[int, Field(ge=1, description="answers in one forward pass")] = 16
    updates: Annotated[int, Field(ge=1, description="optimiser steps on the same answers")] = 1
    temperature: Annotated[float, Field(gt=0)] = 1.0
    max_prompt: Annotated[int, Field(ge=1, description="tokens; longer prompts are left out and counted")] = 3072
    max_tokens: Annotated[int, Field(ge=1, description="tokens of an answer")] = 3000
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    beta: Annotated[float, Field(ge=0, description="weight of the divergence from the first weights")] = 0.001
    overlong_filter: Annotated[bool, Field(description="an answer cut at max_tokens teaches nothing")] = True
    most_gap: Annotated[
        float | None,
        Field(gt=0, description="mean difference of log-probabilities to the engine's; more is stale weights"),
    ] = None
    save_steps: Annotated[int, Field(ge=1, description="steps between checkpoints")] = 100
    rollouts: Annotated[int, Field(ge=1, description="rollout actors, one engine each")] = 1
    sequences: Annotated[int, Field(ge=1, description="answers that an engine writes at once")] = 128
    cache_bytes: Annotated[int | None, Field(ge=1 << 20, description="its key-value cache")] = None
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.6
    tensor_parallel: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _served(self) -> Self:
        if self.adapter is not None and self.adapter.dora:
            msg = "adapter.dora: rollouts need an adapter that vLLM serves; set dora: false, or adapter: null"
            raise ValueError(msg)
        if self.adapter is not None and self.adapter.dropout:
            msg = "adapter.dropout: answers are written without it and must be learned from without it; set 0"
            raise ValueError(msg)
        return self

    @property
    def allowed_gap(self) -> float:
        """``most_gap``, or what arithmetic of the precision alone does not reach."""
        return self.most_gap or (3e-5 if self.dtype == "float32" else 0.05)
