"""Plugins over HTTP: cells in, labels out, each cell by the plugin of its tissue.

``serve run deployments/plugins.yaml``, or ``serve run deployments.plugins:build_app registry=URI base=DIR``.

- ``POST /v1/label``: see ``cellray.plugins.requests``; ``?tissue=`` or ``tissue`` in the body is obeyed, otherwise the
  tissue-assignment plugin chooses for each cell.
- ``GET /v1/tissues``: tissues and the version in use. ``GET /healthz``, ``GET /readyz``.

Contract: the gateway knows versions, replicas know weights. The registry's pointers are looked at every ``poll_s``
seconds; a new version is read and checked once before requests go to it, and requests under way end with the one they
began with, so a reload fails none. A version that cannot be read is not switched to. Replicas keep the plugins that
were used last and are asked for what they have. Cells of different requests and plugins share a forward pass.
Errors are JSON ``{"error": ...}``: 400, 401, 404 (with the tissues there are), 413, 415, 422, 503.
"""

import asyncio
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from cellray.encode import tokenizer_of
from cellray.errors import CellRayError, PluginError, RequestError, TissueError, one_line
from cellray.ingest import GeneIndex
from cellray.models import checkpoints
from cellray.plugins.registry import TISSUES, Registry, tissue_name
from cellray.plugins.requests import JSON, Limits, Request, parse, respond
from cellray.plugins.router import PluginEncoder, no_plugin, scgpt_base
from cellray.plugins.serving import Labelled, Loaded, TokenCells, label_cells
from cellray.settings import Environment
from cellray.tokenize.shards import token_table
from deployments.http import LOG, Autoscaling, admit, api_key, read_body, route, told

PLUGINS_PER_REPLICA = 8
_BATCH_REQUESTS = 32
_BATCH_WAIT_S = 0.005
_TRIES = 4


class Arguments(BaseModel):
    """What the app may be told."""

    model_config = ConfigDict(extra="forbid")

    base: str = "mini-scgpt"
    registry: str = Field(default_factory=lambda: Environment().registry)
    replicas: Autoscaling = Autoscaling()
    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=1)] = 1
    poll_s: Annotated[float, Field(gt=0)] = 5
    max_cells: Annotated[int, Field(ge=1)] = 2000
    max_body_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    min_genes: Annotated[int, Field(ge=1)] = 5
    max_queued_requests: Annotated[int, Field(ge=1)] = 200
    health_check_period_s: Annotated[float, Field(gt=0)] = 5


def build_app(arguments: Arguments) -> serve.Application:
    """Return the app. Clients must show ``$CELLRAY_API_KEY`` as a bearer token where that is set when it is built."""
    labeller = Labeller.options(  # type: ignore[attr-defined]
        autoscaling_config=arguments.replicas.model_dump(),
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        health_check_period_s=arguments.health_check_period_s,
    ).bind(arguments)
    gateway = Gateway.options(  # type: ignore[attr-defined]
        max_queued_requests=arguments.max_queued_requests
    )
    return gateway.bind(arguments, labeller, api_key())


@serve.deployment(max_ongoing_requests=64, graceful_shutdown_timeout_s=30)
class Labeller:
    """A replica: the base, and the plugins that it was asked for last."""

    def __init__(self, arguments: Arguments) -> None:
        import torch

        torch.set_num_threads(arguments.threads)
        self._base = scgpt_base(checkpoints.load(arguments.base), arguments.base)
        self._registry = Registry(arguments.registry)
        self._encoder = PluginEncoder(self._base)

    def check_health(self) -> None:
        """Say nothing when all is well; a dead event loop is seen by its silence."""

    def digest(self) -> str:
        """Digest of the base, once it is loaded."""
        return self._base.digest

    @serve.multiplexed(max_num_models_per_replica=PLUGINS_PER_REPLICA)
    async def loaded(self, name: str) -> Loaded:
        """Read plugin ``tissue@digest``."""
        tissue, _, digest = name.partition("@")
        return await asyncio.to_thread(Loaded.read, self._registry, self._base, tissue, digest, self._encoder)

    async def label(self, cells: TokenCells) -> Labelled:
        """Label cells with the plugin that the request is for."""
        plugin = await self.loaded(serve.get_multiplexed_model_id())
        return await self._together((plugin, cells))

    @serve.batch(max_batch_size=_BATCH_REQUESTS, batch_wait_timeout_s=_BATCH_WAIT_S)
    async def _together(self, requests: list[tuple[Loaded, TokenCells]]) -> list[Labelled]:
        return await asyncio.to_thread(label_cells, self._encoder, requests)


