"""Decoding under which an answer is always a permutation: which tokens may come next.

Contract: a state machine over bytes, free of any engine. The model thinks freely until it closes its thoughts or its
budget is spent; then it can write nothing but offered candidates, none of them twice (``NONE`` as often as it likes),
in the official format, and ends. Candidates may be prefixes of one another, and cut by the tokenizer as it likes.

It costs one dictionary look-up for every beginning of every remaining text, not one for every subset of candidates.
"""

from collections.abc import Mapping, Sequence

from cellray.puzzles.puzzle import NONE, SEPARATOR

_CLOSE, _OPEN, _END = b"</think>", b"<answer>", b"</answer>"
_LONGEST_TAG = 64


class Vocabulary:
    """Tokens by their bytes; ``special`` ids are never written, ``end`` are those that end a text."""

    def __init__(self, tokens: Sequence[bytes], special: frozenset[int], end: frozenset[int]) -> None:
        self.bytes_of = list(tokens)
        self.end = sorted(end)
        self.ids: dict[bytes, list[int]] = {}
        for number, text in enumerate(tokens):
            if text and number not in special:
                self.ids.setdefault(text, []).append(number)
        self.longest = max(map(len, self.ids), default=1)

    def beginnings(self, text: bytes) -> list[int]:
        """Return the tokens that ``text`` begins with."""
        sizes = range(1, min(len(text), self.longest) + 1)
        return [number for size in sizes for number in self.ids.get(text[:size], ())]


class OneToOne:
    """The state of one answer: ``n`` items of ``candidates``, after at most ``budget`` tokens of thought.

    Raises
    ------
    ValueError
        If there are too few candidates.
    """

    def __init__(self, vocabulary: Vocabulary, candidates: Sequence[str], n: int, budget: int) -> None:
        if len(candidates) < n and NONE not in candidates:
            msg = f"one-to-one decoding: {len(candidates)} candidates for {n} cells"
            raise ValueError(msg)
        self._vocabulary, self._n, self._budget = vocabulary, n, budget
        self._left = [name.encode() for name in candidates]
        self._tail = b""  # of the free text
        self._forced: bytes | None = None  # what must be written before the answer
        self._item: bytes | None = None  # what there is of the current item, None outside the answer
        self._done = self._seen = 0

    @classmethod
    def of(cls, vocabulary: Vocabulary, wanted: Mapping[str, object]) -> "OneToOne":
        """Build from what a request carries: ``candidates``, ``n`` and ``budget``."""
        candidates, n, budget = wanted["candidates"], wanted["n"], wanted["budget"]
        if not isinstance(candidates, list | tuple) or not isinstance(n, int) or not isinstance(budget, int):
            msg = "one-to-one decoding needs candidates (a list), n and budget (whole numbers)"
            raise ValueError(msg)
        return cls(vocabulary, [str(name) for name in candidates], n, budget)

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self._done == self._n

    def read(self, tokens: Sequence[int]) -> None:
        """Follow all tokens written so far."""
        for token in tokens[self._seen :]:
            if token < 0:  # not known yet
                return
            self._seen += 1
            self._follow(self._vocabulary.bytes_of[token])

    def allowed(self) -> list[int] | None:
        """Return the tokens that may come next; None while thoughts are free (only the end is then forbidden)."""
        if self.finished:
            return self._vocabulary.end
        if self._item is not None:
            rests = (text[len(self._item) :] for text in self._targets() if text.startswith(self._item))
            return [token for rest in rests for token in self._vocabulary.beginnings(rest)]
        if self._forced is None and self._seen >= self._budget:
            self._forced = _CLOSE + b"\n" + _OPEN
        if self._forced is not None:
            return self._vocabulary.beginnings(self._forced)
        return None

    def _targets(self) -> list[bytes]:
        ending = _END if self._done + 1 == self._n else SEPARATOR.encode()
        return [name + ending for name in self._left]

    def _follow(self, text: bytes) -> None:
        if self.finished:
            return
        if self._item is not None:
            self._item += text
            for target in self._targets():
                if target == self._item:
                    name = target.removesuffix(_END).removesuffix(SEPARATOR.encode())
                    if name != NONE.encode():
                        self._left.remove(name)
                    self._done += 1
                    self._item = b""
                    return
        elif self._forced is not None:
            self._forced = self._forced.removeprefix(text)
            if not self._forced:
                self._item = b""
        else:
            self._think(text)

    def _think(self, text: bytes) -> None:
        tail = self._tail + text
        self._tail = tail[-_LONGEST_TAG:]
        if _OPEN in tail:
            rest = tail.split(_OPEN, 1)[1]
            # What the same token wrote behind the tag counts if an item begins so; else the answer is opened anew.
            if any(target.startswith(rest) for target in self._targets()):
                self._item = rest
            else:
                self._forced = _END + b"\n" + _OPEN
        elif _CLOSE in tail:
            wanted = b"\n" + _OPEN
            rest = tail.split(_CLOSE, 1)[1]
            self._forced = wanted.removeprefix(rest) if wanted.startswith(rest) else wanted
