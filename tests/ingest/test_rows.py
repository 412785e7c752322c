"""The same cells give the same shards whatever file they lie in."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellray.errors import ReadError
from cellray.ingest import count_rejects, matrix, names, needs_staging, read_rows, read_shard, stage
from cellray.schema import RejectCode

FORMATS = [
    "h5ad-csr",
    "h5ad-csc",
    "h5ad-dense",
    "zarr2-csr",
    "zarr3-csr",
    "zarr3-csc",
    "zarr2-dense",
    "tenx2",
    "tenx3",
    "mtx2",
    "mtx3",
]
# Every example writes files, so a failing one is reported as found: shrinking it would take minutes.
FILE = settings(
    max_examples=12, phases=[Phase.reuse, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_cells(form, dataset, plan_of, counts, expected, tmp_path):
    plan = plan_of(dataset(tmp_path, form))
    assert needs_staging(plan) == (form.endswith("csc") or form.startswith("mtx"))
    assert (plan.n_cells, plan.n_columns, plan.overlap) == (50, 60, 55 / 60)
    if needs_staging(plan):
        plan = stage(plan, str(tmp_path / "staged"), 16)
    for start, stop in ((0, 50), (7, 8), (13, 37), (48, 50), (20, 20), (50, 50)):
        block = read_rows(plan, start, stop)
        assert block.row0 == start
        assert block.cell_ids == [f"c{row}" for row in range(start, stop)]
        assert block.counts.dtype == np.float32
        np.testing.assert_array_equal(block.counts.toarray(), counts[start:stop].toarray())
        shard = read_shard(plan, start, stop, min_genes=20, n_slots=60)
        assert shard.reject_codes == [None] * (stop - start)
        np.testing.assert_array_equal(shard.counts.toarray(), expected[start:stop])
        np.testing.assert_array_equal(shard.n_counts, counts[start:stop].toarray().sum(axis=1))
        np.testing.assert_array_equal(shard.n_genes, (expected[start:stop] > 0).sum(axis=1))
        assert (shard.n_counts.dtype, shard.n_genes.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (0, 51), (5, 4)])
def test_range_outside_the_dataset(dataset, plan_of, tmp_path, start, stop):
    with pytest.raises(ValueError, match="of 50"):
        read_rows(plan_of(dataset(tmp_path, "h5ad-csr")), start, stop)


def test_reject_codes_in_order_and_other_cells_untouched(atlas, plan_of, counts, expected, tmp_path):
    dense = counts.toarray()
    dense[0, :4] = [np.nan, -1, 0.5, np.inf]
    dense[1, :2] = [-1, 0.5]
    dense[2, 0] = 0.5
    dense[3] = 0
    dense[4], dense[4, 57] = 0, 9
    dense[5], dense[5, :19] = 0, 1
    dense[6], dense[6, :20] = 0, 1
    dense[7, :2] = 3e38  # finite one by one, not as a sum
    dense[8, 59] = -np.inf  # in a column that the model does not know
    atlas(sparse.csr_matrix(dense)).write_h5ad(tmp_path / "a.h5ad")
    plan = plan_of(tmp_path / "a.h5ad")
    shard = read_shard(plan, 0, 50, min_genes=20, n_slots=60)
    assert shard.reject_codes[:6] == list(RejectCode)
    assert shard.reject_codes[6:] == [None, "not_finite", "not_finite", *[None] * 41]
    assert all(type(code) is str for code in shard.reject_codes[:6])
    assert shard.n_counts[:9].tolist() == [0, 0, 0, 0, 9, 19, 20, 0, 0]
    assert shard.n_genes[:9].tolist() == [0, 0, 0, 0, 0, 19, 20, 0, 0]
    assert shard.counts[:6].nnz == 0
    assert shard.counts[7:9].nnz == 0
    np.testing.assert_array_equal(shard.counts[9:].toarray(), expected[9:])
    assert count_rejects(plan, min_genes=20, n_slots=60, shard_cells=7) == {
        **{str(code): 1 for code in RejectCode},
        "not_finite": 3,
    }


def test_duplicate_genes_are_summed_and_count_once(atlas, plan_of, counts, tmp_path):
    var = ["ENSG00000000001", "ENSG00000000002", "ENSG00000000001.5", *(f"ENSG{n:011d}" for n in range(3, 60))]
    atlas(counts, var=var).write_h5ad(tmp_path / "a.h5ad")
    shard = read_shard(plan_of(tmp_path / "a.h5ad"), 0, 50, min_genes=1, n_slots=60)
    dense = counts.toarray()
    np.testing.assert_array_equal(shard.counts[:, 1].toarray().ravel(), dense[:, 0] + dense[:, 2])
    np.testing.assert_array_equal(shard.n_counts, dense.sum(axis=1))
    assert shard.n_genes.max() <= 59


@pytest.mark.parametrize("dtype", ["uint16", "int64", "float64", "bool"])
def test_any_number_type_becomes_float32(atlas, plan_of, counts, dtype, tmp_path):
    atlas(counts.astype(dtype)).write_h5ad(tmp_path / "a.h5ad")
    block = read_rows(plan_of(tmp_path / "a.h5ad"), 0, 50)
    assert block.counts.dtype == np.float32
    np.testing.assert_array_equal(block.counts.toarray(), counts.astype(dtype).toarray().astype(np.float32))


values = st.sampled_from([0, 0, 0, 1, 2, 7, 40, np.nan, -3, 0.25, np.inf])


@FILE
@given(
    rows=st.lists(st.lists(values, min_size=24, max_size=24), min_size=1, max_size=6),
    slots=st.lists(st.integers(0, 40), min_size=18, max_size=18).map(lambda rest: [*range(6), *rest]),
    shard_cells=st.integers(1, 7),
)
def test_layouts_agree_with_a_plain_loop(atlas, plan_of, rows, slots, shard_cells, tmp_path, monkeypatch):
    """Any values, genes (repeated ones too) and shard size: csr, csc and dense give what a loop over cells gives."""
    dense = np.array([*rows, *[[3] * 24] * 800], np.float32)  # enough whole cells that it is a count matrix
    var = [f"ENSG{slot:011d}.{n}" for n, slot in enumerate(slots)]
    for make in (sparse.csr_matrix, sparse.csc_matrix, np.asarray):
        atlas(make(dense), var=var).write_h5ad(tmp_path / "a.h5ad")
        plan = plan_of(tmp_path / "a.h5ad")
        if needs_staging(plan):
            plan = stage(plan, str(tmp_path / "staged"), shard_cells * 100)
        for start in range(0, len(rows) + 1, shard_cells):
            stop = start + shard_cells
            with monkeypatch.context() as patch:
                patch.setattr(matrix, "BLOCK", 50)
                shard = read_shard(plan, start, stop, min_genes=4, n_slots=60)
            want = [judge(cell, slots) for cell in dense[start:stop]]
            assert shard.reject_codes == [code for code, _, _, _ in want]
            assert shard.n_counts.tolist() == [total for _, total, _, _ in want]
            assert shard.n_genes.tolist() == [n for _, _, n, _ in want]
            np.testing.assert_array_equal(shard.counts.toarray(), [row for *_, row in want])


def judge(cell, slots):
    merged = np.zeros(60)
    if not np.isfinite(cell).all():
        return "not_finite", 0, 0, merged
    if (cell < 0).any():
        return "negative_count", 0, 0, merged
    if (cell % 1 != 0).any():
        return "non_integer_count", 0, 0, merged
    np.add.at(merged, slots, cell)
    n_genes = int((merged > 0).sum())
    few = "too_few_genes" if n_genes < 4 else None
    code = "empty_cell" if not cell.any() else "no_known_gene" if n_genes == 0 else few
    return code, cell.sum(), n_genes, merged * (code is None)


@FILE
@given(
    cell_names=st.lists(
        st.sampled_from(["", "a", "b", "a-0", "a-1", "a-1-2", "cell-0", "cell-1", "é", "cell-1-3"]),
        min_size=1,
        max_size=9,
    )
)
def test_cell_names_become_unique(atlas, plan_of, counts, cell_names, tmp_path, monkeypatch):
    monkeypatch.setattr(names, "BLOCK", 2)
    atlas(counts[: len(cell_names)], names=cell_names).write_h5ad(tmp_path / "a.h5ad")
    plan = plan_of(tmp_path / "a.h5ad")
    ids = read_rows(plan, 0, plan.n_cells).cell_ids
    assert len(set(ids)) == len(ids)
    for row, (old, new) in enumerate(zip(cell_names, ids, strict=True)):
        assert new in ({f"cell-{row}"} if not old else {old, f"{old}-{row}"})
        if cell_names.count(old) > 1 and old:
            assert new == f"{old}-{row}"
    split = [name for row in range(plan.n_cells) for name in read_rows(plan, row, row + 1).cell_ids]
    assert split == ids


def test_clean_names_are_kept(dataset, plan_of, tmp_path):
    plan = plan_of(dataset(tmp_path, "h5ad-csr"))
    assert len(plan.renamed) == 0


def test_unsorted_and_repeated_entries_are_merged(atlas, plan_of, counts, tmp_path):
    """A csr file need not be canonical."""
    wide = sparse.csr_matrix(([1.0, 2, 4, 8], [3, 1, 3, 0], [0, 3, 4]), shape=(2, 60), dtype=np.float32)
    atlas(wide).write_h5ad(tmp_path / "a.h5ad")
    assert read_rows(plan_of(tmp_path / "a.h5ad"), 0, 2).counts[:, :4].toarray().tolist() == [
        [0, 2, 0, 5],
        [8, 0, 0, 0],
    ]


def test_file_that_vanishes_between_plan_and_read(dataset, plan_of, tmp_path):
    path = dataset(tmp_path, "h5ad-csr")
    plan = plan_of(path)
    path.unlink()
    with pytest.raises(ReadError, match="No such file"):
        read_rows(plan, 0, 5)
