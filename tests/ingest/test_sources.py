import pickle
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellray import schema
from cellray.errors import InputError
from cellray.ingest import find_sources


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
    ids = [source.dataset_id for source in found]
    assert len(found) == 3
    assert ids[2] == "b"
    assert all(re.fullmatch(r"a-[0-9a-f]{8}", name) for name in ids[:2])
    assert ids[0] != ids[1]


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
