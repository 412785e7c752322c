"""The run lock: one holder, named to the others, and none after its death."""

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from cellray import lock, schema, storage
from cellray.errors import RunLockedError, SettingError
from cellray.lock import RunLock

HOLDER = """
import sys, time
from cellray.lock import RunLock
with RunLock(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
Start = Callable[[str, str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that holds a lock until its standard input ends."""
    started: list[subprocess.Popen[str]] = []

    def run(out: str, run_id: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, out, run_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_second_run_learns_the_first_ones_id(root: str, start: Start) -> None:
    first = start(root, "20260101-000000-ab12")
    begun = time.monotonic()
    with pytest.raises(RunLockedError) as caught, RunLock(root, "second"):
        pass
    assert time.monotonic() - begun < 5
    assert str(caught.value) == (
        f"{root} is being written by run 20260101-000000-ab12; wait for it or choose another --out"
    )
    assert caught.value.exit_code == 2
    assert first.poll() is None
    first.communicate("")
    with RunLock(root, "third") as held:
        held.check()
        assert storage.list_files(root) == [schema.LOCK_FILE]
    assert storage.list_files(root) == []


def test_killed_holder_frees_a_local_folder_at_once(tmp_path: Path, start: Start) -> None:
    first = start(str(tmp_path), "first")
    first.send_signal(signal.SIGKILL)
    first.wait()
    begun = time.monotonic()
    with RunLock(str(tmp_path), "second"):
        assert time.monotonic() - begun < 1
        assert (tmp_path / schema.LOCK_FILE).read_text() == "second"


def test_killed_holder_frees_a_bucket_when_it_is_stale(s3: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE_S", 3.0)
    first = start(s3, "first")
    first.send_signal(signal.SIGKILL)
    first.wait()
    begun = time.monotonic()
    with RunLock(s3, "second"):
        assert 3 <= time.monotonic() - begun < 6
        with pytest.raises(RunLockedError, match="by run second;"), RunLock(s3, "third"):
            pass


def test_heartbeat_outlives_the_stale_limit(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    with RunLock(s3, "first"):
        time.sleep(1.5)
        with pytest.raises(RunLockedError, match="by run first;"), RunLock(s3, "second"):
            pass


def test_run_that_was_frozen_learns_that_it_lost_the_lock(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    with RunLock(s3, "first") as first:
        first.check()
        s3fs.S3FileSystem().pipe_file(storage.join(s3, schema.LOCK_FILE), b"second\n1\n")
        time.sleep(1)
        with pytest.raises(RunLockedError, match=r"first stood still and .* was taken over by run second"):
            first.check()
    assert storage.list_files(s3) == [schema.LOCK_FILE]  # not ours to remove


def test_lock_is_released_after_an_error(root: str) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(root, "first"):
        1 / 0  # noqa: B018
    with RunLock(root, "second"):
        pass


def test_many_runs_at_once_leave_one_holder(tmp_path: Path) -> None:
    """Every process takes the lock again and again; a counter without other protection must not lose a step."""
    script = """
import sys
from pathlib import Path
from cellray.errors import RunLockedError
from cellray.lock import RunLock
out, n = Path(sys.argv[1]), 0
while n < 30:
    try:
        with RunLock(str(out), sys.argv[2]):
            counter = out / "counter"
            counter.write_text(str(int(counter.read_text() or 0) + 1))
            n += 1
    except RunLockedError:
        pass
"""
    (tmp_path / "counter").touch()
    runs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(i)]) for i in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "90"
    assert not (tmp_path / schema.LOCK_FILE).exists()


def test_file_removed_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that leaves just then would hand us a lock on a file that nobody else can see any more."""
    real, path = fcntl.flock, tmp_path / schema.LOCK_FILE
    leaving = [path]

    def flock(descriptor: int, operation: int) -> None:
        while leaving:
            leaving.pop().unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(str(tmp_path), "first"):
        assert not leaving
        with pytest.raises(RunLockedError, match="by run first;"), RunLock(str(tmp_path), "second"):
            pass


def test_folder_that_cannot_be_written(tmp_path: Path, s3_server: str) -> None:
    (tmp_path / "file").touch()
    for out in (str(tmp_path / "file" / "out"), "s3://no-such-bucket-here/out", "ftp://host/out"):
        with pytest.raises(SettingError, match=r"^output folder .* cannot be written to: .*; choose another --out$"):
            RunLock(out, "run").__enter__()


def test_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / schema.LOCK_FILE).symlink_to(target)
    with pytest.raises(SettingError, match="cannot be written to"), RunLock(str(tmp_path / "out"), "run"):
        pass
    assert target.read_text() == "data"
