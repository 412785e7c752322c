import numpy as np
import pytest
import s3fs

from cellray.errors import InputError, ReadError
from cellray.ingest import find_sources, needs_staging, read_rows, stage


@pytest.mark.parametrize("form", ["h5ad-csr", "h5ad-csc", "zarr2-csr", "zarr3-dense", "tenx3", "mtx3"])
def test_every_format_is_read_from_s3(form, s3, dataset, plan_of, counts, tmp_path):
    path = dataset(tmp_path, form)
    s3fs.S3FileSystem().put(str(path), f"{s3}/in/{path.name}", recursive=path.is_dir())
    plan = plan_of(f"{s3}/in/{path.name}")
    if needs_staging(plan):
        plan = stage(plan, f"{s3}/staged", 16)
        assert len(s3fs.S3FileSystem().ls(f"{s3}/staged")) == 4
    block = read_rows(plan, 12, 37)
    assert block.cell_ids == [f"c{row}" for row in range(12, 37)]
    np.testing.assert_array_equal(block.counts.toarray(), counts[12:37].toarray())


def test_globs_and_missing_inputs(s3, dataset, tmp_path):
    path = dataset(tmp_path, "h5ad-csr")
    for name in ("in/b.h5ad", "in/a.h5ad", "in/deep/a.h5ad"):
        s3fs.S3FileSystem().put(str(path), f"{s3}/{name}")
    found = find_sources([f"{s3}/in/*.h5ad", f"{s3}/in/deep/a.h5ad"])
    assert [source.uri for source in found] == [f"{s3}/in/{name}" for name in ("a.h5ad", "b.h5ad", "deep/a.h5ad")]
    assert len({source.dataset_id for source in found}) == 3
    for missing in (f"{s3}/in/none.h5ad", "s3://no-such-bucket-here/a.h5ad"):
        with pytest.raises(InputError, match=missing):
            find_sources([missing])


def test_truncated_object(s3, dataset, plan_of, tmp_path):
    path = dataset(tmp_path, "h5ad-csr")
    s3fs.S3FileSystem().pipe(f"{s3}/a.h5ad", path.read_bytes()[:5000])
    with pytest.raises(ReadError, match=rf"{s3}/a\.h5ad: .*truncated"):
        plan_of(f"{s3}/a.h5ad")
