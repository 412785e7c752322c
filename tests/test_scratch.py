"""Temporary folders go with their process, or are swept by the next one."""

import os
import subprocess
import sys
import time

import pytest

from cellray.scratch import Scratch, sweep

CODE = """
import sys, time
from cellray.scratch import Scratch
kept = Scratch("rollout")
(kept.path / "weights").write_text("x")
print(kept.path, flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """A process that holds a folder, and the folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True) as process:
        from pathlib import Path

        yield process, Path(process.stdout.readline().strip())
        process.kill()


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_folder_of_a_killed_process_is_swept_when_it_is_old(holder):
    process, path = holder
    age(path, 2 * 24 * 3600)
    assert sweep() == []  # it lives
    process.kill()
    process.wait()
    age(path, 3600)
    assert sweep() == []  # it is young
    age(path, 2 * 24 * 3600)
    with Scratch("stage") as scratch:  # the next start sweeps
        assert not path.exists()
        assert scratch.path.is_dir()
    assert not scratch.path.exists()


def test_a_closed_folder_is_gone_and_closing_again_does_nothing():
    scratch = Scratch("stage")
    (scratch.path / "a").touch()
    scratch.close()
    assert not scratch.path.exists()
    scratch.close()


def test_other_folders_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "cellray-mine").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "cellray-scratch-link").symlink_to(tmp_path / "target")
    for path in tmp_path.iterdir():
        age(path, 9e6)
    assert sweep() == []
    assert (tmp_path / "target").is_dir()
