"""Cell-o1 over HTTP: a language model on vLLM behind OpenAI's interface, and puzzles solved.

``serve run deployments/cell_o1.yaml``, or ``serve run deployments.cell_o1:build_app model=DIR adapters=URI``.

- ``POST /v1/chat/completions`` (streaming too) and ``GET /v1/models`` as OpenAI has them.
- ``POST /v1/puzzles/solve``: see ``cellray.puzzles.requests``; answered by the solver without a language model while
  the engine is down, if ``baseline`` names solved puzzles.
- ``GET /healthz``, ``GET /readyz``.

``model`` in a request names the base (``name``) or an adapter of it, ``name:adapter``, a folder in ``adapters``.
Contract: replicas hold the engine and the adapters that were used last, and are asked for what they have. A client that
goes away ends its request. More requests than fit the queue are refused with 429. A replica whose engine died is unwell
and replaced; requests that it took with it are asked of another. Errors of OpenAI's paths have OpenAI's form.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from cellray import storage
from cellray.errors import CellRayError, ModelError, RequestError, one_line
from cellray.puzzles import records
from cellray.puzzles.centroid import Profiles
from cellray.puzzles.engine import Engine, EngineDeadError, EngineSettings, check_model
from cellray.puzzles.puzzle import Puzzle
from cellray.puzzles.requests import answered, parse_puzzle
from cellray.puzzles.solve import SolveSettings, solve
from cellray.scratch import Scratch
from deployments.http import Autoscaling, admit, api_key, read_body, route, told

ADAPTERS_PER_REPLICA = 8
_TRIES = 3
_WEIGHTS = "adapter_model.safetensors"


class Arguments(BaseModel):
    """What the app may be told."""

    model_config = ConfigDict(extra="forbid")

    model: str = "mini-cell-o1"
    name: str = "cell-o1"
    adapters: str | None = None
    baseline: str | None = None
    engine: dict[str, Any] = {}
    runtime: Literal["own", "ray"] = "own"
    replicas: Autoscaling = Autoscaling(target_ongoing_requests=16)
    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    max_queued_requests: Annotated[int, Field(ge=1)] = 256
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 128
    timeout_s: Annotated[float, Field(gt=0)] = 300
    max_body_bytes: Annotated[int, Field(ge=1)] = 8 << 20
    health_check_period_s: Annotated[float, Field(gt=0)] = 5
    graceful_shutdown_s: Annotated[float, Field(gt=0)] = 60

    def engine_settings(self) -> EngineSettings:
        """Return how the engine is set up."""
        adapters = ADAPTERS_PER_REPLICA if self.adapters else 0
        return EngineSettings(**{"model": self.model, "adapters": adapters, **self.engine})


def build_app(arguments: Arguments) -> serve.Application:
    """Return the app. Clients must show ``$CELLRAY_API_KEY`` as a bearer token where that is set when it is built.

    With ``runtime: ray`` (GPUs) it is ``ray.serve.llm``'s own, with OpenAI's paths alone and no key of ours.
    """
    check_model(arguments.model)
    if arguments.runtime == "ray":
        return _ray_app(arguments)
    model = Model.options(  # type: ignore[attr-defined]
        autoscaling_config=arguments.replicas.model_dump(),
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        max_ongoing_requests=arguments.max_ongoing_requests,
        max_queued_requests=arguments.max_queued_requests,
        health_check_period_s=arguments.health_check_period_s,
        graceful_shutdown_timeout_s=arguments.graceful_shutdown_s,
    ).bind(arguments)
    gateway = Gateway.options(  # type: ignore[attr-defined]
        max_ongoing_requests=arguments.max_ongoing_requests + arguments.max_queued_requests + 16
    )
    return gateway.bind(arguments, model, api_key())


def _ray_app(arguments: Arguments) -> serve.Application:
    from ray.serve.llm import LLMConfig, build_openai_app

    known = arguments.engine_settings().model_dump(include={"max_length", "max_sequences", "tensor_parallel"})
    names = {"max_length": "max_model_len", "max_sequences": "max_num_seqs", "tensor_parallel": "tensor_parallel_size"}
    config = LLMConfig(
        model_loading_config={"model_id": arguments.name, "model_source": arguments.model},
        deployment_config={"autoscaling_config": arguments.replicas.model_dump()},
        engine_kwargs={names[key]: value for key, value in known.items() if value is not None},
        lora_config={"dynamic_lora_loading_path": arguments.adapters, "max_num_adapters_per_replica": 8}
        if arguments.adapters
        else None,
    )
    return build_openai_app({"llm_configs": [config]})


class Adapter:
    """A loaded adapter; the engine forgets it when the replica does."""

    def __init__(self, engine: Engine, folder: str, handle: Any, kept: Any) -> None:
        self.folder, self.handle, self._engine, self._kept = folder, handle, engine, kept

    async def __del__(self) -> None:
        """Forget; Ray Serve awaits this."""
        await self._engine.unload_adapter(self.folder)


@serve.deployment
class Model:
    """A replica: an engine, and the adapters that it was asked for last."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._profiles = None if arguments.baseline is None else Profiles.of(records.read(arguments.baseline))
        self._engine = Engine(arguments.engine_settings())
        self._chat, self._models = _openai(self._engine, arguments.name)

    async def check_health(self) -> None:
        """Fail when the engine is gone."""
        await self._engine.check()

    def longest(self) -> int:
        """Tokens of prompt and answer, once the engine is up."""
        return self._engine.longest

    @serve.multiplexed(max_num_models_per_replica=ADAPTERS_PER_REPLICA)
    async def adapter(self, name: str) -> Adapter:
        """Load adapter ``name``."""
        uri = storage.join(self._arguments.adapters or "", name)
        kept = Scratch("adapter")
        folder = str(kept.path / name)
        await asyncio.to_thread(_fetch, uri, folder)
        return Adapter(self._engine, folder, await self._engine.load_adapter(folder), kept)

    async def complete(self, body: dict[str, Any]) -> AsyncIterator[tuple[int, str]]:
        """Answer a chat: yields (status, text), one for each event of a stream, or one in all."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.exceptions import VLLMValidationError

        adapter = await self._wanted()
        if adapter is not None:
            self._models.lora_requests[str(body["model"])] = adapter.handle
        try:
            answer = await self._chat.create_chat_completion(ChatCompletionRequest(**body), None)
        except (VLLMValidationError, ValueError) as error:  # a field of the request, or a prompt that is too long
            yield 400, json.dumps(_openai_error(400, error))
            return
        if hasattr(answer, "model_dump_json"):
            refused = getattr(answer, "error", None)
            yield (int(refused.code) if refused else 200), answer.model_dump_json()
            return
        async for event in answer:
            yield 200, event

    async def solve(self, puzzle: Puzzle, settings: SolveSettings) -> dict[str, Any]:
        """Return the row of one puzzle."""
        adapter = await self._wanted()
        folder = None if adapter is None else adapter.folder
        return await solve(self._engine, puzzle, settings, adapter=folder, profiles=self._profiles)

    async def _wanted(self) -> Adapter | None:
        name = serve.get_multiplexed_model_id()
        return await self.adapter(name) if name else None


def _openai(engine: Engine, name: str) -> tuple[Any, Any]:
    """Return vLLM's own handler of OpenAI chats on an engine, and its list of models."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.renderers.online_renderer import OnlineRenderer

    client = engine.client
    models = OpenAIServingModels(client, [BaseModelPath(name=name, model_path=engine.settings.model)])
    common: dict[str, Any] = {
        "request_logger": None,
        "chat_template": None,
        "chat_template_content_format": "auto",
    }
    renderer = OnlineRenderer(client.model_config, client.renderer, **common)
    return OpenAIServingChat(client, models, "assistant", online_renderer=renderer, **common), models


