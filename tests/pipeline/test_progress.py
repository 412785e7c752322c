"""What a run prints when nobody watches a terminal, and how the encoder pool is sized."""

import io
import time

import pytest

from cellray.cluster import Resources
from cellray.errors import SettingError
from cellray.pipeline import progress as module
from cellray.pipeline.progress import Count, Lines, Logged, Silent, showing
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


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so: ``clock(5)``."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_time_left_is_given_after_twenty_seconds_and_is_none_of_the_start(clock):
    file = io.StringIO()
    lines = Lines(file)
    lines.start(10_000, 2_000)
    clock(12)  # the model is loaded
    lines.in_hand(100)
    clock(7)
    lines.in_hand(800)
    assert "left" not in file.getvalue()
    clock(11)
    lines.in_hand(1_900)
    assert file.getvalue().splitlines()[-1] == "3,900 of 10,000 cells, 100 cells/s, 61 s left"
    clock(60)
    lines.advance(8_000)
    assert file.getvalue().splitlines()[-1].startswith("10,000 of 10,000 cells")


def test_the_first_shard_alone_gives_a_pace(clock):
    lines = Lines(file := io.StringIO())
    lines.start(1_000_000, 0)
    clock(50)
    lines.advance(500)
    assert file.getvalue() == "500 of 1,000,000 cells, 10 cells/s, 27 h 46 min left\n"


def test_nothing_is_said_twice_nor_of_cells_that_failed(clock):
    lines = Lines(file := io.StringIO())
    lines.start(100, 0)
    clock(15)
    lines.in_hand(40)
    clock(15)
    lines.in_hand(40)
    assert file.getvalue().count("\n") == 1
    lines.leave_out(40)
    lines.in_hand(0)
    lines.advance(60)
    assert file.getvalue().splitlines()[-1].startswith("60 of 60 cells")


def test_cells_in_hand_are_not_counted_twice(clock):
    count = Count()
    count.start(100, 10, "cells")
    count.add(hand=30)
    assert count.done == 40
    count.add(32)
    assert count.done == 42
    count.add(hand=5)
    assert count.done == 47
    count.add(hand=500)
    assert count.done == 100


def test_stages_are_lines_once_something_comes_of_them():
    lines = Lines(file := io.StringIO())
    lines.stage("reading")
    assert not file.getvalue(), "what fails at once says that alone"
    lines.say("liver: 3 cells")
    lines.stage("encoding")
    lines.stage("encoding")
    lines.stage("refining")
    lines.close()
    assert file.getvalue().splitlines() == ["reading", "liver: 3 cells", "encoding", "refining"]


def test_a_stage_that_takes_long_is_said(monkeypatch):
    monkeypatch.setattr(module, "_ANNOUNCE_S", 0.01)
    lines = Lines(file := io.StringIO())
    lines.stage("starting Ray")
    until = time.monotonic() + 10
    while not file.getvalue() and time.monotonic() < until:
        time.sleep(0.01)
    assert file.getvalue() == "starting Ray\n"


class Terminal(io.StringIO):
    """A file that is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_shows_stage_count_and_time_left(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    file = Terminal()
    with showing(file) as display:
        display.stage("encoding")
        display.start(1_000, 0)
        clock(30)
        display.advance(300)
        display.bars.refresh()
        shown = file.getvalue()
        display.say("liver: done")
        display.leave_out(1)
    for words in ("encoding", "300/1000", "10 cells/s", "70 s left"):
        assert words in shown
    assert "liver: done" in file.getvalue()


def test_quiet_shows_nothing(capsys):
    with showing(quiet=True) as display:
        display.stage("reading")
        display.say("hello")
        display.start(3, 0)
        display.advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_notebook_without_widgets_gets_lines_that_do_not_look_like_failures(monkeypatch, capsys):
    monkeypatch.setattr(module, "in_notebook", lambda: True)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with showing() as display:
        display.say("hello")
    assert capsys.readouterr() == ("hello\n", "")


class Older:
    """A display as they were written before there were stages."""

    def __init__(self):
        self.told = []

    def start(self, n_cells, n_done, unit="cells"):
        self.told.append(("start", n_cells))

    def advance(self, n_cells):
        self.told.append(("advance", n_cells))

    def say(self, text):
        self.told.append(("say", text))


def test_an_older_display_still_works():
    logged = Logged(older := Older())
    logged.stage("reading")
    logged.start(3, 0)
    logged.in_hand(1)
    logged.leave_out(1)
    logged.advance(2)
    logged.say("done")
    assert older.told == [("start", 3), ("advance", 2), ("say", "done")]
    Logged(Silent()).stage("reading")


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
