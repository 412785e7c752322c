"""Puzzles to answers: asked, voted on, repaired where the model gave no permutation, and never lost.

Contract: every puzzle gets a row, whatever happens to it. ``status`` says how its answer came about:

``solved``    the model gave every cell a candidate of its own (with several rollouts: their medoid)
``repaired``  it did not; the assignment with the largest likelihood of labels under the model was taken
``baseline``  the engine failed; the answer is that of the solver without a language model
``invalid``   the puzzle cannot be asked; ``error`` says why
``failed``    the engine failed and there is no other solver; asked again by the next run

A run is deterministic given its seed, as far as the engine's arithmetic does not depend on what shares a batch.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from cellray.errors import PuzzleError, one_line
from cellray.puzzles.answer import accepted, lenient, reasoning, written
from cellray.puzzles.centroid import Profiles, assign
from cellray.puzzles.engine import Engine, EngineDeadError, Reply, Sampling
from cellray.puzzles.puzzle import SEPARATOR, Placement, Puzzle
from cellray.puzzles.vote import Vote, challenger, guarded, second_look, vote

_MOST_TOKENS = 3500
_LONGEST_TRACE = 4000
_VOTE_WEIGHT = 0.5

ANSWERS = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("answer", pa.list_(pa.string())),
        ("support", pa.list_(pa.float32())),
        ("reasoning", pa.string()),
        ("text", pa.string()),
        ("rollouts", pa.int32()),
        ("valid_rollouts", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("tokens", pa.int32()),
        ("seconds", pa.float32()),
        ("code", pa.string()),
        ("error", pa.string()),
    ]
)


class SolveSettings(BaseModel):
    """How puzzles are answered.

    Without ``one_to_one`` the model may write what it likes, as published evaluations have it, and what is no
    permutation is repaired. ``guarded`` asks a second time where rollouts disagree (DGPR).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    placement: Placement = "appended"
    rollouts: Annotated[int, Field(ge=1, le=64)] = 1
    temperature: Annotated[float | None, Field(ge=0, description="default 0 for one rollout, else 0.8")] = None
    max_tokens: Annotated[int, Field(ge=16)] = _MOST_TOKENS
    thoughts: Annotated[int | None, Field(ge=0, description="tokens before the answer, at most")] = None
    one_to_one: bool = True
    guarded: bool = False
    tries: Annotated[int, Field(ge=1)] = 2
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def heat(self) -> float:
        """The temperature."""
        return self.temperature if self.temperature is not None else 0.0 if self.rollouts == 1 else 0.8


async def solve(
    engine: Engine | None,
    puzzle: Puzzle,
    settings: SolveSettings,
    *,
    adapter: str | None = None,
    profiles: Profiles | None = None,
) -> dict[str, Any]:
    """Return the row (``ANSWERS``) of one puzzle; with a dead ``engine`` or none, that of the other solver.

    Raises
    ------
    EngineDeadError
        If the engine died and there are no ``profiles``. (Without an engine the row is ``failed`` then.)
    """
    started = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(ANSWERS.names) | {"key": puzzle.key, "status": "failed"}
    try:
        puzzle.check()
        if engine is None:
            msg = "the language model is down"
            raise EngineDeadError(msg)
        row |= await _asked(engine, puzzle, settings, adapter)
    except PuzzleError as error:
        row |= {"status": "invalid", "code": error.code, "error": one_line(error)}
    except EngineDeadError as error:
        if profiles is None and engine is not None:
            raise
        row |= {"code": "engine", "error": one_line(error)}
        if profiles is not None:
            row |= {"status": "baseline", "answer": list(profiles.solve(puzzle))}
    row["seconds"] = time.perf_counter() - started
    return row


async def solve_all(
    engine: Engine | None,
    puzzles: Sequence[Puzzle],
    settings: SolveSettings,
    *,
    adapter: str | None = None,
    profiles: Profiles | None = None,
) -> pa.Table:
    """Answer puzzles together; returns ``ANSWERS`` in their order."""
    rows = await asyncio.gather(
        *(solve(engine, puzzle, settings, adapter=adapter, profiles=profiles) for puzzle in puzzles)
    )
    return pa.Table.from_pylist(rows, schema=ANSWERS)


