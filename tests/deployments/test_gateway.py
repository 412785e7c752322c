"""What clients of Cell-o1 meet when the model is slow: a full queue, a time limit, and a client that waits its turn."""

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray import serve

from cellray.puzzles import Puzzle
from cellray.puzzles.remote import solve_served
from cellray.puzzles.solve import ANSWERS, SolveSettings
from deployments.cell_o1 import Arguments, Gateway

PORT = 18_440
pytestmark = [pytest.mark.usefixtures("ray"), pytest.mark.timeout(200)]
PUZZLES = [Puzzle("x ", ((f"G{n}",), ("LYZ",)), ("T cell", "monocyte")) for n in range(6)]


@serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
class Slow:
    """Takes as long to answer as the puzzle's first gene says, in tenths of a second."""

    async def solve(self, puzzle, settings):
        await asyncio.sleep(int(puzzle.cells[0][0].removeprefix("G")) / 10)
        row = dict.fromkeys(ANSWERS.names) | {"key": puzzle.key, "status": "solved"}
        return row | {"answer": list(puzzle.candidates), "support": [1.0, 1.0]}


@pytest.fixture(scope="module")
def slow(ray):
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Gateway.bind(Arguments(timeout_s=2), Slow.bind(), None), name="slow", route_prefix="/")
    yield f"http://127.0.0.1:{PORT}"
    serve.shutdown()


def ask(url, tenths):
    body = {"cells": [{"genes": [f"G{tenths}"]}, {"genes": ["LYZ"]}], "candidates": ["T cell", "monocyte"]}
    try:
        with urllib.request.urlopen(f"{url}/v1/puzzles/solve", json.dumps(body).encode(), timeout=60) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def test_a_full_queue_says_when_to_come_again(slow):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(slow, 5), range(8)))
    refused = [answer for answer in answers if answer[0] == 429]
    assert refused
    assert len(refused) < 8
    for _, headers, body in refused:
        assert int(headers["retry-after"]) > 0
        assert "try again" in body["error"]


def test_a_client_that_waits_gets_all_answers(slow):
    rows = asyncio.run(solve_served(slow, PUZZLES, SolveSettings(), tries=20)).to_pylist()
    assert [(row["key"], row["status"]) for row in rows] == [(puzzle.key, "solved") for puzzle in PUZZLES]


def test_what_takes_too_long_is_given_up(slow):
    status, _, body = ask(slow, 100)
    assert status == 504
    assert "2 s" in body["error"]
    assert ask(slow, 0)[0] == 200


def test_a_server_that_answers_something_else(slow):
    (row,) = asyncio.run(solve_served(f"{slow}/elsewhere", PUZZLES[:1], SolveSettings(), tries=1)).to_pylist()
    assert row["status"] == "failed"
    assert "404" in row["error"]
