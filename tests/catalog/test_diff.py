"""Two versions compared, and what the guard says: counts that add up, types that come and go, limits."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray import schema
from cellray.catalog.catalogue import Guard
from cellray.catalog.diff import ABSTAINED, REJECTED, compare
from cellray.catalog.guard import refusals

KINDS = ("B cell", "T cell", "monocyte", ABSTAINED, REJECTED)


def table(cells):
    """Annotations of cells: name to (type, score)."""
    rows = []
    for row, (name, (kind, score)) in enumerate(cells.items()):
        status = kind.strip("()") if kind.startswith("(") else "annotated"
        label = kind if status == "annotated" else None
        rows.append(
            {"row": row, "cell_id": name, "cell_type": label, "status": status, "score": score if label else None}
        )
    return pa.Table.from_pylist(rows, schema=schema.annotations())


cells = st.dictionaries(
    st.integers(0, 30).map(lambda number: f"cell{number}"),
    st.tuples(st.sampled_from(KINDS), st.floats(0, 1, width=32)),
    max_size=25,
)


@given(cells, cells)
def test_counts_add_up(before, after):
    diff, changed = compare(table(before), table(after))
    common = before.keys() & after.keys()
    moved = {name for name in common if before[name][0] != after[name][0]}
    assert (diff.n_before, diff.n_after, diff.n_common) == (len(before), len(after), len(common))
    assert set(changed["cell_id"].to_pylist()) == moved
    assert changed.schema == schema.changes()
    assert sum(row["cells"] for row in diff.moves) == diff.n_changed == len(moved)
    labelled = {name for name in common if not before[name][0].startswith("(")}
    assert sum(row["cells"] for row in diff.by_score) == len(labelled)
    assert sum(row["changed"] for row in diff.by_score) == len(labelled & moved)
    types = [{kind for kind, _ in one.values() if not kind.startswith("(")} for one in (before, after)]
    assert diff.new_types == sorted(types[1] - types[0])
    assert diff.vanished_types == sorted(types[0] - types[1])


@given(cells)
def test_a_version_differs_in_nothing_from_itself_in_another_order(before):
    after = dict(reversed(before.items()))
    diff, changed = compare(table(before), table(after))
    assert changed.num_rows == 0
    assert refusals(diff, Guard(max_changed=0, max_abstained_rise=0, max_removed=0), KINDS) == []


def many(**kinds):
    names = [kind for kind, count in kinds.items() for _ in range(count)]
    return {f"cell{number}": (kind.replace("_", " "), 0.8) for number, kind in enumerate(names)}


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (many(B_cell=50, T_cell=50), None),
        (many(B_cell=55, T_cell=45), None),
        (many(B_cell=70, T_cell=30), r"20\.0% of 100 cells changed their label; at most 10\.0% may"),
        (many(B_cell=60, T_cell=40, monocyte=1), None),
        (
            many(B_cell=50, T_cell=44) | {f"cell{n}": (ABSTAINED, 0) for n in range(94, 100)},
            r"rose from 0\.0% to 6\.0%",
        ),
        (many(B_cell=100), "'T cell' vanished: 50 cells had it, and it is not in the label set any more"),
        (many(B_cell=50, T_cell=20), r"30\.0% of 100 cells are gone"),
        ({f"new-{name}": value for name, value in many(B_cell=50, T_cell=50).items()}, "nothing can be compared"),
        ({}, "nothing can be compared"),
    ],
)
def test_the_guard(after, said):
    offered = ["B cell", "monocyte"] if said and "vanished" in said else list(KINDS)
    diff, _ = compare(table(many(B_cell=50, T_cell=50)), table(after))
    found = "; ".join(refusals(diff, Guard(), offered))
    if said is None:
        assert found == ""
    else:
        import re

        assert re.search(said, found), found


def test_types_that_may_vanish():
    diff, _ = compare(table(many(B_cell=95, T_cell=5)), table(many(B_cell=100)))
    assert refusals(diff, Guard(), ["B cell", "T cell"]) == []  # fewer than ten cells
    strict = Guard(min_vanished_cells=1)
    assert "no cell has it any more" in refusals(diff, strict, ["B cell", "T cell"])[0]
    assert refusals(diff, strict.model_copy(update={"may_vanish": ("T cell",)}), ["B cell"]) == []
