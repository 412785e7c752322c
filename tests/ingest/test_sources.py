import pickle
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellray import schema
from cellray.errors import InputError
from cellray.ingest import DatasetSource, find_sources


@pytest.fixture
def tree(tmp_path):
    for name in (
        "b.h5ad",
        "a.h5ad",
        "x/a.h5ad",
        "y z.h5",
        "mtx/matrix.mtx.gz",
        "plain/readme.txt",
        "notes.txt",
        "s.zarr/.zgroup",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_kinds_ids_and_order(tree):
    inputs = [tree / "y z.h5", tree / "mtx", f"{tree}/s.zarr/", f"{tree}/*.h5ad", tree / "b.h5ad"]
    found = find_sources([str(text) for text in inputs])
    assert [(source.dataset_id, source.kind) for source in found] == [
        ("y_z", "10x_h5"),
        ("mtx", "10x_mtx"),
        ("s", "zarr"),
        ("a", "h5ad"),
        ("b", "h5ad"),
    ]
    assert pickle.loads(pickle.dumps(found)) == found


def test_same_stem_gets_a_suffix_and_same_file_is_read_once(tree, monkeypatch):
    monkeypatch.chdir(tree)
    found = find_sources(["a.h5ad", "x/a.h5ad", "./x/../a.h5ad", "b.h5ad"])
    assert [source.dataset_id for source in found] == [f"{tree.name}_a", "x_a", "b"]


def test_an_id_is_of_the_path_alone(tree):
    """Names that every run of a pipeline has are passed over; what stands beside does not matter."""
    paths = {
        "p07/outs/filtered_feature_bc_matrix.h5": "p07",
        "p12/outs/raw_feature_bc_matrix.h5": "p12",
        "run3/outs/per_sample_outs/S1/count/sample_filtered_feature_bc_matrix.h5": "S1",
        "Xenium9/cell_feature_matrix.h5": "Xenium9",
        "liver.v2/matrix.h5ad": "liver.v2",
        "sub/counts.h5ad": "counts",
        "kidney/filtered_feature_bc_matrix/matrix.mtx": "kidney",
        "star7/Solo.out/Gene/filtered/matrix.mtx": "star7",
    }
    for name in paths:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    inputs = [str((tree / name).parent if name.endswith(".mtx") else tree / name) for name in paths]
    assert [source.dataset_id for source in find_sources(inputs)] == list(paths.values())
    assert [find_sources([one])[0].dataset_id for one in inputs] == list(paths.values())


def test_equal_ids_get_the_folder_that_tells_them_apart(tree):
    paths = [tree / run / "s1" / "outs" / "filtered_feature_bc_matrix.h5" for run in ("run1", "run2")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    assert [one.dataset_id for one in find_sources([str(path) for path in paths])] == ["run1_s1", "run2_s1"]
    (tree / "b.h5").touch()
    ids = [one.dataset_id for one in find_sources([str(tree / "b.h5"), str(tree / "b.h5ad")])]
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"b-[0-9a-f]{8}", name) for name in ids)


def test_content_hash_covers_all_files_of_a_dataset(tmp_path):
    source = DatasetSource(str(tmp_path), "10x_mtx", "a", (("matrix", f"{tmp_path}/m"), ("barcodes", f"{tmp_path}/b")))
    hashes = set()
    for matrix, barcodes in (("1", "2"), ("1", "3"), ("2", "2")):
        (tmp_path / "m").write_text(matrix)
        (tmp_path / "b").write_text(barcodes)
        hashes.add(source.content_hash())
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("none.h5ad", "no such file"),
        ("*.loom", "nothing matches"),
        ("notes.txt", "'.txt'"),
        ("plain", r"without matrix\.mtx"),
        ("gs://bucket/a.h5ad", "not supported"),
    ],
)
def test_wrong_input_is_named(tree, monkeypatch, text, says):
    monkeypatch.chdir(tree)
    with pytest.raises(InputError, match=says) as caught:
        find_sources([text])
    assert text.strip("*") in str(caught.value)


def test_a_file_with_glob_characters_in_its_name(tmp_path):
    (tmp_path / "a[1].h5ad").touch()
    assert [source.dataset_id for source in find_sources([str(tmp_path / "a[1].h5ad")])] == ["a_1_"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stem=st.text(st.characters(exclude_characters="/\0\n", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_file_name_gives_a_safe_id(tmp_path, stem):
    path = tmp_path / f"{stem}.h5ad"
    try:
        path.touch()
    except OSError:
        return  # too long in bytes for this disk
    (source,) = find_sources([str(path)])
    path.unlink()
    assert re.fullmatch(schema.DATASET_ID_PATTERN, source.dataset_id)
    assert not source.dataset_id.startswith(".")
