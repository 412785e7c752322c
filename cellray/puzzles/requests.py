"""Requests to solve a puzzle, as they come over the network, and the answers to them.

Contract: ``{"cells": [{"genes": ["CD3D", ...]} or {"counts": {"CD3D": 4, ...}}, ...], "candidates": [...]}``, with
``context``, ``model`` and ``settings`` (``SolveSettings``) beside them. Cells by counts are ranked as the builder does.
Names and context are cleaned before they get into a prompt; what is wrong is a ``RequestError`` that says so.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cellray.errors import PuzzleError, RequestError
from cellray.puzzles.cells import UNINFORMATIVE
from cellray.puzzles.puzzle import Puzzle, clean
from cellray.puzzles.solve import SolveSettings

_MOST_GENES = 2000
_LONGEST_CONTEXT = 500
_LONGEST_CANDIDATE = 200
_TOP_GENES = 50

_Name = Annotated[str, Field(max_length=_LONGEST_CANDIDATE)]


class _Cell(BaseModel):
    model_config = ConfigDict(extra="forbid")

    genes: Annotated[list[_Name], Field(max_length=_MOST_GENES)] = []
    counts: dict[_Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}

    def ranked(self, top: int) -> tuple[str, ...]:
        names = self.genes or [
            name
            for name, count in sorted(self.counts.items(), key=lambda pair: -pair[1])
            if count > 0 and not UNINFORMATIVE.fullmatch(name)
        ]
        return tuple(filter(None, (clean(name).replace(",", "") for name in names[:top])))


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cells: Annotated[list[_Cell], Field(min_length=1)]
    candidates: Annotated[list[_Name], Field(min_length=1)]
    context: str = ""
    model: str | None = None
    top_genes: Annotated[int, Field(ge=1, le=_MOST_GENES)] = _TOP_GENES
    settings: SolveSettings = SolveSettings()


@dataclass(frozen=True)
class PuzzleRequest:
    """A checked puzzle, how to solve it, and the model or adapter that was named."""

    puzzle: Puzzle
    settings: SolveSettings
    model: str | None


def parse_puzzle(body: bytes) -> PuzzleRequest:
    """Read and check a request.

    Raises
    ------
    RequestError
        400 if the body is not of the form, 422 if the puzzle cannot be asked.
    """
    try:
        found = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise RequestError(400, f"{where}: {first['msg']}") from error
    puzzle = Puzzle(
        context=clean(found.context, _LONGEST_CONTEXT) + " ",
        cells=tuple(cell.ranked(found.top_genes) for cell in found.cells),
        candidates=tuple(found.candidates),
    )
    try:
        puzzle.check()
    except PuzzleError as error:
        raise RequestError(422, f"{error.code}: {error}") from error
    return PuzzleRequest(puzzle, found.settings, found.model)


def answered(row: dict[str, Any], model: str) -> bytes:
    """Return the response for a row of ``solve.ANSWERS``."""
    told = {name: row[name] for name in ("status", "reasoning", "support", "rollouts", "valid_rollouts", "error")}
    usage = {"prompt_tokens": row["prompt_tokens"] or 0, "completion_tokens": row["tokens"] or 0}
    return json.dumps({"model": model, "assignment": row["answer"], **told, "usage": usage}).encode()
