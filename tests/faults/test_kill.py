"""Killed drivers, killed encoders, full disks: the same command again ends where an undisturbed run would have."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from cellray.errors import CellRayError
from cellray.pipeline import annotate
from cellray.settings import AnnotateSettings
from tests.faults.conftest import N_SHARDS, SHARD, settings_of

pytestmark = pytest.mark.faults


def command(many, out, tiny_model):
    options = ["--out", out, "--model", tiny_model, "--shard-cells", SHARD, "--refine", "none"]
    return [sys.executable, "-m", "cellray.cli", "annotate", *map(str, [many, *options])]


def wait_for(condition, limit_s=240):
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "took too long"
        time.sleep(0.02)


@pytest.mark.timeout(600)
def test_driver_killed_then_stopped(many, tiny_model, tmp_path, undisturbed):
    out = tmp_path / "out"
    scores = out / "datasets" / "many" / "scores"

    def parts():
        return {path.name: path.stat().st_mtime_ns for path in scores.glob("part-*")} if scores.is_dir() else {}

    for wanted, how, code in ((3, signal.SIGKILL, -signal.SIGKILL), (9, signal.SIGTERM, 143)):
        with (tmp_path / "said").open("w") as said:  # no pipe: what a killed driver leaves behind would hold it
            driver = subprocess.Popen(command(many, out, tiny_model), stderr=said, stdout=subprocess.DEVNULL)
        wait_for(lambda: len(parts()) >= wanted or driver.poll() is not None)  # noqa: B023
        assert driver.poll() is None, "the run ended before it could be killed"
        driver.send_signal(how)
        assert driver.wait(60) == code
        assert not (out / "datasets" / "many" / "_SUCCESS").exists()
        kept = parts()
    assert "run the same command again" in (tmp_path / "said").read_text().splitlines()[-1]
    assert len(kept) < N_SHARDS
    assert annotate(AnnotateSettings.checked(**settings_of(many, tiny_model), out=str(out))).exit_code == 0
    assert (out / "datasets" / "many" / "annotations.parquet").read_bytes() == undisturbed
    after = parts()
    assert len(after) == N_SHARDS
    # Workers of the killed driver may have published once more before they noticed; no other part is written again.
    redone = [name for name, when in kept.items() if after[name] != when]
    assert len(redone) <= 1


@pytest.mark.timeout(300)
def test_ctrl_c_says_that_the_same_command_goes_on(many, tiny_model, tmp_path):
    out = tmp_path / "out"
    scores = out / "datasets" / "many" / "scores"
    with (tmp_path / "said").open("w") as said:
        # As from a terminal, the signal goes to all of the command's processes.
        driver = subprocess.Popen(
            command(many, out, tiny_model), stderr=said, stdout=subprocess.DEVNULL, start_new_session=True
        )
    wait_for(lambda: (scores.is_dir() and list(scores.glob("part-*"))) or driver.poll() is not None)
    assert driver.poll() is None, "the run ended before it could be stopped"
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(60) == 130
    lines = (tmp_path / "said").read_text().splitlines()
    assert lines[-1] == "stopped by Ctrl-C; run the same command again, it goes on where it stopped"
    assert not any("Traceback" in line for line in lines)


@pytest.mark.timeout(600)
def test_encoder_killed(many, tiny_model, tmp_path, undisturbed):
    out = tmp_path / "out"
    found = []
    settings = AnnotateSettings.checked(**settings_of(many, tiny_model), out=str(out))
    run = threading.Thread(target=lambda: found.append(annotate(settings)))
    run.start()
    scores = out / "datasets" / "many" / "scores"
    wait_for(lambda: scores.is_dir() and len(list(scores.glob("part-*"))) >= 2)
    encoders = [one.pid for one in psutil.Process().children(recursive=True) if "MapWorker" in one.name()]
    assert encoders
    for pid in encoders:
        os.kill(pid, signal.SIGKILL)
    run.join()
    assert found
    assert found[0].exit_code == 0
    assert (out / "datasets" / "many" / "annotations.parquet").read_bytes() == undisturbed


@pytest.mark.usefixtures("ray")
def test_full_disk(cells, tiny_model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        try:
            result = annotate(
                AnnotateSettings.checked(inputs=(str(cells),), out=str(disk / "out"), model=str(tiny_model))
            )
            code, message = result.exit_code, result.failed["cells"]
        except CellRayError as error:  # not even the failure could be written down
            code, message = error.exit_code, str(error)
        assert code == 1
        assert "No space left" in message
        assert not (disk / "out" / "datasets" / "cells" / "_SUCCESS").exists()
        assert not list((disk / "out").rglob(".tmp-*"))
    finally:
        subprocess.run(["umount", disk], check=True)
