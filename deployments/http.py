"""What the HTTP side of every app does alike: who may ask, how much they may send, how errors are told.

Contract: errors are ``RequestError`` with a status; ``answered`` turns them and ours into responses.
"""

import hmac
import logging
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from cellray.errors import RequestError, one_line
from cellray.settings import Environment

LOG = logging.getLogger("ray.serve")


class Autoscaling(BaseModel):
    """Ray Serve's autoscaling of the replicas that compute."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 4
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10
    downscale_delay_s: Annotated[float, Field(ge=0)] = 120
    look_back_period_s: Annotated[float, Field(gt=0)] = 30


def api_key() -> str | None:
    """Return ``$CELLRAY_API_KEY``; without one the app answers everyone, and says so."""
    key = Environment().api_key
    if key is None:
        LOG.warning("CELLRAY_API_KEY is not set: the app answers everyone")
    return key.get_secret_value() if key else None


def admit(http: Request, key: str | None) -> None:
    """Refuse a client that does not show the key as a bearer token."""
    if key is None:
        return
    given = http.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), key.encode()):
        raise RequestError(401, "show the API key as `Authorization: Bearer KEY`")


def route(http: Request) -> tuple[str, str]:
    """Return method and path, without the prefix that the app is mounted at and without a slash at the end."""
    prefix = str(http.scope.get("root_path", "")).rstrip("/")
    return http.method, http.url.path.removeprefix(prefix).rstrip("/")


async def read_body(http: Request, most: int) -> bytes:
    """Read the body; one that says or turns out to be larger than ``most`` is refused at once."""
    said = http.headers.get("content-length", "0")
    if not said.isdigit() or int(said) > most:
        raise RequestError(413, f"the body has {said[:20]} bytes; at most {most:,} are taken")
    parts, total = [], 0
    async for part in http.stream():
        total += len(part)
        if total > most:
            raise RequestError(413, f"the body has more than the {most:,} bytes that are taken")
        parts.append(part)
    return b"".join(parts)


def told(status: int, error: Exception) -> JSONResponse:
    """Return an error as JSON; 429 and 503 say when to come again."""
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return JSONResponse({"error": one_line(error)}, status, headers)
