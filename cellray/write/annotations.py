"""The annotation table of a dataset: probabilities to labels, one row a cell, one row group a part.

Contract: the winner is the label with the highest probability, the first one on a tie; ``score`` is its probability
and ``margin`` what it has over the runner-up. ``source`` names the stage whose probabilities decided, so with
refinement every labelled cell is ``grit``, changed or not, and a cell that a language model was asked about is ``llm``,
confirmed, changed or, where it said that no label fits, abstained. A rejected cell has its code and no label. The bytes
of the file depend on the rows only. A cell whose encoder gave no label anything (all probabilities 0) is abstained and
stays so, whatever its neighbours are. This module does not refine.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.errors import WriteError, boundary
from cellray.schema import Source, Status


@dataclass(frozen=True)
class Counts:
    """What became of a dataset's cells."""

    statuses: dict[str, int]
    """Cells by status; every status is there."""
    rejects: dict[str, int]
    """Rejected cells by code; only the codes that occur."""
    n_changed: int
    """Cells whose label is not the encoder's."""


def label_table(
    part: pa.Table,
    labels: Sequence[str],
    label_ids: Sequence[str],
    refined: np.ndarray | None = None,
    refined_by: Source | np.ndarray = Source.GRIT,
) -> pa.Table:
    """Turn the scores of one part into labels.

    Parameters
    ----------
    part
        Scores of one shard, ``schema.scores()``; the embedding is not needed.
    labels, label_ids
        Names and Cell Ontology ids of the c labels (at least two), in the order of the probabilities. An empty id is
        written as null.
    refined
        Refined probabilities of the part's cells that are not rejected, in their order; float, ``(n_scored, c)``.
    refined_by
        What refined them; or (n_scored,) values of ``Source``, where it is not the same for all.

    Returns
    -------
    pyarrow.Table
        ``schema.annotations()``, one row for each row of ``part``.

    Raises
    ------
    WriteError
        If the shapes do not fit together.
    """
    scored = part[schema.REJECT_CODE].is_null().to_numpy()
    n_scored, n_labels = int(scored.sum()), len(labels)
    values = pc.list_flatten(part[schema.PROBABILITIES]).to_numpy()
    if n_labels < 2 or len(label_ids) != n_labels or values.size != n_scored * n_labels:
        msg = f"{n_scored} scored cells have {values.size} probabilities for {n_labels} labels and {len(label_ids)} ids"
        raise WriteError(msg)
    encoder = values.reshape(n_scored, n_labels)
    if refined is not None and refined.shape != encoder.shape:
        msg = f"refined probabilities have shape {refined.shape}, the encoder's {encoder.shape}"
        raise WriteError(msg)

    decisive = encoder if refined is None else refined
    winner = decisive.argmax(axis=1)
    top_two = np.partition(decisive, -2, axis=1)[:, -2:]
    decided = scored.copy()
    decided[scored] = encoder.max(axis=1) > 0
    winner, top_two, kept = winner[decided[scored]], top_two[decided[scored]], encoder[decided[scored]]
    sources = np.full(n_scored, Source.ENCODER.value, object)
    if refined is not None:
        sources[:] = refined_by.value if isinstance(refined_by, Source) else refined_by
    sources[~decided[scored]] = Source.ABSTAIN.value
    names = pa.array(labels, pa.string())
    ids = pa.array([label_id or None for label_id in label_ids], pa.string())
    columns = {
        schema.ROW: part[schema.ROW],
        schema.CELL_ID: part[schema.CELL_ID],
        schema.CELL_TYPE: names.take(_spread(winner, decided)),
        schema.CELL_TYPE_ID: ids.take(_spread(winner, decided)),
        schema.SCORE: _spread(top_two[:, 1].astype(np.float32), decided),
        schema.MARGIN: _spread((top_two[:, 1] - top_two[:, 0]).astype(np.float32), decided),
        schema.SOURCE: _spread(sources, scored),
        schema.STATUS: pa.array(_statuses(scored, decided), pa.string()),
        schema.REJECT_CODE: part[schema.REJECT_CODE],
        schema.ENCODER_CELL_TYPE: names.take(_spread(kept.argmax(axis=1), decided)),
    }
    return pa.table(columns, schema=schema.annotations())


