"""Starting or joining Ray, and leaving it in order: the only place that calls ``ray.init``.

Contract: inside ``ray_session`` Ray is up; at its end a Ray that we started is gone and one that we joined is left
alone. SIGTERM raises ``Terminated`` in the main thread, Ctrl-C ``Interrupted``, so that what is half-done is dropped
and the exit is resumable; within ``draining`` what is in hand is ended first at SIGTERM. Ray's own messages go to its
session folder alone unless ``CELLRAY_RAY_LOG_LEVEL`` or a logger ``cellray`` at level DEBUG asks for more. Nothing is
retried.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from cellray.errors import CellRayError, Interrupted, SettingError, Terminated, one_line
from cellray.log import is_verbose
from cellray.settings import Environment

DRAIN_S: Final = 45.0
"""How long what is in hand may take to end after SIGTERM; the kill that follows comes after 60 s where it is ours."""

_FEWEST_CPUS = 2  # an encoder and a reader must fit side by side


@dataclass(frozen=True)
class Resources:
    """What the cluster offers: logical CPUs and GPUs of all its nodes."""

    cpus: int
    gpus: int


@contextmanager
def ray_session(address: str | None = None, cpus: int | None = None) -> Iterator[Resources]:
    """Join the cluster at ``address``, or start a Ray of our own here; one already up in this process is used as it is.

    Parameters
    ----------
    address
        ``"auto"``, ``"host:port"`` or ``"ray://..."``; None starts one here.
    cpus
        Logical CPUs of a Ray of our own; default: this machine's.
    """
    # Ray's progress bars would replace the built-in print, which Numba can then no longer compile (UMAP, pynndescent).
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    import ray

    ours = not ray.is_initialized()
    if ours:
        # Progress and messages are ours; Ray's own go to its session folder.
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        level = ray_log_level()
        # Its core writes warnings to our standard error at level "error" (constructor arguments of actors, ray#53727).
        core = "fatal" if level >= logging.ERROR else logging.getLevelName(level).lower()
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", core)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": level}
        try:
            with _standard_error_closed() if level >= logging.ERROR else nullcontext():
                if address is None:
                    environment = Environment()
                    ray.init(
                        address="local",
                        num_cpus=cpus or max(_FEWEST_CPUS, os.cpu_count() or 1),
                        object_store_memory=environment.object_store_bytes,
                        include_dashboard=False,
                        _temp_dir=environment.ray_temp_dir,
                        **quiet,
                    )
                else:
                    ray.init(address=address, **quiet)
        except Exception as error:  # Ray raises that class itself when a busy machine is too slow
            msg = f"cannot start Ray (address {address or 'local'!r}): {one_line(error)}"
            raise CellRayError(msg) from error
    # What Ray says of dead workers would stand on standard output, where `--json` is; no setting is asked.
    told, ray._private.worker._worker_logs_enabled = ray._private.worker._worker_logs_enabled, False
    try:
        with _terminable():
            offered = ray.cluster_resources()
            yield Resources(int(offered.get("CPU", 1)), int(offered.get("GPU", 0)))
    except KeyboardInterrupt:
        msg = "stopped by Ctrl-C; run the same command again, it goes on where it stopped"
        raise Interrupted(msg) from None
    finally:
        ray._private.worker._worker_logs_enabled = told
        if ours:
            ray.shutdown()


def ray_log_level() -> int:
    """Return the level of Ray's loggers: ``CELLRAY_RAY_LOG_LEVEL``, else all news when asked for, else errors alone."""
    named = Environment().ray_log_level
    if named is None:
        return logging.INFO if is_verbose() else logging.ERROR
    known = logging.getLevelNamesMapping().get(str(named).upper())
    if known is None:
        msg = f"CELLRAY_RAY_LOG_LEVEL={named!r} is no level; give debug, info, warning or error"
        raise SettingError(msg)
    return known


@contextmanager
def _standard_error_closed() -> Iterator[None]:
    """Keep Ray's compiled core from announcing its log level; what goes wrong comes back as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def draining(stop: Callable[[], None], limit_s: float = DRAIN_S) -> Iterator[threading.Event]:
    """At SIGTERM let what is in hand end; ``Terminated`` is raised after that, and in the main thread alone.

    Parameters
    ----------
    stop
        Called once, in a thread of its own, at the first SIGTERM: says that nothing new is begun.
    limit_s
        After so long, or at a second SIGTERM, ``Terminated`` is raised wherever the work is.

    Yields
    ------
    threading.Event
        Set from the first SIGTERM on.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            _stop(number, frame)
        asked.set()
        again.start()
        threading.Thread(target=stop, name="cellray-drain", daemon=True).start()

    again = threading.Timer(limit_s, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, before)
    if asked.is_set():
        _stop(signal.SIGTERM, None)


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    msg = "stopped by SIGTERM; run the same command again to go on"
    raise Terminated(msg)
