"""A served Cell-o1 (``deployments/cell_o1.py``) as a solver: puzzles over HTTP to rows of answers.

Contract: at most ``CONCURRENT`` requests are open. A full or restarting server is asked again, as it says or after
growing pauses, within ``tries``; what it does not answer is a ``failed`` row, what it refuses an ``invalid`` one. The
key is sent to that server alone. Answers are checked as if they were the model's.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cellray.errors import one_line
from cellray.puzzles.puzzle import Puzzle, one_each
from cellray.puzzles.solve import ANSWERS, SolveSettings
from cellray.settings import Environment

CONCURRENT = 16
_PATH = "/v1/puzzles/solve"
_ASK_AGAIN = (429, 500, 502, 503, 504)
_LONGEST_PAUSE_S = 30.0
_LONGEST_TEXT = 4000


async def solve_served(
    url: str, puzzles: Sequence[Puzzle], settings: SolveSettings, *, tries: int = 5, timeout_s: float = 600
) -> pa.Table:
    """Ask the app at ``url``; returns ``ANSWERS`` in the order of the puzzles."""
    import aiohttp

    key = Environment().api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    limit = asyncio.Semaphore(CONCURRENT)
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=10)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:

        async def one(puzzle: Puzzle) -> dict[str, Any]:
            async with limit:
                return await _solve(session, url.rstrip("/") + _PATH, puzzle, settings, tries)

        rows = await asyncio.gather(*map(one, puzzles))
    return pa.Table.from_pylist(rows, schema=ANSWERS)


async def _solve(session: Any, url: str, puzzle: Puzzle, settings: SolveSettings, tries: int) -> dict[str, Any]:
    import aiohttp

    started = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(ANSWERS.names) | {"key": puzzle.key, "status": "failed", "code": "server"}
    body = {
        "cells": [{"genes": list(genes)} for genes in puzzle.cells],
        "candidates": list(puzzle.candidates),
        "context": puzzle.context,
        "top_genes": max(map(len, puzzle.cells), default=1) or 1,
        "settings": settings.model_dump(mode="json"),
    }
    for attempt in range(tries):
        pause = min(2.0**attempt, _LONGEST_PAUSE_S)
        try:
            async with session.post(url, json=body, allow_redirects=False) as response:
                text = await response.text()
                if response.status == 200:
                    row |= _read(text, puzzle)
                    break
                row["error"] = f"{url}: {response.status} {' '.join(text.split())[:200]}"
                if response.status not in _ASK_AGAIN:
                    row |= {"status": "invalid" if response.status in (400, 413, 422) else "failed"}
                    break
                asked = response.headers.get("Retry-After", "")
                pause = min(float(asked), _LONGEST_PAUSE_S) if asked.isdigit() else pause
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError) as error:
            row["error"] = f"{url}: {one_line(error)[:200]}"
        if attempt + 1 < tries:
            await asyncio.sleep(pause)
    row["seconds"] = time.perf_counter() - started
    return row


def _read(text: str, puzzle: Puzzle) -> dict[str, Any]:
    """Read a response; one that is no answer to the puzzle is a failure of the server."""
    try:
        found = json.loads(text)
        status, answer, usage = found["status"], [str(item) for item in found["assignment"] or []], found["usage"]
        support = None if found["support"] is None else [float(value) for value in found["support"]]
        tokens = {"prompt_tokens": int(usage["prompt_tokens"]), "tokens": int(usage["completion_tokens"])}
        told = {
            "reasoning": str(found["reasoning"] or "")[:_LONGEST_TEXT],
            "rollouts": found["rollouts"],
            "valid_rollouts": found["valid_rollouts"],
            "error": found["error"],
        }
    except (ValueError, KeyError, TypeError) as error:
        return {"error": f"the server's answer is of no known form: {one_line(error)[:200]}"}
    if status not in ("solved", "repaired", "baseline") or not one_each(answer, puzzle):
        return {"error": f"the server answered {status!r} with {answer!r}"[:300]}
    if support is None or len(support) != len(puzzle):
        support = [1.0] * len(puzzle)
    return {"status": status, "answer": answer, "support": support, "code": None, **tokens, **told}
