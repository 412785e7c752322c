"""Killing a Ray Train worker once its first checkpoint is there."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def killed_worker(runs: Path) -> Iterator[list[int]]:
    """While inside, kill the workers once, after a checkpoint under ``runs``; yields the pids that were killed."""
    done, killed = threading.Event(), []

    def kill() -> None:
        while not done.is_set() and not killed:
            if list(runs.rglob("training.safetensors")):
                for one in psutil.Process().children(recursive=True):
                    if "RayTrainWorker" in one.name():
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
