from pathlib import Path

import numpy as np
import pytest

from cellray.errors import ReadError, WriteError
from cellray.ingest import matrix, read_rows, stage


def test_files_already_there_are_kept_and_missing_ones_written_alike(dataset, plan_of, counts, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "BLOCK", 100)
    plan = plan_of(dataset(tmp_path, "h5ad-csc"))
    folder = tmp_path / "staged"
    staged = stage(plan, str(folder), 16)
    assert staged.layout == "staged"
    assert staged.describe() == plan.describe()
    files = sorted(folder.iterdir())
    before = [(path.stat().st_ino, path.read_bytes()) for path in files]
    assert len(files) == 4
    files[1].unlink()
    stage(plan, str(folder), 16)
    after = [(path.stat().st_ino, path.read_bytes()) for path in sorted(folder.iterdir())]
    assert [content for _, content in after] == [content for _, content in before]
    assert [inode for inode, _ in after[2:]] == [inode for inode, _ in before[2:]]
    np.testing.assert_array_equal(read_rows(staged, 10, 40).counts.toarray(), counts[10:40].toarray())


def test_complete_copy_does_not_need_the_values_again(dataset, plan_of, tmp_path):
    path = dataset(tmp_path, "mtx2")
    plan = plan_of(path)
    stage(plan, str(tmp_path / "staged"), 16)
    (path / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n60 50 0\n")
    stage(plan, str(tmp_path / "staged"), 16)


def test_other_layer_or_shard_size_never_reads_the_same_files(atlas, counts, plan_of, tmp_path):
    from scipy import sparse

    csc = sparse.csc_matrix(counts)
    atlas(csc, layers={"counts": csc * 2}).write_h5ad(tmp_path / "a.h5ad")
    folder = str(tmp_path / "staged")
    once = stage(plan_of(tmp_path / "a.h5ad", layer="X"), folder, 16)
    twice = stage(plan_of(tmp_path / "a.h5ad"), folder, 16)
    other = stage(plan_of(tmp_path / "a.h5ad"), folder, 32)
    assert len(list(Path(folder).iterdir())) == 4 + 4 + 2
    assert (read_rows(once, 0, 50).counts * 2 != read_rows(twice, 0, 50).counts).nnz == 0
    assert (read_rows(other, 0, 50).counts != read_rows(twice, 0, 50).counts).nnz == 0


def test_damaged_copy_is_named(dataset, plan_of, tmp_path):
    staged = stage(plan_of(dataset(tmp_path, "h5ad-csc")), str(tmp_path / "staged"), 64)
    (path,) = (tmp_path / "staged").iterdir()
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ReadError, match=path.name):
        read_rows(staged, 0, 5)


def test_unwritable_folder(dataset, plan_of, tmp_path):
    plan = plan_of(dataset(tmp_path, "h5ad-csc"))
    (tmp_path / "staged").write_text("a file, not a folder")
    with pytest.raises(WriteError, match="staged"):
        stage(plan, str(tmp_path / "staged"), 16)


def test_unstaged_layout_cannot_be_read_by_row(dataset, plan_of, tmp_path):
    with pytest.raises(ValueError, match="csc"):
        read_rows(plan_of(dataset(tmp_path, "h5ad-csc")), 0, 5)
