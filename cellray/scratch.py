"""Temporary folders that do not stay behind when their process was killed.

Contract: a folder is locked by the process that made it for as long as it lives, and removed when it is closed. Whoever
makes one first removes those of killed processes: older than a day and locked by nobody. It is for this machine's disk
alone and keeps nothing that must not be lost.
"""

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PREFIX: Final = "cellray-scratch-"
STALE_S: Final = 24 * 3600.0


class Scratch:
    """A temporary folder at ``path``; ``kind`` is in its name. A context manager, which yields the path's owner."""

    def __init__(self, kind: str) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-"))
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove the folder; doing it again does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The interpreter may be ending, when modules are gone.
        with suppress(Exception):
            self.close()


def sweep(older_than_s: float = STALE_S) -> list[Path]:
    """Remove the folders of processes that were killed and return them; one that cannot be removed is left."""
    removed = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < older_than_s or not path.is_dir() or path.is_symlink():
                continue
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
                removed.append(path)
            finally:
                os.close(lock)
    return removed
