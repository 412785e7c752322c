"""What a run prints when nobody watches a terminal, and how the encoder pool is sized."""

import io

import pytest

from cellray.cluster import Resources
from cellray.errors import SettingError
from cellray.pipeline.progress import Lines, showing
from cellray.pipeline.stream import Pool


def test_plain_lines_end_with_all_cells():
    file = io.StringIO()
    with showing(file) as progress:
        progress.say("hello")
        progress.start(1000, 200)
        progress.advance(300)
        progress.advance(500)
    first, last = file.getvalue().splitlines()
    assert first == "hello"
    assert last.startswith("1,000 of 1,000 cells")
    assert last.endswith("0 s left")
    assert isinstance(progress, Lines)


@pytest.mark.parametrize(
    ("resources", "wanted", "expected"),
    [
        (Resources(2, 0), None, Pool(1, 2, 0.0)),
        (Resources(16, 0), None, Pool(4, 4, 0.0)),
        (Resources(16, 0), 16, Pool(16, 1, 0.0)),
        (Resources(32, 4), None, Pool(4, 8, 1.0)),
        (Resources(32, 4), 2, Pool(2, 16, 1.0)),
    ],
)
def test_pool(resources, wanted, expected):
    pool = Pool.of(resources, wanted)
    assert pool == expected
    assert pool.size * pool.cpus < resources.cpus, "readers must fit beside the encoders"


def test_pool_of_more_than_there_is():
    with pytest.raises(SettingError, match="--encoders 5 is more than the 4 GPUs"):
        Pool.of(Resources(64, 4), 5)
