"""One-to-one decoding as a logits processor of vLLM (interface of its V1 model runner).

Contract: a request that carries ``extra_args={"one_to_one": {...}}`` (see ``OneToOne.of``) is decoded under it, others
are left alone. vLLM's newer model runner has another interface and refuses this class: ``engine`` asks for the V1 one.
"""

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from cellray.puzzles.one_to_one import OneToOne, Vocabulary

KEY = "one_to_one"


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """Return the tokens of a Hugging Face tokenizer by their bytes."""
    from xgrammar import TokenizerInfo

    end = {tokenizer.eos_token_id}
    tokens = TokenizerInfo.from_huggingface(tokenizer, vocab_size=size).decoded_vocab
    return Vocabulary(tokens, frozenset(tokenizer.all_special_ids), frozenset(end - {None}))


class OneToOneProcessor(LogitsProcessor):
    """The processor; a state for each request of the batch that asks for it."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request whose arguments make no sense."""
        wanted = (sampling_params.extra_args or {}).get(KEY)
        if wanted is not None:
            try:
                OneToOne.of(Vocabulary([], frozenset(), frozenset()), wanted)
            except (KeyError, TypeError, AttributeError) as error:
                msg = f"one-to-one decoding: {error!r}"
                raise ValueError(msg) from error

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: FBT001
        from vllm.tokenizers import cached_tokenizer_from_config

        model = vllm_config.model_config
        tokenizer = cached_tokenizer_from_config(model)
        self._vocabulary = vocabulary_of(tokenizer, model.get_vocab_size())
        self._states: dict[int, tuple[OneToOne, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """Greedy decoding changes too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that came, went or moved."""

        def state(
            params: SamplingParams, _prompt: list[int] | None, output: list[int]
        ) -> tuple[OneToOne, list[int]] | None:
            wanted = (params.extra_args or {}).get(KEY)
            return None if wanted is None else (OneToOne.of(self._vocabulary, wanted), output)

        process_dict_updates(self._states, batch_update, state)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Forbid what may not come next."""
        for row, (state, output) in self._states.items():
            state.read(output)
            allowed = state.allowed()
            if allowed is None:
                logits[row, self._vocabulary.end] = -torch.inf
            else:
                kept = logits[row, allowed].clone()
                logits[row] = -torch.inf
                logits[row, allowed] = kept
        return logits
