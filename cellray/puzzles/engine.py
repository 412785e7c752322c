"""The language model: vLLM's asynchronous engine, asked for texts and for the likelihood of labels.

Contract: one engine in a process; requests of any number of callers share its batches. Prompts are rendered by the
model's own chat template and checked against its context before they are sent. Texts end with ``</answer>`` unless
the ``Sampling`` says otherwise. Knows adapters by folder. It neither builds puzzles nor judges answers. Importing it
does not import vLLM.
"""

import asyncio
import gc
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cellray.errors import ModelError, PuzzleError, one_line
from cellray.puzzles.puzzle import SEPARATOR

Messages = list[dict[str, str]]
BUNDLED = {"mini-cell-o1": Path(__file__).parent / "mini_cell_o1"}
_STOP = "</answer>"
_ANSWER_TOKENS = 16  # the least an answer of one cell takes
_TAGS = 32  # bytes of the tags around it
_CPU_CACHE_BYTES = 512 << 20


class EngineSettings(BaseModel):
    """How the engine is set up; None leaves it to vLLM."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    max_length: Annotated[int | None, Field(ge=16, description="longest prompt and answer, tokens")] = None
    max_sequences: Annotated[int, Field(ge=1, description="answers written at once")] = 128
    cache_bytes: Annotated[int | None, Field(ge=1 << 20, description="key-value cache; CPU: half a GiB")] = None
    gpu_memory: Annotated[float, Field(gt=0, le=1, description="share of a GPU's memory")] = 0.9
    block: Annotated[
        int | None, Field(ge=16, description="tokens of a block of the cache; prefixes share whole ones")
    ] = None
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    adapters: Annotated[int, Field(ge=0, description="LoRA adapters in one batch; 0: none")] = 0
    adapter_rank: Annotated[int, Field(ge=1)] = 64
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn: ``n`` of them at ``temperature`` (0: the most likely one), up to ``max_tokens`` each.

    ``one_to_one``: candidates and number of cells to decode under, with ``thoughts`` tokens at most before the answer.
    ``stop``: what ends a text, and stays in it. ``opening``: what the text is made to begin with; it is not returned.
    """

    n: int = 1
    temperature: float = 0.0
    max_tokens: int = 3500
    seed: int = 0
    one_to_one: tuple[tuple[str, ...], int] | None = None
    thoughts: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = (_STOP,)
    opening: str | None = None


@dataclass(frozen=True)
class Reply:
    """Texts, their tokens, and those of the prompt (``cached`` of them from the prefix cache)."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    prompt_tokens: int
    cached: int


class EngineDeadError(RuntimeError):
    """The engine's process is gone; start another."""


