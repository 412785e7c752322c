"""Workers that end before their time: one of Ray Train is killed, one in this process stops behind a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from cellray.train.loop import Alone, Write


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


class Stopped(Exception):
    """The worker's end."""


class Stopping(Alone):
    """One worker whose checkpoints are in ``folder``, and who stops behind the ``last`` of them; the next goes on."""

    def __init__(self, folder: Path, last: int | None = None) -> None:
        super().__init__()
        self._folder, self._last = folder, last
        self.checkpoints = 0

    def resume(self, read: Callable[[Path], int]) -> int:
        """Read the checkpoint if there is one."""
        return read(self._folder) if any(self._folder.iterdir()) else 0

    def report(self, metrics: dict[str, float], write: Write) -> None:
        """Keep the checkpoint."""
        write(self._folder)
        self.checkpoints += 1
        if self.checkpoints == self._last:
            raise Stopped
