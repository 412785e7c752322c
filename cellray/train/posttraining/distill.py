"""Rejection sampling: a teacher answers each puzzle several times, and what is exactly right is there to learn from.

Contract: an answer is kept if its format is valid and every cell is right (the official reading). Puzzles are asked in
chunks, a part file a chunk, named by everything that changes an answer and by the puzzles in it; puzzles in a part of
the same settings are not asked again, unless the teacher failed. The teacher sees the prompt and never the answer, and
what it says is text like any other. Which of several right answers is kept does not depend on their order of arrival.

Source: Cell-o1 (arXiv 2506.02911), section 4.2: 8 candidates, 3,912 of 10,155 puzzles with an accepted one.
"""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cellray import storage
from cellray.errors import InputError, PuzzleError, SettingError, boundary, one_line
from cellray.puzzles.engine import Engine, EngineDeadError, EngineSettings, Messages, Sampling
from cellray.puzzles.puzzle import Placement, Puzzle
from cellray.puzzles.score import score_answer
from cellray.train.config import Strict

PARTS = "parts"
_SCHEMA = pa.schema(
    [("key", pa.string()), ("status", pa.string()), ("texts", pa.list_(pa.string())), ("error", pa.string())]
)


class Asking(Strict):
    """How the teacher is asked."""

    candidates: Annotated[int, Field(ge=1, le=64)] = 8
    temperature: Annotated[float, Field(ge=0)] = 1.0
    max_tokens: Annotated[int, Field(ge=16)] = 3500
    placement: Placement = "appended"
    seed: Annotated[int, Field(ge=0)] = 0


class TeacherError(Exception):
    """The teacher gave no answer; the puzzle is asked again by the next run."""


class Teacher(Protocol):
    """Whoever answers."""

    async def ask(self, messages: Messages, asking: Asking, seed: int) -> list[str]:
        """Return the candidates' texts; raises ``PuzzleError`` or ``TeacherError``."""


