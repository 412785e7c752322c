"""What a run says while it works: a live display on a terminal, plain lines elsewhere, always on standard error.

Contract: a display counts cells and seconds and shows the name of the stage. A time left is given once ``_GUESS_S``
have passed, from the pace since the first cell was done, so that loading a model is no part of it. The methods may be
called from several threads. A display never fails the work it is about. It knows nothing of stages beyond their names.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO, Any, Final, Protocol

from cellray.log import SHOWN, logger

_LINE_EVERY_S = 10.0
_GUESS_S: Final = 20.0
_STEADY_S: Final = 3.0
_ANNOUNCE_S: Final = 2.0


class Progress(Protocol):
    """How the pipeline reports. Derive from ``Silent`` to have methods that do nothing."""

    def stage(self, name: str) -> None:
        """Show that another stage has begun, as ``cellray.pipeline.stages`` names them."""

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        """Begin counting: ``n_cells`` (or other units) in all, ``n_done`` of them by an earlier run."""

    def advance(self, n_cells: int) -> None:
        """``n_cells`` more are done for good; of a failed shard it is none, and ``leave_out`` takes them."""

    def in_hand(self, n_cells: int) -> None:
        """So many cells of all shards under way are done, in the place of what was said before."""

    def leave_out(self, n_cells: int) -> None:
        """``n_cells`` of those to do will not be done."""

    def say(self, text: str) -> None:
        """Show one line."""


class Silent:
    """Says nothing; for library use."""

    def stage(self, name: str) -> None:
        """Do nothing."""

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        """Do nothing."""

    def advance(self, n_cells: int) -> None:
        """Do nothing."""

    def in_hand(self, n_cells: int) -> None:
        """Do nothing."""

    def leave_out(self, n_cells: int) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


class Count:
    """Cells done, and the pace.

    Attributes
    ----------
    total, done
        Cells in all; of these, those of earlier runs, of finished shards and of shards in hand.
    """

    def __init__(self) -> None:
        self.unit = "cells"
        self.total = self._sure = self._hand = self._before = 0
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None

    def start(self, total: int, before: int, unit: str) -> None:
        """Begin anew."""
        self.unit, self.total, self._sure, self._hand, self._before = unit, total, before, 0, before
        self._started, self._first = time.monotonic(), None

    def add(self, sure: int = 0, hand: int | None = None) -> None:
        """Count cells that are done for good, and say how many are in hand."""
        self._sure += sure
        # What was in hand and is done for good is not counted twice until the next word of it.
        self._hand = max(0, self._hand - sure) if hand is None else hand
        if self._first is None and self.done > self._before:
            self._first = (time.monotonic(), self.done)

    @property
    def done(self) -> int:
        """Cells that are done; never more than there are."""
        return min(self.total, self._sure + self._hand)

    @property
    def rate(self) -> float | None:
        """Cells a second of this run, None before there is anything to go by."""
        now = time.monotonic()
        if self._first is not None and now - self._first[0] >= _STEADY_S and self.done > self._first[1]:
            return (self.done - self._first[1]) / (now - self._first[0])
        if now - self._started >= 1 and self.done > self._before:
            return (self.done - self._before) / (now - self._started)
        return None

    @property
    def left(self) -> str:
        """The time left in words, empty while it would be a guess."""
        if self.done >= self.total:
            return "0 s left"
        rate = self.rate
        if rate is None or time.monotonic() - self._started < _GUESS_S:
            return ""
        seconds = (self.total - self.done) / rate
        if seconds < 120:
            return f"{seconds:,.0f} s left"
        minutes = round(seconds / 60)
        return f"{minutes} min left" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min left"

    @property
    def pace(self) -> str:
        """The rate in words, empty before there is one."""
        return "" if self.rate is None else f"{self.rate:,.0f} {self.unit}/s"


class Lines(Silent):
    """Plain lines for logs: one a stage, and one every ten seconds at most while cells are counted."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._count = file, Count()
        self._last, self._told = time.monotonic(), 0
        self._lock = threading.RLock()
        self._stage = self._announced = ""
        self._timer: threading.Timer | None = None

    def stage(self, name: str) -> None:
        """Print the stage; the first once a line follows or it takes long: what fails at once says that alone."""
        with self._lock:
            if name == self._stage:
                return
            self._announce()
            self._stage = name
            if self._announced:
                self._announce()
                return
            self._timer = threading.Timer(_ANNOUNCE_S, self._announce)
            self._timer.daemon = True
            self._timer.start()

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        """Begin counting."""
        with self._lock:
            self._count.start(n_cells, n_done, unit)
            self._last, self._told = time.monotonic(), n_done

    def advance(self, n_cells: int) -> None:
        """Count, and print when it is time or all is done."""
        with self._lock:
            self._count.add(n_cells)
            self._tell(ends=True)

    def in_hand(self, n_cells: int) -> None:
        """Count, and print when it is time."""
        with self._lock:
            self._count.add(hand=n_cells)
            self._tell()

    def leave_out(self, n_cells: int) -> None:
        """Count fewer cells."""
        with self._lock:
            self._count.total -= n_cells

    def say(self, text: str) -> None:
        """Print one line."""
        with self._lock:
            self._announce()
            self._write(text)

    def close(self) -> None:
        """Print nothing more of one's own accord."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._announced = self._stage

    def _announce(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._stage != self._announced:
                self._announced = self._stage
                self._write(self._stage)

    def _tell(self, *, ends: bool = False) -> None:
        now, count = time.monotonic(), self._count
        due = now - self._last >= _LINE_EVERY_S and count.done != self._told
        if due or (ends and count.done == count.total):
            self._last, self._told = now, count.done
            done = f"{count.done:,} of {count.total:,} {count.unit}"
            self.say(", ".join(filter(None, (done, count.pace, count.left))))

    def _write(self, text: str) -> None:
        self._file.write(text + "\n")
        self._file.flush()


class _Live(Silent):
    """A rich progress bar, on a terminal or in a notebook."""

    def __init__(self, **console: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self.bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(**console),
            transient=True,
        )
        self._count = Count()
        self._task = self.bars.add_task("starting", total=None, rate="", left="")

    def stage(self, name: str) -> None:
        """Show the stage beside the bar."""
        # At once, for standard error is closed for the moment in which Ray's core starts.
        self.bars.update(self._task, description=name, refresh=True)

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        """Begin counting."""
        self._count.start(n_cells, n_done, unit)
        self._show()

    def advance(self, n_cells: int) -> None:
        """Move the bar."""
        self._count.add(n_cells)
        self._show()

    def in_hand(self, n_cells: int) -> None:
        """Move the bar."""
        self._count.add(hand=n_cells)
        self._show()

    def leave_out(self, n_cells: int) -> None:
        """Shorten the bar."""
        self._count.total -= n_cells
        self._show()

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self.bars.console.print(text, highlight=False, markup=False)

    def _show(self) -> None:
        count = self._count
        left = "" if count.done == count.total else count.left
        self.bars.update(self._task, total=count.total, completed=count.done, rate=count.pace, left=left)


class Logged(Silent):
    """Another display, whose lines go to the logger ``cellray.pipeline`` as well; it may lack the newer methods."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._extra = None if type(shown) is Silent else SHOWN

    def stage(self, name: str) -> None:
        """Show and log the stage."""
        logger("pipeline").debug("stage: %s", name, extra=self._extra)
        getattr(self._shown, "stage", super().stage)(name)

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        """Pass it on."""
        self._shown.start(n_cells, n_done, unit)

    def advance(self, n_cells: int) -> None:
        """Pass it on."""
        self._shown.advance(n_cells)

    def in_hand(self, n_cells: int) -> None:
        """Pass it on."""
        getattr(self._shown, "in_hand", super().in_hand)(n_cells)

    def leave_out(self, n_cells: int) -> None:
        """Pass it on."""
        getattr(self._shown, "leave_out", super().leave_out)(n_cells)

    def say(self, text: str) -> None:
        """Show and log one line."""
        logger("pipeline").info("%s", text, extra=self._extra)
        self._shown.say(text)


@contextmanager
def showing(file: IO[str] | None = None, *, quiet: bool = False) -> Iterator[Progress]:
    """Yield the display that fits ``file``, by default standard error, or the notebook this runs in.

    Parameters
    ----------
    file
        Where lines go; a terminal gets a live display.
    quiet
        Show nothing.
    """
    if quiet:
        yield Silent()
        return
    live = _live(file)
    if live is not None:
        with live.bars:
            yield live
        return
    # Standard error of a notebook looks like a failure.
    lines = Lines(file or (sys.stdout if in_notebook() else sys.stderr))
    try:
        yield lines
    finally:
        lines.close()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, not a terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "ipykernel" in type(shell).__module__


def _live(file: IO[str] | None) -> _Live | None:
    """Return a live display where one can be shown: on a terminal, and in a notebook that has widgets."""
    if file is None and in_notebook():
        return _Live(force_jupyter=True) if find_spec("ipywidgets") else None
    file = file or sys.stderr
    return _Live(file=None if file is sys.stderr else file, stderr=file is sys.stderr) if file.isatty() else None