def relabelled(
    table: pa.Table,
    rows: np.ndarray,
    numbers: np.ndarray,
    score: np.ndarray,
    margin: np.ndarray,
    names: Sequence[str],
    ids: Sequence[str],
) -> pa.Table:
    """Give cells of ``schema.annotations()`` the labels of a language model.

    Parameters
    ----------
    table
        Consecutive rows of a dataset.
    rows, numbers, score, margin
        (m,) the rows to change, ascending, any of the dataset; the number of their label, -1 for none, which abstains
        them; its score and its margin.
    names, ids
        As in ``label_table``.
    """
    start = table[schema.ROW][0].as_py() if len(table) else 0
    first, last = np.searchsorted(rows, [start, start + len(table)])
    if first == last:
        return table
    changed = np.zeros(len(table), bool)
    changed[rows[first:last] - start] = True
    none = numbers[first:last] < 0
    number = pa.array(numbers[first:last], mask=none)
    statuses = np.where(none, Status.ABSTAINED.value, Status.ANNOTATED.value)
    new = {
        schema.CELL_TYPE: pa.array(names, pa.string()).take(number),
        schema.CELL_TYPE_ID: pa.array([one or None for one in ids], pa.string()).take(number),
        schema.SCORE: pa.array(score[first:last], pa.float32(), mask=none),
        schema.MARGIN: pa.array(margin[first:last], pa.float32(), mask=none),
        schema.SOURCE: pa.array([Source.LLM.value] * (last - first), pa.string()),
        schema.STATUS: pa.array(statuses.tolist(), pa.string()),
    }
    for name, values in new.items():
        column = pc.replace_with_mask(table[name].combine_chunks(), pa.array(changed), values)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def read_annotations(uri: str) -> Iterator[pa.Table]:
    """Yield the annotations of a dataset as they were written, part by part."""
    with boundary(WriteError, f"annotations {uri}"), storage.open_read(uri) as file:
        found = pq.ParquetFile(file)
        for number in range(found.num_row_groups):
            yield found.read_row_group(number)


def _statuses(scored: np.ndarray, decided: np.ndarray) -> np.ndarray:
    return np.where(decided, Status.ANNOTATED, np.where(scored, Status.ABSTAINED, Status.REJECTED))


def _spread(values: np.ndarray, scored: np.ndarray) -> pa.Array:
    """Put the values of the scored cells at their rows, with null at the others."""
    full = np.zeros(len(scored), values.dtype)
    full[scored] = values
    return pa.array(full, pa.string() if values.dtype == object else None, mask=~scored)


def write_annotations(uri: str, tables: Iterable[pa.Table]) -> Counts:
    """Write a dataset's annotations, table after table; memory is bounded by one table.

    Parameters
    ----------
    uri
        Where to; an existing file is replaced.
    tables
        The results of ``label_table`` for all parts, in row order.

    Returns
    -------
    Counts
        Cells by status and reject code, and how many refinement changed.

    Raises
    ------
    WriteError
        If rows are missing, doubled or out of order, or the file cannot be written.
    """
    statuses = Counter(dict.fromkeys(map(str, Status), 0))
    rejects: Counter[str] = Counter()
    n_changed = n_rows = 0
    with (
        boundary(WriteError, f"annotations {uri}"),
        storage.writing(uri) as local,
        pq.ParquetWriter(local, schema.annotations(), compression="zstd") as writer,
    ):
        for table in tables:
            rows = table[schema.ROW].to_numpy()
            if not np.array_equal(rows, np.arange(n_rows, n_rows + len(rows))):
                msg = f"annotations {uri}: expected {len(rows)} rows from row {n_rows} on, one each and in order"
                raise WriteError(msg)
            n_rows += len(rows)
            writer.write_table(table.combine_chunks(), row_group_size=max(len(rows), 1))
            statuses.update(_count(table[schema.STATUS]))
            rejects.update(_count(table[schema.REJECT_CODE]))
            changed = pc.not_equal(table[schema.CELL_TYPE], table[schema.ENCODER_CELL_TYPE])
            n_changed += pc.sum(changed, min_count=0).as_py()
    return Counts(dict(statuses), dict(rejects), n_changed)


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in column.drop_null().value_counts().to_pylist()}