class Engine:
    """A started engine.

    Raises
    ------
    ModelError
        If the model folder cannot be used: not there, no chat template, an architecture that vLLM does not know.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        check_model(settings.model)
        with _uncollected():
            _prepare_environment()
            import torch
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

        gpu = torch.cuda.is_available()
        cache = settings.cache_bytes or (None if gpu else _CPU_CACHE_BYTES)
        options: dict[str, Any] = {
            "kv_cache_memory_bytes": cache,
            "max_model_len": settings.max_length,
            "gpu_memory_utilization": settings.gpu_memory,
            "block_size": settings.block,
        }
        if settings.adapters:
            options |= {
                "enable_lora": True,
                "max_loras": settings.adapters,
                "max_lora_rank": settings.adapter_rank,
                "max_cpu_loras": 2 * settings.adapters,
            }
        try:
            self.client = AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=locate(settings.model),
                    dtype="float32" if settings.dtype == "auto" and not gpu else settings.dtype,
                    max_num_seqs=settings.max_sequences,
                    tensor_parallel_size=settings.tensor_parallel,
                    enforce_eager=not gpu,
                    enable_prefix_caching=True,
                    async_scheduling=False,
                    # On a CPU vLLM 0.32 cannot rewind the generator of a seeded request whose prompt comes in chunks.
                    enable_chunked_prefill=gpu,
                    disable_log_stats=True,
                    logprobs_mode="processed_logprobs",  # of what is drawn from: after the temperature
                    logits_processors=["cellray.puzzles.processor:OneToOneProcessor"],
                    worker_extension_cls="cellray.puzzles.reload.PolicyLoading",
                    seed=settings.seed,
                    **{name: value for name, value in options.items() if value is not None},
                )
            )
        except (ValueError, OSError, RuntimeError) as error:
            msg = f"model {settings.model!r}: {one_line(error)[:300]}"
            raise ModelError(msg) from error
        self.tokenizer: Any = self.client.get_tokenizer()
        self.longest = int(self.client.model_config.max_model_len)
        self._numbers = itertools.count()
        self._adapters: dict[str, Any] = {}

    async def ask(self, messages: Messages, sampling: Sampling, adapter: str | None = None) -> Reply:
        """Return what the model says, with the LoRA adapter in folder ``adapter`` if one is named.

        Raises
        ------
        PuzzleError
            ``too_long``: the prompt leaves no room for an answer.
        EngineDeadError
            If the engine died.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt = self.prompt(messages, sampling.opening)
        cells = sampling.one_to_one[1] if sampling.one_to_one else 1
        room = self.longest - len(prompt)
        if room < _ANSWER_TOKENS * cells:
            raise PuzzleError(
                "too_long", f"the prompt has {len(prompt):,} of {self.longest:,} tokens; give fewer cells or genes"
            )
        extra: dict[str, Any] | None = None
        most = min(sampling.max_tokens, room)
        if sampling.one_to_one is not None:
            candidates, n = sampling.one_to_one
            # The answer must fit behind the thoughts even if it is spelled byte by byte.
            reserved = sum(len(name.encode()) + len(SEPARATOR) for name in candidates) + _TAGS
            budget = max(0, most - reserved)
            if sampling.thoughts is not None:
                budget = min(budget, sampling.thoughts)
            extra = {"one_to_one": {"candidates": list(candidates), "n": n, "budget": budget}}
        params = SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=most,
            seed=None if sampling.temperature == 0 else sampling.seed,
            # One-to-one decoding ends by itself; a tag among the thoughts must not end it before.
            stop=None if extra or not sampling.stop else list(sampling.stop),
            include_stop_str_in_output=extra is None and bool(sampling.stop),
            skip_special_tokens=True,
            spaces_between_special_tokens=False,
            extra_args=extra,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        found = await self._one(prompt, params, adapter)
        return Reply(
            tuple(output.text for output in found.outputs),
            tuple(len(output.token_ids) for output in found.outputs),
            len(prompt),
            found.num_cached_tokens or 0,
        )

    async def likelihoods(
        self, messages: Messages, said: str, endings: Sequence[str], adapter: str | None = None
    ) -> list[float]:
        """Return the log-probability of each of ``endings`` after the prompt and ``said``, per token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        before = self.prompt(messages) + self.tokenizer.encode(said, add_special_tokens=False)
        params = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )

        async def one(ending: str) -> float:
            tokens = self.tokenizer.encode(ending, add_special_tokens=False)
            if len(before) + len(tokens) >= self.longest:
                return -1e9
            found = await self._one(before + tokens, params, adapter)
            rows = found.prompt_logprobs[len(before) :]
            values = [row[token].logprob for row, token in zip(rows, tokens, strict=True)]
            return sum(values) / max(len(values), 1)

        return list(await asyncio.gather(*map(one, endings)))

    def prompt(self, messages: Messages, opening: str | None = None) -> list[int]:
        """Return the tokens of a chat that the model is to go on with, behind ``opening`` if one is given.

        An opening takes the place of every ``<think>`` in the chat, as CellReasoner has it.
        """
        text = rendered(self.tokenizer, messages, opening)
        return self.tokenizer.encode(text, add_special_tokens=False)

    async def load_adapter(self, folder: str) -> Any:
        """Load the adapter in ``folder``, unless it is there; returns vLLM's handle."""
        from vllm.lora.request import LoRARequest

        if folder not in self._adapters:
            request = LoRARequest(folder, next(self._numbers) + 1, folder)
            try:
                await self.client.add_lora(request)
            except (ValueError, RuntimeError, OSError) as error:
                msg = f"adapter {folder!r}: {one_line(error)[:300]}"
                raise ModelError(msg) from error
            self._adapters[folder] = request
        return self._adapters[folder]

    async def unload_adapter(self, folder: str) -> None:
        """Forget an adapter."""
        request = self._adapters.pop(folder, None)
        if request is not None:
            await self.client.remove_lora(request.lora_int_id)

    async def check(self) -> None:
        """Raise ``EngineDeadError`` if the engine is gone."""
        if self.client.errored:
            msg = "the engine's process is gone"
            raise EngineDeadError(msg)

    def close(self) -> None:
        """Stop the engine, and what it is writing."""
        self.client.shutdown(timeout=0)  # killed: it has nothing to save, and takes three seconds to take itself down
        gc.unfreeze()

    async def _one(self, prompt: list[int], params: Any, adapter: str | None) -> Any:
        return await self.complete(prompt, params, None if adapter is None else await self.load_adapter(adapter))

    async def complete(self, prompt: list[int], params: Any, lora: Any = None) -> Any:
        """Return vLLM's output for the tokens of a prompt, with the adapter of vLLM's handle ``lora``."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError as Dead

        found = None
        try:
            async for output in self.client.generate(
                {"prompt_token_ids": prompt}, params, f"puzzle-{next(self._numbers)}", lora_request=lora
            ):
                found = output
        except VLLMClientError as error:
            raise PuzzleError("refused", one_line(error)[:300]) from error
        except Dead as error:
            msg = "the engine's process died"
            raise EngineDeadError(msg) from error
        if found is None:
            msg = "the engine gave no output"
            raise EngineDeadError(msg)
        return found


def rendered(tokenizer: Any, messages: Messages, opening: str | None = None) -> str:
    """Return the text of a chat up to where the model goes on; see ``Engine.prompt``."""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text if opening is None else text.replace("<think>", "") + opening


def locate(model: str) -> str:
    """Return the folder of a bundled model, or ``model`` itself."""
    return str(BUNDLED.get(model, model))


def check_model(model: str) -> None:
    """Refuse a folder that holds no chat model of Hugging Face's layout."""
    folder = locate(model)
    path = Path(folder)
    if not (path / "config.json").is_file():
        msg = f"model {folder!r}: no config.json there; give a Hugging Face model folder"
        raise ModelError(msg)
    config = path / "tokenizer_config.json"
    has_template = (path / "chat_template.jinja").is_file() or (
        config.is_file() and '"chat_template"' in config.read_text(errors="replace")
    )
    if not has_template:
        msg = f"model {folder!r}: no chat template; take an instruction-tuned model or add chat_template.jinja"
        raise ModelError(msg)


def check_vllm() -> None:
    """Say early that there is no vLLM here."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        msg = "language models run on vLLM, which is not installed; install cellray[cpu] or cellray[gpu], or give a URL"
        raise ModelError(msg)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import without the collector of cycles, and keep what is imported out of its sight until ``close``.

    Looking through vLLM's modules takes it two seconds.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def _prepare_environment() -> None:
    """Set what vLLM reads when it is imported, unless the user did."""
    import torch

    known: Mapping[str, str] = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process less beside a CPU engine
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the processor's interface
    }
    if not torch.cuda.is_available():
        known = {**known, "TORCHDYNAMO_DISABLE": "1"}
    for name, value in known.items():
        os.environ.setdefault(name, value)
