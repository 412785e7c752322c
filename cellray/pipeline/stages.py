"""The names of a run's stages, and how the code of one says that it has begun, wherever it runs.

Contract: ``entering`` tells whoever ``listening`` put in place in this thread or task, and nobody otherwise; a listener
that fails is not heard of. It keeps no record and measures nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Final

STARTING: Final = "starting Ray"
READING: Final = "reading"
ENCODING: Final = "encoding"
REFINING: Final = "refining"
DRAWING: Final = "drawing"
WRITING: Final = "writing"
ASKING: Final = "asking the language model"

FINISHING: Final = (REFINING, DRAWING, WRITING)
"""Those of one dataset after its last shard, in their order."""

_listener: ContextVar[Callable[[str], object] | None] = ContextVar("listener", default=None)


def entering(name: str) -> None:
    """Say that a stage begins."""
    listener = _listener.get()
    if listener is not None:
        with suppress(Exception):
            listener(name)


@contextmanager
def listening(listener: Callable[[str], object]) -> Iterator[None]:
    """Have ``listener`` called with the name of every stage that begins inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
