"""What a run says while it works: a live display on a terminal, plain lines elsewhere, always on standard error.

It counts cells and seconds and knows nothing of stages beyond their names.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

_LINE_EVERY_S = 10.0


class Progress(Protocol):
    """How the pipeline reports."""

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        """Begin counting: ``n_cells`` (or other units) in all, ``n_done`` of them by an earlier run."""

    def advance(self, n_cells: int) -> None:
        """``n_cells`` more have scores."""

    def say(self, text: str) -> None:
        """Show one line."""


class Silent:
    """Says nothing; for library use."""

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        """Do nothing."""

    def advance(self, n_cells: int) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


class Lines:
    """Plain lines, one every ten seconds at most, for logs."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._unit = file, "cells"
        self._cells = self._before = self._done = 0
        self._started = self._last = time.monotonic()

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        """Begin counting."""
        self._unit = unit
        self._cells, self._before, self._done = n_cells, n_done, n_done
        self._started = self._last = time.monotonic()

    def advance(self, n_cells: int) -> None:
        """Count, and print when it is time or all is done."""
        self._done += n_cells
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_S or self._done == self._cells:
            self._last = now
            rate = (self._done - self._before) / max(now - self._started, 1e-9)
            left = (self._cells - self._done) / max(rate, 1e-9)
            self.say(f"{self._done:,} of {self._cells:,} {self._unit}, {rate:,.0f} {self._unit}/s, {left:,.0f} s left")

    def say(self, text: str) -> None:
        """Print one line."""
        self._file.write(text + "\n")
        self._file.flush()


class _Live:
    """A rich progress bar."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self.bars.add_task("cells", total=None, rate="starting")
        self._before, self._started, self._unit = 0, time.monotonic(), "cells"

    def start(self, n_cells: int, n_done: int, unit: str = "cells") -> None:
        self._before, self._started, self._unit = n_done, time.monotonic(), unit
        self.bars.update(self._task, description=unit, total=n_cells, completed=n_done, rate="")

    def advance(self, n_cells: int) -> None:
        self.bars.advance(self._task, n_cells)
        done = self.bars.tasks[0].completed - self._before
        self.bars.update(self._task, rate=f"{done / max(time.monotonic() - self._started, 1e-9):,.0f} {self._unit}/s")

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False)


@contextmanager
def showing(file: IO[str] | None = None) -> Iterator[Progress]:
    """Yield the display that fits ``file``, by default standard error."""
    file = file or sys.stderr
    if not file.isatty():
        yield Lines(file)
        return
    live = _Live()
    with live.bars:
        yield live
