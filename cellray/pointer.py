"""Which of several immutable versions is used: a row of numbered files, the highest of which counts.

::

    FOLDER/00000001.json  {"number": 1, "action": "promote", "digest": ..., "at": ..., "reason": ...}

Contract: the pointer moves by creating the next number if nobody else has (put-if-absent), so writers at once never
lose a change, readers see the old version or the new one, and the history is complete. Order is by number and never by
``at``: clocks that disagree change nothing. It does not know what a version is.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

from cellray import storage
from cellray.errors import CellRayError, boundary

_TRIES = 20


@dataclass(frozen=True)
class Change:
    """A change of the pointer: ``promote`` or ``rollback`` to ``digest``, when, and why."""

    number: int
    action: str
    digest: str
    at: str
    reason: str


def rolled_back(history: Sequence[Change]) -> set[str]:
    """Digests that were gone back from, and not promoted since."""
    stack: list[str] = []
    found: set[str] = set()
    for change in history:
        if change.action == "rollback":
            found.add(stack.pop())
        else:
            stack.append(change.digest)
            found.discard(change.digest)
    return found - set(stack[-1:])


class Pointer:
    """The pointer kept in ``folder``.

    Parameters
    ----------
    folder
        Where its changes lie: local path or ``s3://``.
    what
        What messages call the thing that has versions, e.g. ``"plugin 'liver'"``.
    error_class
        What is raised when the store cannot be read or written, or the pointer cannot be moved.
    """

    def __init__(self, folder: str, what: str, error_class: type[CellRayError]) -> None:
        self._folder, self._what, self._error_class = folder, what, error_class

    def now(self) -> str | None:
        """Return the digest of the version in use, None if there is none."""
        with self._at():
            names = self._names()
            return str(storage.read_json(storage.join(self._folder, names[-1]))["digest"]) if names else None

    def history(self) -> list[Change]:
        """Return the changes, oldest first."""
        with self._at():
            return [Change(**storage.read_json(storage.join(self._folder, name))) for name in self._names()]

    def move(self, action: str, choose: Callable[[list[Change]], str], reason: str) -> str:
        """Move to the digest that ``choose`` makes of the history, asked again whenever another writer was quicker."""
        for _ in range(_TRIES):
            history = self.history()
            digest = choose(history)
            number = history[-1].number + 1 if history else 1
            change = Change(number, action, digest, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", reason)
            with self._at():
                try:
                    data = (json.dumps(vars(change), indent=1) + "\n").encode()
                    storage.put_if_absent(storage.join(self._folder, f"{number:08d}.json"), data)
                except FileExistsError:
                    continue  # another writer was quicker: look again
                return digest
        msg = f"{self._what}: other writers kept moving the pointer; try again"
        raise self._error_class(msg)

    def before(self, history: Sequence[Change]) -> str:
        """Return the digest that a rollback goes to."""
        stack: list[str] = []
        for change in history:
            if change.action == "rollback":
                stack.pop()
            else:
                stack.append(change.digest)
        if len(stack) < 2:
            msg = f"{self._what}: no version was promoted before; there is nothing to go back to"
            raise self._error_class(msg)
        return stack[-2]

    def _names(self) -> list[str]:
        return [name for name in storage.list_files(self._folder) if name.endswith(".json")]

    def _at(self) -> AbstractContextManager[None]:
        # A change is a record: what else is in its file is of another format.
        return boundary(self._error_class, f"{self._what}, {self._folder}", ValueError, KeyError, TypeError)