async def _asked(engine: Engine, puzzle: Puzzle, settings: SolveSettings, adapter: str | None) -> dict[str, Any]:
    sampling = Sampling(
        n=settings.rollouts,
        temperature=settings.heat,
        max_tokens=settings.max_tokens,
        # Puzzles asked alike must not share their luck.
        seed=(int(puzzle.key[:8], 16) + settings.seed) % 2**31,
        one_to_one=(puzzle.candidates, len(puzzle)) if settings.one_to_one else None,
        thoughts=settings.thoughts,
    )
    messages = puzzle.messages(settings.placement)
    reply = await ask_again(engine, messages, sampling, adapter, settings.tries)
    answers = [accepted(text, puzzle) for text in reply.texts]
    found = vote(answers)
    spent = sum(reply.tokens)
    text, answer, support = reply.texts[0], None, None
    if found is not None:
        text, answer, support = reply.texts[found.chosen], found.answer, list(found.support)
        if settings.guarded and found.unstable:
            answer, more = await _second(engine, puzzle, found, answers, reply, sampling, adapter)
            spent += more
            # What stands beside a changed answer is still the reasoning of the vote's medoid.
    status = "solved" if answer is not None else "repaired"
    if answer is None:
        answer, support = await _repaired(engine, puzzle, reply, messages, adapter)
    return {
        "status": status,
        "answer": list(answer),
        "support": support,
        "reasoning": reasoning(text)[:_LONGEST_TRACE],
        "text": text,
        "rollouts": settings.rollouts,
        "valid_rollouts": sum(one is not None for one in answers),
        "prompt_tokens": reply.prompt_tokens,
        "cached_tokens": reply.cached,
        "tokens": spent,
    }


async def ask_again(engine: Engine, messages: Any, sampling: Sampling, adapter: str | None, tries: int) -> Reply:
    """Ask until there is a reply; a dead engine and a puzzle that cannot be asked are not worth another try."""
    for left in reversed(range(tries)):
        try:
            return await engine.ask(messages, sampling, adapter)
        except (PuzzleError, EngineDeadError):
            raise
        except (RuntimeError, ValueError) as error:
            if not left:
                raise PuzzleError("engine", one_line(error)) from error
    raise AssertionError


async def _second(
    engine: Engine,
    puzzle: Puzzle,
    found: Vote,
    answers: Sequence[tuple[str, ...] | None],
    reply: Reply,
    sampling: Sampling,
    adapter: str | None,
) -> tuple[tuple[str, ...], int]:
    other = challenger(answers, found)
    if other is None:
        return found.answer, 0
    messages = second_look(puzzle, reply.texts[found.chosen][:_LONGEST_TRACE], reply.texts[other][:_LONGEST_TRACE])
    again = Sampling(max_tokens=sampling.max_tokens, one_to_one=sampling.one_to_one, thoughts=sampling.thoughts)
    try:
        second = await engine.ask(messages, again, adapter)
    except PuzzleError:  # with two traces the prompt may be too long: the vote stands
        return found.answer, 0
    return guarded(found, accepted(second.texts[0], puzzle), puzzle), sum(second.tokens)


async def _repaired(
    engine: Engine, puzzle: Puzzle, reply: Reply, messages: Any, adapter: str | None
) -> tuple[tuple[str, ...], list[float]]:
    """Assign by the likelihood of each label for each cell behind the model's own thoughts, and what it named."""
    thoughts = reasoning(reply.texts[0])[:_LONGEST_TRACE]
    named = lenient(reply.texts[0], puzzle.candidates)
    # Cells before the one in question are filled with what the model said of them, or with candidates in turn.
    before = [
        named[at] if at < len(named) else puzzle.candidates[at % len(puzzle.candidates)] for at in range(len(puzzle))
    ]
    rows = await asyncio.gather(
        *(
            engine.likelihoods(
                messages,
                written(thoughts, before[:cell]).removesuffix("</answer>") + (SEPARATOR if cell else ""),
                puzzle.candidates,
                adapter,
            )
            for cell in range(len(puzzle))
        )
    )
    scores = np.array(rows)
    for cell, label in enumerate(named[: len(puzzle)]):
        scores[cell, puzzle.candidates.index(label)] += _VOTE_WEIGHT
    answer = assign(scores, puzzle.candidates)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return answer, [float(shares[cell, puzzle.candidates.index(label)]) for cell, label in enumerate(answer)]
