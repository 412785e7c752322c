"""What became of the cells between two versions of a dataset's labels.

Contract: cells are matched by name, in whatever order they come. A cell without a label counts as of the type
``(abstained)`` or ``(rejected)``. Numbers are of cells; scores are those of ``schema.SCORE``. It judges nothing.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cellray import schema
from cellray.schema import Status

ABSTAINED: Final = f"({Status.ABSTAINED})"
REJECTED: Final = f"({Status.REJECTED})"
_BINS = 10


@dataclass(frozen=True)
class Diff:
    """Two versions compared.

    Attributes
    ----------
    n_before, n_after, n_common
        Cells of each version, and of both.
    n_changed
        Cells of both whose type differs.
    moves
        One dict a pair of types, most cells first: ``from``, ``to``, ``cells``, mean ``score_before``, ``score_after``.
    by_score
        One dict a tenth of the score before: ``from``, ``to``, ``cells`` and those ``changed``.
    types_before, types_after
        Cells by type.
    """

    n_before: int
    n_after: int
    n_common: int
    n_changed: int
    moves: list[dict[str, Any]]
    by_score: list[dict[str, Any]]
    types_before: dict[str, int]
    types_after: dict[str, int]

    @property
    def new_types(self) -> list[str]:
        """Types that only the later version has."""
        return sorted(self.types_after.keys() - self.types_before.keys() - {ABSTAINED, REJECTED})

    @property
    def vanished_types(self) -> list[str]:
        """Types that only the earlier version has."""
        return sorted(self.types_before.keys() - self.types_after.keys() - {ABSTAINED, REJECTED})

    @property
    def changed(self) -> float:
        """Share of the common cells whose type changed; 0 when there is none."""
        return self.n_changed / max(1, self.n_common)

    def without_label(self) -> tuple[float, float]:
        """Share of cells without a label, before and after."""
        return (
            sum(self.types_before.get(kind, 0) for kind in (ABSTAINED, REJECTED)) / max(1, self.n_before),
            sum(self.types_after.get(kind, 0) for kind in (ABSTAINED, REJECTED)) / max(1, self.n_after),
        )

    def facts(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **asdict(self),
            "n_added": self.n_after - self.n_common,
            "n_removed": self.n_before - self.n_common,
            "changed": self.changed,
            "new_types": self.new_types,
            "vanished_types": self.vanished_types,
        }


def types_of(annotations: pa.Table) -> dict[str, int]:
    """Count the cells of each type, those without a label by why."""
    found = pc.value_counts(_kinds(annotations)).to_pylist()
    return {row["values"]: row["counts"] for row in sorted(found, key=lambda row: (-row["counts"], row["values"]))}


def compare(before: pa.Table, after: pa.Table) -> tuple[Diff, pa.Table]:
    """Compare two tables of ``schema.annotations()``; returns the diff and the changed cells, ``schema.changes()``."""
    common = _renamed(before, schema.FROM, schema.SCORE_BEFORE).join(
        _renamed(after, schema.TO, schema.SCORE_AFTER), keys=schema.CELL_ID, join_type="inner"
    )
    differs = pc.not_equal(common[schema.FROM], common[schema.TO])
    changed = common.filter(differs).sort_by(schema.CELL_ID).select(schema.changes().names).cast(schema.changes())
    diff = Diff(
        n_before=before.num_rows,
        n_after=after.num_rows,
        n_common=common.num_rows,
        n_changed=changed.num_rows,
        moves=_moves(changed),
        by_score=_by_score(common[schema.SCORE_BEFORE], differs),
        types_before=types_of(before),
        types_after=types_of(after),
    )
    return diff, changed


def _kinds(annotations: pa.Table) -> pa.ChunkedArray:
    status = annotations[schema.STATUS]
    without = pc.binary_join_element_wise("(", status, ")", "")
    return pc.if_else(pc.equal(status, Status.ANNOTATED.value), annotations[schema.CELL_TYPE], without)


def _renamed(annotations: pa.Table, kind: str, score: str) -> pa.Table:
    return pa.table(
        {schema.CELL_ID: annotations[schema.CELL_ID], kind: _kinds(annotations), score: annotations[schema.SCORE]}
    )


def _moves(changed: pa.Table) -> list[dict[str, Any]]:
    scores = (schema.SCORE_BEFORE, schema.SCORE_AFTER)
    grouped = changed.group_by([schema.FROM, schema.TO]).aggregate(
        [(schema.CELL_ID, "count"), *((score, "mean") for score in scores)]
    )
    rows = [
        {
            "from": row[schema.FROM],
            "to": row[schema.TO],
            "cells": row[f"{schema.CELL_ID}_count"],
            **{score: row[f"{score}_mean"] for score in scores},
        }
        for row in grouped.to_pylist()
    ]
    return sorted(rows, key=lambda row: (-row["cells"], row["from"], row["to"]))


def _by_score(scores: pa.ChunkedArray, differs: pa.ChunkedArray) -> list[dict[str, Any]]:
    known = pc.is_valid(scores)
    value = scores.filter(known).to_numpy().astype(np.float64)
    changed = differs.filter(known).to_numpy(zero_copy_only=False).astype(bool)
    tenth = np.clip((value * _BINS).astype(np.int64), 0, _BINS - 1)
    cells, moved = (np.bincount(tenth[chosen], minlength=_BINS) for chosen in (slice(None), changed))
    return [
        {"from": at / _BINS, "to": (at + 1) / _BINS, "cells": int(cells[at]), "changed": int(moved[at])}
        for at in range(_BINS)
    ]
