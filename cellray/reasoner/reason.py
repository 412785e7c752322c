"""Cells to rows: asked about by their sentences, read, looked up, checked against their counts, and never lost.

Contract: every cell gets a row of ``schema.cell_reasons()``. A bad cell, and one whose prompt is longer than the
model's context, is rejected and says why; a cell whose answer names no cell type is abstained. Cells of the same
sentence are asked about once. A dead engine is the caller's business.
"""

import asyncio
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from cellray import schema
from cellray.errors import PuzzleError, one_line
from cellray.ingest import Shard
from cellray.labels.ontology import Ontology
from cellray.puzzles.engine import Engine, Reply
from cellray.puzzles.solve import ask_again
from cellray.reasoner.answer import read_answer
from cellray.reasoner.cells import NamedCells
from cellray.reasoner.markers import statements, support
from cellray.reasoner.prompt import Mode, messages, sampling


class ReasonSettings(BaseModel):
    """How cells are asked about; everything here changes a row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = "direct"
    min_genes: Annotated[int, Field(ge=1, description="a cell with fewer genes is rejected")] = 20
    max_tokens: Annotated[int | None, Field(ge=1, description="of an answer; None: 256 direct, 4,096 reasoning")] = None
    layer: str | None = None
    gene_key: str | None = None
    tries: Annotated[int, Field(ge=1)] = 2
    seed: Annotated[int, Field(ge=0)] = 0


async def reasoned(
    engine: Engine,
    cells: NamedCells,
    shard: Shard,
    sentences: list[str],
    settings: ReasonSettings,
    adapter: str | None = None,
) -> pa.Table:
    """Ask about the cells of a shard together; returns ``schema.cell_reasons()`` in their order.

    Raises
    ------
    EngineDeadError
        If the engine died.
    """

    async def ask(sentence: str) -> Reply | PuzzleError:
        draw = sampling(sentence, settings.mode, settings.seed, settings.max_tokens)
        try:
            return await ask_again(engine, messages(sentence, settings.mode), draw, adapter, settings.tries)
        except PuzzleError as error:
            return error

    asked = list(dict.fromkeys(filter(None, sentences)))
    replies = dict(zip(asked, await asyncio.gather(*map(ask, asked)), strict=True))
    ontology = Ontology()
    rows = []
    for at, sentence in enumerate(sentences):
        row: dict[str, Any] = dict.fromkeys(schema.cell_reasons().names)
        row |= {schema.ROW: shard.row0 + at, schema.CELL_ID: shard.cell_ids[at], schema.STATUS: schema.Status.REJECTED}
        reply = replies.get(sentence)
        if shard.reject_codes[at] is not None or reply is None:
            row[schema.REJECT_CODE] = shard.reject_codes[at] or schema.RejectCode.NO_KNOWN_GENE
        elif isinstance(reply, PuzzleError):
            row |= {schema.REJECT_CODE: reply.code, schema.ERROR: one_line(reply)}
        else:
            row |= _answered(reply, cells, shard, at, settings.mode, ontology)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema.cell_reasons())


def _answered(reply: Reply, cells: NamedCells, shard: Shard, at: int, mode: Mode, ontology: Ontology) -> dict[str, Any]:
    answer = read_answer(reply.texts[0], mode)
    said = answer.said
    made = statements(answer.reasons, cells.expression(shard, at), cells.genes) if answer.reasons else []
    term = said.term_ids[0] if said.names else ""
    return {
        schema.CELL_TYPE: None if not said.names else ontology.name(term) if term else said.names[0],
        schema.CELL_TYPE_ID: term or None,
        schema.STATUS: schema.Status.ANNOTATED if said.names else schema.Status.ABSTAINED,
        schema.ANSWER: answer.label,
        schema.ALTERNATIVES: list(said.names),
        schema.REASONING: answer.reasons,
        schema.MARKERS: [
            {schema.GENE: one.gene, schema.EXPRESSED: one.expressed, schema.COUNT: one.count, schema.HOLDS: one.holds}
            for one in made
        ],
        schema.SUPPORT: support(made),
        schema.PROMPT_TOKENS: reply.prompt_tokens,
        schema.CACHED_TOKENS: reply.cached,
        schema.ANSWER_TOKENS: reply.tokens[0],
    }
