"""The trainer's side of rollouts: which actors a worker asks, the weights it sends, and actors that come back empty.

Contract: ``send`` gives all actors the weights of a version; ``ask`` returns answers from exactly those. An actor that
died meanwhile is given the weights again and asked the same once more, so no prompt is skipped or counted twice.
"""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError
from safetensors.torch import save
from torch import Tensor

from cellray.errors import CellRayError, ModelError, StaleWeightsError
from cellray.puzzles.engine import EngineSettings, locate
from cellray.train.loop import Alone
from cellray.train.posttraining.config import GRPOConfig
from cellray.train.posttraining.policy import Policy, context_of
from cellray.train.posttraining.rollout import Answer, Rollouts, Weights, Wish
from cellray.train.sharing import whole

_TRIES = 4
_PAUSE_S = 1.0


def start_rollouts(config: GRPOConfig, gpus: int = 0, block: int | None = None) -> list[Any]:
    """Start the rollout actors; kill them when training is over."""
    settings = EngineSettings(
        model=locate(config.model),
        max_length=min(context_of(config.model), config.max_prompt + config.max_tokens),
        max_sequences=config.sequences,
        cache_bytes=config.cache_bytes,
        gpu_memory=config.gpu_memory,
        tensor_parallel=config.tensor_parallel,
        dtype="auto" if config.dtype == "float32" and not gpus else config.dtype,
        adapters=0 if config.adapter is None else 1,
        adapter_rank=engine_rank(config.adapter.rank if config.adapter else 1),
        block=block,
        seed=config.seed,
    )
    # A variable of its own keeps the actor out of a used process, which may have loaded Numba.
    options = {
        "num_cpus": 1,
        "num_gpus": config.tensor_parallel if gpus else 0,
        "max_restarts": -1,
        "max_concurrency": 64,
        "runtime_env": {"env_vars": {"VLLM_LOGGING_LEVEL": "ERROR"}},
    }
    actor: Any = ray.remote(Rollouts).options(**options)
    return [actor.remote(settings) for _ in range(config.rollouts)]


def engine_rank(rank: int) -> int:
    """Return the smallest of the ranks that vLLM knows that holds ``rank``."""
    known = (8, 16, 32, 64, 128, 256, 320, 512)
    found = next((one for one in known if one >= rank), None)
    if found is None:
        msg = f"adapter.rank {rank}: the engine takes at most {known[-1]}"
        raise ModelError(msg)
    return found


def weights_of(policy: Policy, version: int) -> Weights:
    """Return what the engine needs of a policy; all workers that share its weights must ask."""
    if not policy.has_adapter:
        own = policy.causal.state_dict()
        tied = policy.causal.config.tie_word_embeddings
        kept = {name: one for name, one in own.items() if not (tied and name == "lm_head.weight")}
        return Weights(version, _bytes(kept), None)
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(policy.model, save_embedding_layers=False)
    told = policy.model.peft_config["default"].to_dict()
    plain = {name: sorted(one) if isinstance(one, set) else one for name, one in told.items()}
    plain |= {"task_type": "CAUSAL_LM", "peft_type": "LORA", "inference_mode": True}
    simple = {name: one for name, one in plain.items() if isinstance(one, str | int | float | bool | list | type(None))}
    return Weights(version, _bytes(own), simple)


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    return save({name: whole(one).cpu().contiguous() for name, one in tensors.items()})


class Writers:
    """The actors that a worker asks."""

    def __init__(self, actors: Sequence[Any], config: GRPOConfig, workers: Alone) -> None:
        rank, world = workers.rank, workers.world
        self._config, self._workers = config, workers
        # More workers than actors share them; the first of those that do sends the weights.
        self._own = list(actors[rank::world]) or [actors[rank % len(actors)]]
        self._sends = rank < len(actors)
        self._sent: Weights | None = None

    def send(self, policy: Policy, version: int) -> float:
        """Give the actors the policy's weights as ``version``; returns the seconds."""
        begun = time.perf_counter()
        self._sent = weights_of(policy, version)
        if self._sends:
            held = ray.put(self._sent)
            for actor in self._own:
                self._patiently(lambda actor=actor: ray.get(actor.load.remote(held)))
        self._workers.total([0.0])  # nobody asks before all have sent
        return time.perf_counter() - begun

    def ask(self, wishes: Sequence[Wish]) -> list[list[Answer]]:
        """Return the answers to prompts, from the weights sent last."""
        shares = [wishes[at :: len(self._own)] for at in range(len(self._own))]
        calls = [self._call(actor, share) for actor, share in zip(self._own, shares, strict=True)]
        found: list[list[Answer]] = [[] for _ in wishes]
        for at, (actor, share, call) in enumerate(zip(self._own, shares, calls, strict=True)):
            found[at :: len(self._own)] = self._patiently(
                lambda actor=actor, share=share, call=call: self._answers(actor, share, call)
            )
        return found

    def _call(self, actor: Any, share: Sequence[Wish]) -> Any:
        assert self._sent is not None  # noqa: S101 - for the type checker
        return actor.write.remote(share, self._sent.version, self._config.temperature, self._config.max_tokens)

    def _answers(self, actor: Any, share: Sequence[Wish], call: Any) -> list[list[Answer]]:
        try:
            return ray.get(call)
        except (RayActorError, StaleWeightsError):
            # One that came back is empty; one that holds anything else is wrong.
            if ray.get(actor.version.remote()) is not None:
                raise
            ray.get(actor.load.remote(self._sent))
            return ray.get(self._call(actor, share))

    def _patiently(self, work: Any) -> Any:
        """Try again while the actor is coming back."""
        for left in reversed(range(_TRIES)):
            try:
                return work()
            except RayActorError as error:
                if not left:
                    msg = f"rollout actors die again and again: {error}"
                    raise CellRayError(msg) from error
                time.sleep(_PAUSE_S)
        raise AssertionError
