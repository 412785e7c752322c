"""How far workers are within a shard and a dataset, from them to the driver's display.

Contract: workers write small notes into the key-value store that every Ray has, one key an encoder and one a dataset
being finished, and the driver reads them once a second in a thread of its own. It is for show: a note that is lost,
late or of a worker that has died changes a display for a moment and nothing else, and no error of it is heard of.

Verified against Ray 2.60, whose store (``ray.experimental.internal_kv``) is that of its head, reached from every node.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.experimental import internal_kv

from cellray.pipeline.progress import Progress
from cellray.pipeline.stages import FINISHING, listening

_NAMESPACE = b"cellray"
_NOTE_EVERY_S = 0.5
_LOOK_EVERY_S = 1.0


class Notes:
    """A worker's side: what ``name`` (an encoder, a dataset) is doing; it travels to the worker."""

    def __init__(self, run: str, name: str) -> None:
        self.key = f"{run}/{name}".encode()
        self._last = 0.0

    def write(self, note: list[Any], *, at_once: bool = False) -> None:
        """Replace the note, twice a second at most unless ``at_once``."""
        now = time.monotonic()
        if at_once or now - self._last >= _NOTE_EVERY_S:
            self._last = now
            with suppress(Exception):
                internal_kv._internal_kv_put(self.key, json.dumps(note).encode(), overwrite=True, namespace=_NAMESPACE)


def encoder_notes(run: str) -> Notes:
    """Return the notes of the encoder in this worker."""
    return Notes(run, f"encoder-{secrets.token_hex(8)}")


@contextmanager
def finishing(run: str, dataset_id: str) -> Iterator[None]:
    """Note the stages that a dataset enters inside."""
    notes = Notes(run, f"dataset-{dataset_id}")
    with listening(lambda name: notes.write(["stage", dataset_id, name], at_once=True)):
        yield


def counted(encode: Callable[..., Any], notes: Notes, shard: Callable[[], tuple[int, int]]) -> Callable[..., Any]:
    """Return an encoder's ``encode``, which notes after each batch how many cells of ``shard`` it has encoded."""
    at: tuple[int, int] | None = None
    n_cells = 0

    def encode_and_note(columns: Any, offsets: Any, rows: Any) -> Any:
        nonlocal at, n_cells
        numbers = encode(columns, offsets, rows)
        if shard() != at:
            at, n_cells = shard(), 0
        n_cells += len(rows)
        notes.write(["shard", *at, n_cells])
        return numbers

    return encode_and_note


class Tally:
    """The driver's side: puts what the workers note on a display."""

    def __init__(self, progress: Progress) -> None:
        self.run = f"run-{secrets.token_hex(8)}"
        self._progress = progress
        self._lock = threading.Lock()
        self._ended: set[tuple[int, int]] = set()
        self._hand: dict[tuple[int, int], int] = {}
        self._active: set[str] = set()
        self._encoding = False
        self._shown = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the notes while inside, and remove them in the end."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(_LOOK_EVERY_S):
                with suppress(Exception):
                    self._look()

        thread = threading.Thread(target=look, name="cellray-tally", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(2 * _LOOK_EVERY_S)
            with suppress(Exception):
                internal_kv._internal_kv_del(f"{self.run}/".encode(), del_by_prefix=True, namespace=_NAMESPACE)

    def encoding(self, name: str | None) -> None:
        """Say that shards are streamed, in the stage ``name``, or with None that they no longer are."""
        with self._lock:
            self._encoding = name is not None
        if name is not None:
            self._progress.stage(name)

    def ended(self, dataset: int, start: int, n_cells: int, *, scored: bool) -> None:
        """Count a shard that has come out, the cells of which are scored or will not be."""
        with self._lock:
            self._ended.add((dataset, start))
            self._hand.pop((dataset, start), None)
            if scored:
                self._progress.advance(n_cells)
            else:
                self._progress.leave_out(n_cells)

    def finish(self, dataset_id: str) -> None:
        """Say that a dataset's last tasks begin."""
        with self._lock:
            self._active.add(dataset_id)

    def finished(self, dataset_id: str) -> None:
        """Say that they have ended."""
        with self._lock:
            self._active.discard(dataset_id)
        with suppress(Exception):
            internal_kv._internal_kv_del(Notes(self.run, f"dataset-{dataset_id}").key, namespace=_NAMESPACE)

    def _look(self) -> None:
        found = internal_kv._internal_kv_list(f"{self.run}/".encode(), namespace=_NAMESPACE)
        notes = [internal_kv._internal_kv_get(key, namespace=_NAMESPACE) for key in found]
        known = [json.loads(note) for note in notes if note]
        with self._lock:
            for kind, *told in known:
                if kind == "shard" and (told[0], told[1]) not in self._ended:
                    # A shard that a lost encoder had begun and another does again is counted once, and one that is
                    # being written is kept although its encoder is at the next.
                    self._hand[told[0], told[1]] = max(told[2], self._hand.get((told[0], told[1]), 0))
            if self._encoding:
                self._progress.in_hand(sum(self._hand.values()))
            else:
                self._show([told[1] for kind, *told in known if kind == "stage" and told[0] in self._active])

    def _show(self, stages: list[str]) -> None:
        """Show the earliest stage that a dataset is in; it goes forward only, so that logs stay short."""
        behind = FINISHING.index(self._shown) if self._shown else -1
        first = min((FINISHING.index(name) for name in stages if name in FINISHING), default=-1)
        if first > behind:
            self._shown = FINISHING[first]
            self._progress.stage(self._shown)