def _fetch(uri: str, folder: str) -> None:
    """Copy an adapter here; only its configuration and safetensors weights are taken."""
    Path(folder).mkdir(parents=True)
    for name in ("adapter_config.json", _WEIGHTS):
        source = storage.join(uri, name)
        if not storage.exists(source):
            msg = f"adapter {uri!r} has no {name}"
            raise ModelError(msg)
        storage.copy(source, f"{folder}/{name}")


@serve.deployment
class Gateway:
    """What clients talk to: who they are, what they sent, which adapter it goes to."""

    def __init__(self, arguments: Arguments, model: DeploymentHandle, key: str | None) -> None:
        self._arguments, self._model, self._key = arguments, model, key
        self._requests = Counter("cellray_llm_requests", "Requests answered", tag_keys=("path", "code", "model"))
        self._seconds = Histogram(
            "cellray_llm_request_seconds",
            "Seconds of a request",
            boundaries=[0.1, 0.3, 1, 3, 10, 30, 100, 300],
            tag_keys=("path",),
        )

    async def __call__(self, http: HttpRequest) -> Response:
        """Answer."""
        started = asyncio.get_running_loop().time()
        (_, path), model = route(http), "none"
        try:
            response, model = await self._answer(http, path)
        except RequestError as error:
            response = _told(path, error.status, error)
        except CellRayError as error:
            response = _told(path, 503, error)
        except ClientDisconnect:
            response = Response(status_code=499)
        known = path if response.status_code != 404 else "other"
        self._requests.inc(tags={"path": known, "code": str(response.status_code), "model": model})
        self._seconds.observe(max(1e-6, asyncio.get_running_loop().time() - started), tags={"path": known})
        return response

    async def _answer(self, http: HttpRequest, path: str) -> tuple[Response, str]:
        where = (http.method, path)
        if where == ("GET", "/healthz"):
            return JSONResponse({"status": "ok"}), "none"
        if where == ("GET", "/readyz"):
            return JSONResponse({"max_length": await self._model.longest.remote()}), "none"
        admit(http, self._key)
        if where == ("GET", "/v1/models"):
            return JSONResponse(await asyncio.to_thread(self._listed)), "none"
        if where == ("POST", "/v1/chat/completions"):
            return await self._complete(await read_body(http, self._arguments.max_body_bytes))
        if where == ("POST", "/v1/puzzles/solve"):
            return await self._solve(await read_body(http, self._arguments.max_body_bytes))
        raise RequestError(404, "there is POST /v1/puzzles/solve, POST /v1/chat/completions and GET /v1/models")

    async def _complete(self, body: bytes) -> tuple[Response, str]:
        try:
            request = json.loads(body)
            wanted = str(request["model"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(400, f"the body is no chat request: {one_line(error)[:200]}") from error
        handle = await self._handle(wanted)
        # The first event says whether the request was taken; only then can a status be sent.
        events: Any = handle.options(stream=True).complete.remote(request)
        status, first = await self._first(events)
        if not request.get("stream") or status != 200:
            return Response(first, status, media_type="application/json"), wanted

        async def rest() -> AsyncIterator[str]:
            yield first
            async for _, event in events:
                yield event

        return StreamingResponse(rest(), media_type="text/event-stream"), wanted

    async def _first(self, events: Any) -> tuple[int, str]:
        try:
            return await self._in_time(anext(aiter(events)), events)
        except RayActorError as error:
            raise RequestError(503, "the replica died with the request; ask again") from error
        except RayTaskError as error:
            raise _refusal(error) from error

    async def _in_time(self, awaited: Any, call: Any) -> Any:
        """Wait for what a replica answers to ``call``, which is given up after the time limit."""
        try:
            return await asyncio.wait_for(awaited, self._arguments.timeout_s)
        except TimeoutError as error:
            call.cancel()
            raise RequestError(504, f"no answer in {self._arguments.timeout_s:g} s") from error
        except BackPressureError as error:
            raise RequestError(429, "too many requests are waiting; try again later") from error

    async def _solve(self, body: bytes) -> tuple[Response, str]:
        request = await asyncio.to_thread(parse_puzzle, body)
        name = request.model or self._arguments.name
        handle = await self._handle(name)
        for left in reversed(range(_TRIES)):
            answer = handle.solve.remote(request.puzzle, request.settings)
            try:
                row = await self._in_time(answer, answer)
                break
            except (RayActorError, RayTaskError) as error:  # a replica died with the request: ask another
                dead = isinstance(error, RayActorError) or isinstance(error.cause, EngineDeadError)
                if not dead:
                    raise _refusal(error) from error  # type: ignore[arg-type]
                if not left:
                    raise RequestError(503, "the model is down; try again later") from error
        if row["status"] == "invalid":
            raise RequestError(422, f"{row['code']}: {row['error']}")
        return Response(answered(row, name), media_type="application/json"), name

    async def _handle(self, model: str) -> DeploymentHandle:
        """Return the handle for the base or an adapter; 404 for what is neither."""
        base, _, adapter = model.partition(":")
        if base != self._arguments.name or (adapter and adapter not in await asyncio.to_thread(self._adapters)):
            raise RequestError(404, f"model {model[:80]!r} is not served; see /v1/models")
        return self._model.options(multiplexed_model_id=adapter) if adapter else self._model

    def _adapters(self) -> list[str]:
        return storage.list_folders(self._arguments.adapters) if self._arguments.adapters else []

    def _listed(self) -> dict[str, Any]:
        base = self._arguments.name
        parents: dict[str, str | None] = {base: None, **{f"{base}:{one}": base for one in self._adapters()}}
        common = {"object": "model", "created": 0, "owned_by": "cellray"}
        return {
            "object": "list",
            "data": [{"id": name, "parent": parent, **common} for name, parent in parents.items()],
        }


def _refusal(error: RayTaskError) -> RequestError:
    """Return what a replica refused, as it would have been refused here."""
    cause = error.cause if isinstance(error.cause, Exception) else error
    if isinstance(cause, RequestError):
        return cause
    if isinstance(cause, ModelError):
        return RequestError(404, one_line(cause))
    if isinstance(cause, EngineDeadError):
        return RequestError(503, "the model is down; try again later")
    return RequestError(400 if isinstance(cause, ValueError) else 500, one_line(cause)[:300])


def _told(path: str, status: int, error: Exception) -> JSONResponse:
    if path != "/v1/chat/completions":
        return told(status, error)
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return JSONResponse(_openai_error(status, error), status, headers)


def _openai_error(status: int, error: Exception) -> dict[str, Any]:
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": one_line(error)[:500], "type": kind, "param": None, "code": status}}
