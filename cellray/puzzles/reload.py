"""New weights for a running engine: what vLLM's workers are taught for it.

Contract: ``load_policy`` gives a worker the weights of a folder, also those that its own reloading leaves behind: on a
CPU vLLM 0.32 computes logits from a packed copy of the head, which it does not pack anew where the head is tied to the
embedding. To be checked again with each release of vLLM: log-probabilities after a load tell.
"""

from typing import Any


class PolicyLoading:
    """Extension of vLLM's worker class; ``collective_rpc`` calls its methods by name."""

    model_runner: Any

    def load_policy(self, folder: str) -> None:
        """Load ``model.safetensors`` of ``folder``."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.platforms import current_platform

        self.model_runner.reload_weights(weights_path=folder)
        model = self.model_runner.get_model()
        if current_platform.is_cpu() and model.config.tie_word_embeddings:
            model.lm_head.tie_weights(model.model.embed_tokens)
            dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