class ServedTeacher:
    """A model behind OpenAI's interface; the key is what the ``openai`` package finds (``OPENAI_API_KEY``)."""

    def __init__(self, url: str | None, model: str, timeout_s: float) -> None:
        import openai

        self._model = model
        with boundary(SettingError, f"teacher {model!r}", ValueError):
            try:
                self._client = openai.AsyncOpenAI(base_url=url, timeout=timeout_s, max_retries=2)
            except openai.OpenAIError as error:
                raise ValueError(one_line(error)) from error

    async def ask(self, messages: Messages, asking: Asking, seed: int) -> list[str]:
        """Ask for all candidates at once."""
        import openai

        given: Any = {"model": self._model, "messages": messages, "n": asking.candidates, "seed": seed}
        try:
            found = await self._client.chat.completions.create(
                **given, temperature=asking.temperature, max_tokens=asking.max_tokens
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise PuzzleError("refused", one_line(error)[:300]) from error
        except openai.OpenAIError as error:
            raise TeacherError(one_line(error)[:300]) from error
        return [choice.message.content or "" for choice in found.choices]


class LocalTeacher:
    """A model of this machine or cluster on vLLM; meant as a Ray actor."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._engine: Engine | None = None
        self._starting = asyncio.Lock()

    async def ask(self, messages: Messages, asking: Asking, seed: int) -> list[str]:
        """Ask for all candidates at once."""
        async with self._starting:
            self._engine = self._engine or Engine(self._settings)
        sampling = Sampling(asking.candidates, asking.temperature, asking.max_tokens, seed)
        try:
            return list((await self._engine.ask(messages, sampling)).texts)
        except EngineDeadError as error:
            self._engine = None
            raise TeacherError(one_line(error)) from error


class Actors:
    """Local teachers in turn."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    async def ask(self, messages: Messages, asking: Asking, seed: int) -> list[str]:
        """Ask one of them; which, depends on the seed."""
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return await self._actors[seed % len(self._actors)].ask.remote(messages, asking, seed)
        except RayTaskError as error:
            if isinstance(error.cause, PuzzleError):
                raise error.cause from error
            raise
        except RayActorError as error:
            raise TeacherError(one_line(error)[:300]) from error


@dataclass(frozen=True)
class Order:
    """What is asked of whom: ``teacher`` is a name that stands for the model in the names of parts."""

    out: str
    teacher: str
    asking: Asking = field(default_factory=Asking)
    chunk: int = 16
    together: int = 4

    def prefix(self) -> str:
        """Return how parts of these settings begin."""
        told = json.dumps([self.teacher, self.asking.model_dump()], sort_keys=True)
        return f"part-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


async def distil(order: Order, teacher: Teacher, puzzles: Sequence[Puzzle]) -> tuple[list[Puzzle], dict[str, Any]]:
    """Ask for every puzzle; returns the accepted ones with their traces, and the acceptance.

    Returns
    -------
    list of Puzzle
        In the order of ``puzzles``, with the first right answer as ``trace``.
    dict
        ``puzzles``, ``accepted``, ``failed`` (asked again by the next run), ``invalid`` (cannot be asked), and
        ``by_size``, for each number of cells: ``puzzles``, ``accepted``, ``rate`` (of puzzles) and ``candidate_rate``.

    Raises
    ------
    InputError
        If a puzzle has no answer.
    """
    for puzzle in puzzles:
        if len(puzzle.answer) != len(puzzle):
            msg = f"puzzle {puzzle.key} has no answer for each cell; rejection sampling needs gold answers"
            raise InputError(msg)
    distinct = {puzzle.key: puzzle for puzzle in puzzles}
    known = _rows(order)
    todo = [one for key, one in distinct.items() if known.get(key, {}).get("status") not in ("asked", "invalid")]
    limit = asyncio.Semaphore(order.together)

    async def work(chunk: list[Puzzle]) -> None:
        async with limit:
            rows = await asyncio.gather(*(_ask(order, teacher, puzzle) for puzzle in chunk))
            _put(order, chunk, rows)

    await asyncio.gather(*(work(todo[at : at + order.chunk]) for at in range(0, len(todo), order.chunk)))
    return _accepted(list(distinct.values()), _rows(order))


def right(puzzle: Puzzle, text: str) -> bool:
    """Whether an answer is accepted."""
    found = score_answer(puzzle, text)
    return found.valid and found.exact and found.count_ok


async def _ask(order: Order, teacher: Teacher, puzzle: Puzzle) -> dict[str, Any]:
    row: dict[str, Any] = {"key": puzzle.key, "status": "asked", "texts": [], "error": None}
    try:
        puzzle.check()
        seed = (int(puzzle.key[:8], 16) + order.asking.seed) % 2**31
        texts = await teacher.ask(puzzle.messages(order.asking.placement), order.asking, seed)
        row["texts"] = [text.strip() for text in texts]
    except PuzzleError as error:
        row |= {"status": "invalid", "error": one_line(error)}
    except TeacherError as error:
        row |= {"status": "failed", "error": one_line(error)}
    return row


def _put(order: Order, chunk: Sequence[Puzzle], rows: list[dict[str, Any]]) -> None:
    named = hashlib.sha256("".join(puzzle.key for puzzle in chunk).encode()).hexdigest()[:16]
    with storage.writing(storage.join(order.out, PARTS, f"{order.prefix()}-{named}.parquet")) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path, compression="zstd")


def _rows(order: Order) -> dict[str, dict[str, Any]]:
    """Read what is known; an answer stands before a failure of an earlier run."""
    found: dict[str, dict[str, Any]] = {}
    parts = storage.join(order.out, PARTS)
    for name in storage.list_files(parts):
        if name.startswith(order.prefix()):
            with storage.open_read(storage.join(parts, name)) as file:
                for row in pq.read_table(file).to_pylist():
                    if found.get(row["key"], {}).get("status") in (None, "failed"):
                        found[row["key"]] = row
    return found


def _accepted(puzzles: Sequence[Puzzle], rows: dict[str, dict[str, Any]]) -> tuple[list[Puzzle], dict[str, Any]]:
    kept: list[Puzzle] = []
    counts: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("puzzles", "accepted", "texts", "good"), 0))
    for puzzle in puzzles:
        texts = rows[puzzle.key]["texts"]
        good = [text for text in texts if right(puzzle, text)]
        size = counts[len(puzzle)]
        for name, value in zip(size, (1, bool(good), len(texts), len(good)), strict=True):
            size[name] += int(value)
        if good:
            kept.append(replace(puzzle, trace=good[0]))
    statuses = [rows[puzzle.key]["status"] for puzzle in puzzles]
    return kept, {
        "puzzles": len(puzzles),
        "accepted": len(kept),
        "failed": statuses.count("failed"),
        "invalid": statuses.count("invalid"),
        "first_error": next((rows[one.key]["error"] for one in puzzles if rows[one.key]["error"]), None),
        "by_size": {
            str(n): {
                "puzzles": one["puzzles"],
                "accepted": one["accepted"],
                "rate": one["accepted"] / one["puzzles"],
                "candidate_rate": one["good"] / max(one["texts"], 1),
            }
            for n, one in sorted(counts.items())
        },
    }
