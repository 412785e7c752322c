"""One run per output folder: a lock that names its holder and that a dead holder does not keep.

Contract: while a ``RunLock`` is held, a second one on the same folder is a ``RunLockedError`` with the holder's run
id. On a local disk it is ``flock``, which the kernel frees when the process dies. On S3 it is an object made with
put-if-absent and rewritten by a heartbeat; whoever finds it watches it, and takes it over when it stands still. Every
change of the object is conditional on the state last seen (``If-None-Match``, ``If-Match``), so of several waiting
runs one wins; the store must honour these headers.

It does not stop a run that was frozen for longer than ``STALE_S`` on S3 and lost its lock meanwhile: that run asks
``check()``.
"""

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cellray import schema, storage
from cellray.errors import RunLockedError, SettingError, one_line

HEARTBEAT_S: Final = 2.0
"""How often a holder rewrites the lock object."""
STALE_S: Final = 8.0
"""How long a lock object must stand still before its holder counts as dead."""
POLL_S: Final = 0.5
"""How often a watched lock object is looked at."""


class RunLock:
    """Context manager that holds the output folder ``out_uri`` for the run ``run_id``.

    Raises
    ------
    RunLockedError
        On entry, if another run holds the folder.
    SettingError
        On entry, if the folder cannot be created or written to.
    """

    def __init__(self, out_uri: str, run_id: str) -> None:
        self._out_uri = out_uri
        self._run_id = run_id
        self._lock: _FileLock | _ObjectLock

    def __enter__(self) -> Self:
        try:
            uri = storage.join(self._out_uri, schema.LOCK_FILE)
            self._lock = _FileLock(uri, self._run_id) if storage.is_local(uri) else _ObjectLock(uri, self._run_id)
            with storage.network_errors():
                holder = self._lock.acquire()
        except (OSError, ValueError) as error:
            msg = f"output folder {self._out_uri!r} cannot be written to: {one_line(error)}; choose another --out"
            raise SettingError(msg) from error
        if holder is not None:
            msg = f"{self._out_uri} is being written by run {holder}; wait for it or choose another --out"
            raise RunLockedError(msg)
        return self

    def check(self) -> None:
        """Raise ``RunLockedError`` if another run has taken the lock over since."""
        if self._lock.lost_to is not None:
            msg = f"run {self._run_id} stood still and {self._out_uri} was taken over by run {self._lock.lost_to}"
            raise RunLockedError(msg)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A lock that cannot be removed goes stale by itself; it must not turn a finished run into a failed one.
        with suppress(OSError), storage.network_errors():
            self._lock.release()


class _FileLock:
    """``flock`` on a file that holds the run id and is removed by its holder."""

    lost_to: str | None = None  # the kernel never takes a lock away

    def __init__(self, uri: str, run_id: str) -> None:
        self._path = Path(storage.filesystem(uri)[1])
        self._run_id = run_id

    def acquire(self) -> str | None:
        """Take the lock and return None, or return the holder's run id."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current():
                    os.truncate(self._descriptor, 0)
                    os.write(self._descriptor, self._run_id.encode())
                    return None
                os.close(self._descriptor)
            except BlockingIOError:
                os.close(self._descriptor)
                time.sleep(0.1)  # a holder writes its id right after locking
                with suppress(FileNotFoundError):  # released in between: try again
                    return self._path.read_text()
            except OSError:  # no lock on this file system, or no room for the id
                self.release()
                raise

    def _is_current(self) -> bool:
        """Whether the locked file is still at the path: its last holder may have removed it before we locked it."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file, then unlock it: in this order no one can lock a file that is about to go."""
        try:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)


class _ObjectLock:
    """An object with the run id on its first line and a beat counter on its second."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._fs, self._path = storage.filesystem(uri)
        self._run_id = run_id
        self._beats = 0
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="cellray-lock", daemon=True)
        self.lost_to: str | None = None

    def acquire(self) -> str | None:
        """Take the lock and return None, or return the holder's run id."""
        while not self._create():
            with suppress(FileNotFoundError):  # gone while we looked: try again
                holder = self._take_over()
                if holder is not None:
                    return holder
                break
        self._heart.start()
        return None

    def _create(self) -> bool:
        try:
            self._put(mode="create")
        except FileExistsError:
            return False
        return True

    def _take_over(self) -> str | None:
        """Watch the object; replace it and return None if it stands still, else return its holder."""
        seen = self._state()
        deadline = time.monotonic() + STALE_S
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            if self._state() != seen:
                return self._holder()
        try:
            self._put(IfMatch=seen)
        except FileNotFoundError:
            raise
        except OSError:  # another waiting run was quicker
            return self._holder()
        return None

    def release(self) -> None:
        """Stop the heartbeat and remove the object if it is still ours."""
        self._stop.set()
        self._heart.join()
        if self._holder() == self._run_id:
            self._fs.rm_file(self._path)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(OSError), storage.network_errors():  # a missed beat is made good by the next
                state = self._state()
                holder = self._holder()  # read after the state: if it is us, a later change by others fails the PUT
                if holder != self._run_id:
                    self.lost_to = holder
                    return
                self._put(IfMatch=state)

    def _put(self, **condition: str) -> None:
        self._beats += 1
        self._fs.pipe_file(self._path, f"{self._run_id}\n{self._beats}\n".encode(), **condition)

    def _state(self) -> str:
        """Return the object's entity tag, which every beat changes."""
        return self._fs.info(self._path, refresh=True)["ETag"]

    def _holder(self) -> str:
        return self._fs.cat_file(self._path).decode().split("\n", 1)[0]
