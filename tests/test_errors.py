"""What `boundary` makes an error of the user's, and what stays a bug with its trace."""

import json
import pickle
import zlib

import h5py
import pyarrow.parquet as pq
import pytest

from cellray.errors import InternalError, ReadError, boundary, internal


@pytest.fixture
def torn(tmp_path):
    """An HDF5 file with an array, and a Parquet file that is none."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = [1, 2]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    return tmp_path


def missing_object(folder):
    with h5py.File(folder / "a.h5") as file:
        return file["y"]


FOREIGN = [
    lambda folder: (folder / "none").read_bytes(),
    lambda folder: h5py.File(folder / "a.parquet"),
    missing_object,
    lambda folder: pq.read_table(folder / "a.parquet"),
    lambda _: json.loads("{"),
    lambda _: zlib.decompress(b"nothing"),
    lambda _: b"\xff".decode(),
]


@pytest.mark.parametrize("work", FOREIGN)
def test_what_files_and_formats_cause_is_translated(torn, work):
    with pytest.raises(ReadError, match=r"^dataset 'liver': ") as caught, boundary(ReadError, "dataset 'liver'"):
        work(torn)
    assert "\n" not in str(caught.value)


def test_no_code_of_ours_hides_behind_hdf5(torn):
    with h5py.File(torn / "a.h5") as file, pytest.raises(IndexError), boundary(ReadError, "dataset 'liver'"):
        file["x"][5]


BUGS = [
    lambda: {}["column"],
    lambda: None + 1,
    lambda: [][0],
    lambda: int("three"),
    lambda: 1 // 0,
    lambda: None.nothing,
]


@pytest.mark.parametrize("work", BUGS)
def test_a_bug_stays_a_bug(work):
    kinds = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
    with pytest.raises(kinds), boundary(ReadError, "dataset 'liver'"):
        work()


def test_a_call_site_may_name_what_a_wrong_format_is_there():
    wrong = pytest.raises(ReadError, match="dataset 'liver': invalid literal")
    with wrong, boundary(ReadError, "dataset 'liver'", ValueError):
        int("three")
    with pytest.raises(KeyError), boundary(ReadError, "dataset 'liver'", ValueError):
        raise KeyError("x")


def test_an_internal_error_keeps_its_trace_on_its_way_between_processes():
    def where_it_happens():
        return {}["column"]

    try:
        where_it_happens()
    except KeyError as error:
        found = internal(error, "dataset 'liver': finishing")
    again = pickle.loads(pickle.dumps(found))
    assert isinstance(again, InternalError)
    assert str(again) == "dataset 'liver': finishing: KeyError: 'column'; this is a bug of CellRay"
    assert "where_it_happens" in again.trace
    assert internal(again, "something else") is again