@serve.deployment(max_ongoing_requests=100)
class Gateway:
    """What clients talk to: who they are, what they sent, which plugin it goes to."""

    def __init__(self, arguments: Arguments, labeller: DeploymentHandle, key: str | None) -> None:
        self._base = scgpt_base(checkpoints.load(arguments.base), arguments.base)
        self._genes = GeneIndex(self._base.genes, self._base.symbols)
        self._tokenizer = tokenizer_of(self._base)
        self._limits = Limits(
            cells=arguments.max_cells, body_bytes=arguments.max_body_bytes, min_genes=arguments.min_genes
        )
        self._registry, self._labeller, self._key = Registry(arguments.registry), labeller, key
        self._versions: dict[str, str] = {}
        self._broken: dict[str, str] = {}
        self._cells = Counter("cellray_cells", "Cells answered", tag_keys=("plugin", "status"))
        self._requests = Counter("cellray_requests", "Requests answered", tag_keys=("code",))
        self._seconds = Histogram(
            "cellray_request_seconds", "Seconds of a request", boundaries=[0.01, 0.03, 0.1, 0.3, 1, 3, 10]
        )
        self._look()
        self._looking = asyncio.get_event_loop().create_task(self._keep_looking(arguments.poll_s))

    async def __call__(self, http: HttpRequest) -> Response:
        """Answer."""
        started = asyncio.get_running_loop().time()
        try:
            response = await self._answer(http)
        except RequestError as error:
            response = told(error.status, error)
        except TissueError as error:
            response = told(404, error)
        except CellRayError as error:
            response = told(503, error)
        except ClientDisconnect:
            response = Response(status_code=499)
        self._requests.inc(tags={"code": str(response.status_code)})
        self._seconds.observe(max(1e-6, asyncio.get_running_loop().time() - started))
        return response

    async def _answer(self, http: HttpRequest) -> Response:
        where = route(http)
        if where == ("GET", "/healthz"):
            return JSONResponse({"status": "ok"})
        if where == ("GET", "/readyz"):
            return await self._ready()
        admit(http, self._key)
        if where == ("GET", "/v1/tissues"):
            return JSONResponse({"tissues": self._versions, "broken": self._broken})
        if where != ("POST", "/v1/label"):
            raise RequestError(404, "there is POST /v1/label, GET /v1/tissues, GET /healthz and GET /readyz")
        body = await read_body(http, self._limits.body_bytes)
        content_type = http.headers.get("content-type", JSON)
        request = await asyncio.to_thread(parse, body, content_type, self._genes, self._limits)
        rows = await self._label(request, http.query_params.get("tissue") or request.tissue)
        content, kind = respond(rows, http.headers.get("accept", ""))
        return Response(content, media_type=kind)

    async def _ready(self) -> Response:
        if not self._versions:
            return told(503, PluginError(f"registry {self._registry.uri} has no promoted plugin"))
        digest = await self._labeller.digest.remote()
        return JSONResponse({"base": digest, "tissues": self._versions})

    async def _label(self, request: Request, tissue: str | None) -> list[dict[str, Any]]:
        """Send cells to the plugins of their tissues; returns a row a cell."""
        versions = self._versions  # replaced as a whole, so a request sees one state
        if tissue is not None and (tissue_name(tissue) not in versions or tissue_name(tissue) == TISSUES):
            raise no_plugin(tissue, sorted(versions))
        table = await asyncio.to_thread(token_table, request.cells, self._tokenizer, request.slots)
        cells = TokenCells.of(table)
        codes = request.cells.reject_codes
        rows = np.array([number for number, code in enumerate(codes) if code is None], np.int64)
        tissues = np.full(len(codes), "" if tissue is None else tissue_name(tissue), dtype=object)
        if tissue is None and len(rows):
            if TISSUES not in versions:
                raise RequestError(400, f"name the tissue (one of {', '.join(sorted(versions))}): none can be assigned")
            found = await self._ask(TISSUES, versions[TISSUES], cells.take(rows))
            tissues[rows] = [tissue_name(name) for name in found.labels]
        answers: list[dict[str, Any]] = [
            {
                "id": name,
                "status": "rejected" if code else "abstained",
                "reject_code": code,
                "tissue": tissues[number] or None,
            }
            for number, (name, code) in enumerate(zip(request.cells.cell_ids, codes, strict=True))
        ]
        for row in answers:
            row |= {"label": None, "ontology_id": None, "score": None, "doubtful": None, "plugin": None}
        groups = [
            (name, rows[tissues[rows] == name]) for name in sorted(set(tissues[rows].tolist())) if name in versions
        ]
        parts = await asyncio.gather(*(self._ask(name, versions[name], cells.take(own)) for name, own in groups))
        for (name, own), part in zip(groups, parts, strict=True):
            for number, answer in zip(own.tolist(), part.rows(), strict=True):
                answers[number] |= {"status": "annotated", "plugin": f"{name}@{versions[name][:12]}", **answer}
        for row in answers:
            self._cells.inc(tags={"plugin": row["plugin"] or "none", "status": row["status"]})
        return answers

    async def _ask(self, tissue: str, digest: str, cells: TokenCells) -> Labelled:
        labeller = self._labeller.options(multiplexed_model_id=f"{tissue}@{digest}")
        for left in reversed(range(_TRIES)):
            try:
                return await labeller.label.remote(cells)
            except RayActorError as error:  # a replica died with the request, which changes nothing: ask another
                if not left:
                    raise RequestError(503, "the replicas keep dying; try again later") from error
            except BackPressureError as error:
                raise RequestError(503, "too many requests are waiting; try again later") from error
        raise AssertionError

    async def _keep_looking(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await asyncio.to_thread(self._look)
            except CellRayError as error:  # the registry is away: what is known stays in use
                LOG.warning(one_line(error))

    def _look(self) -> None:
        """Take over what is promoted now, after reading it once; a version that cannot be read is left aside."""
        versions, broken = {}, {}
        for tissue, digest in self._registry.promotions().items():
            known = self._versions.get(tissue)
            try:
                if digest != known:
                    Loaded.read(self._registry, self._base, tissue, digest)
                versions[tissue] = digest
            except CellRayError as error:
                LOG.warning(one_line(error))
                broken[tissue] = one_line(error)
                if known is not None:
                    versions[tissue] = known
        self._versions, self._broken = versions, broken
