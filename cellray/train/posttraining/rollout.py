"""Answers of the policy as it is now: vLLM engines in actors, and the weights they are given.

Contract: an engine writes only if it holds the version of the weights that it is asked for; anything else is a
``StaleWeightsError``. Weights travel as safetensors bytes, so that actors need no disk in common with the trainer; the
prefix cache is emptied with each version, and the answers to one prompt share it. An answer is a function of its prompt
and seed as far as the engine's arithmetic does not depend on what shares a batch. An actor that dies comes back
without weights and says so (``version`` None). It imports nothing that loads Numba, beside which the engine cannot
start.
"""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellray.errors import ModelError, StaleWeightsError, one_line
from cellray.puzzles.engine import Engine, EngineDeadError, EngineSettings
from cellray.scratch import Scratch

_STOP = "</answer>"
_ADAPTER = 1


@dataclass(frozen=True)
class Weights:
    """All weights, or with ``adapter`` (its configuration) those of the adapter: a number, and safetensors bytes."""

    version: int
    tensors: bytes
    adapter: dict[str, Any] | None


@dataclass(frozen=True)
class Wish:
    """Tokens of a prompt, and a seed for each answer to it."""

    prompt: list[int]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes
    ----------
    tokens, log_probabilities
        (n,) int32 and float32, as it was drawn.
    text
        The same, up to ``</answer>``.
    whole
        Whether it ended by itself and was not cut.
    cached
        Tokens of its prompt that came from the prefix cache.
    """

    tokens: np.ndarray
    log_probabilities: np.ndarray
    text: str
    whole: bool
    cached: int


class Rollouts:
    """The actor: an engine, started when it is first asked."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._engine: Engine | None = None
        self._starting = asyncio.Lock()
        self._version: int | None = None
        self._adapter: Any = None
        self._scratch = Scratch("rollout")
        self._folder = self._scratch.path

    async def version(self) -> int | None:
        """Return the number of the weights that are held."""
        return self._version

    async def load(self, weights: Weights) -> float:
        """Take weights; returns the seconds."""
        engine = await self._started()
        begun = time.perf_counter()
        folder = self._folder / str(weights.version)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._version = None
        if weights.adapter is None:
            self._adapter = None
            (folder / "model.safetensors").write_bytes(weights.tensors)
            await engine.client.collective_rpc("load_policy", args=(str(folder),))
        else:
            from vllm.lora.request import LoRARequest

            (folder / "adapter_model.safetensors").write_bytes(weights.tensors)
            (folder / "adapter_config.json").write_text(json.dumps(weights.adapter))
            # Without load_inplace an adapter of a known number would be kept as it is, silently.
            await engine.client.add_lora(LoRARequest("policy", _ADAPTER, str(folder), load_inplace=True))
            self._adapter = LoRARequest("policy", _ADAPTER, str(folder))
        await engine.client.reset_prefix_cache()
        self._version = weights.version
        for old in self._folder.iterdir():
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        return time.perf_counter() - begun

    async def write(
        self, wishes: Sequence[Wish], version: int, temperature: float, max_tokens: int
    ) -> list[list[Answer]]:
        """Return the answers to each prompt.

        Raises
        ------
        StaleWeightsError
            If other weights are held than those of ``version``.
        """
        if self._version != version:
            msg = f"the rollout engine holds weights {self._version}, not {version}; load them before asking"
            raise StaleWeightsError(msg)
        engine = await self._started()
        try:
            return list(await asyncio.gather(*(self._group(engine, one, temperature, max_tokens) for one in wishes)))
        except EngineDeadError:
            os._exit(1)  # Ray starts the actor anew

    async def _group(self, engine: Engine, wish: Wish, temperature: float, max_tokens: int) -> list[Answer]:
        # The first answer fills the prefix cache that the others read.
        first = asyncio.ensure_future(self._one(engine, wish, wish.seeds[0], temperature, max_tokens))
        await asyncio.sleep(0)
        others = [self._one(engine, wish, seed, temperature, max_tokens) for seed in wish.seeds[1:]]
        return list(await asyncio.gather(first, *others))

    async def _one(self, engine: Engine, wish: Wish, seed: int, temperature: float, max_tokens: int) -> Answer:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            stop=[_STOP],
            include_stop_str_in_output=True,
            skip_special_tokens=True,
            spaces_between_special_tokens=False,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        found = await engine.complete(wish.prompt, params, self._adapter)
        output = found.outputs[0]
        drawn = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
        return Answer(
            np.array(output.token_ids, np.int32),
            np.array(drawn, np.float32),
            output.text,
            output.finish_reason == "stop",
            found.num_cached_tokens or 0,
        )

    async def _started(self) -> Engine:
        async with self._starting:
            if self._engine is None:
                try:
                    self._engine = Engine(self._settings)
                except ModelError:
                    raise
                except Exception as error:
                    msg = f"model {self._settings.model!r}: {one_line(error)[:300]}"
                    raise ModelError(msg) from error
            return self._engine
