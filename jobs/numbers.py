"""Numbers on a job's command line: each option has its range, and a value outside of it is a usage error.

Contract: ``number(kind, low, high)`` is a ``type`` for ``argparse``; the message names the value and the range, and the
exit code is 2. Nothing is read from the environment.
"""

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def number(
    kind: type[_Number], low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> Callable[[str], _Number]:
    """Return a parser of numbers from ``low`` to ``high``; with ``above`` they must be above ``low``."""

    def parse(text: str) -> _Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
            fits = False
        else:
            fits = math.isfinite(value) and (value > low if above else value >= low) and value <= high
        if not fits:
            what = "a whole number" if kind is int else "a number"
            bounds = [f"{'above' if above else 'at least'} {low:g}"] if math.isfinite(low) else []
            bounds += [f"at most {high:g}"] if math.isfinite(high) else []
            msg = f"{text!r} is not {what} of {' and '.join(bounds)}" if bounds else f"{text!r} is not {what}"
            raise argparse.ArgumentTypeError(msg)
        return value

    return parse


count = number(int, 1)
seed = number(int, 0, 2**32 - 1)
amount = number(float, 0)
positive = number(float, 0, above=True)
share = number(float, 0, 1)
inner_share = number(float, 0, 0.99, above=True)
port = number(int, 1, 65_535)
