"""Killing a Ray worker once its first checkpoint, or another file, is there."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def killed_worker(runs: Path, file: str = "training.safetensors", name: str = "RayTrainWorker") -> Iterator[list[int]]:
    """While inside, kill the workers called ``name`` once, after a ``file`` under ``runs``; yields the pids killed."""
    done, killed = threading.Event(), []

    def kill() -> None:
        while not done.is_set() and not killed:
            if list(runs.rglob(file)):
                for one in psutil.Process().children(recursive=True):
                    if name in one.name():
                        os.kill(one.pid, signal.SIGKILL)
                        killed.append(one.pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        done.set()
        killer.join()
