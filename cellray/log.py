"""One tree of loggers, ``cellray.*``, and how the command line shows it.

Contract: a library user decides where logs go, so nothing is printed until ``show`` is called, and only the command
line calls it. What a progress display has shown already carries ``SHOWN`` and is not printed a second time. The
loggers of Ray and other libraries are not touched here; ``cellray.cluster`` sets Ray's.
"""

import logging
import sys
from typing import Final, TextIO

ROOT: Final = "cellray"
SHOWN: Final = {"cellray_shown": True}
"""``extra`` of a record whose text a progress display has shown."""

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def logger(room: str) -> logging.Logger:
    """Return the logger of a room, e.g. ``cellray.pipeline``."""
    return logging.getLogger(f"{ROOT}.{room}")


def show(*, verbose: bool) -> None:
    """Print all logs on standard error with ``verbose``; without, take back what an earlier call did."""
    root = logging.getLogger(ROOT)
    for handler in [one for one in root.handlers if isinstance(one, _Terminal)]:
        root.removeHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    if verbose:
        root.addHandler(_Terminal())


def is_verbose() -> bool:
    """Whether somebody wants to see everything."""
    return logging.getLogger(ROOT).isEnabledFor(logging.DEBUG)


class _Terminal(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the time: a live display puts its own in place."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.addFilter(lambda record: not getattr(record, "cellray_shown", False))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stderr
        super().emit(record)
