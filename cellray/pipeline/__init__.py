"""The one room that knows the order of the stages: ``run`` orders them, ``stream`` and ``finish`` are its two halves.

``stream`` takes shards of all datasets through reading, tokenising, encoding and writing as one Ray Data plan;
``finish`` takes one dataset from its written scores to labels, the annotated copy and the manifest, as one Ray task,
``refining`` being its first step. ``again`` does that second half once more for stored scores.

Workers import this package for their stage alone, so what the driver needs, torch among it, comes when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellray.pipeline.again import refine_again
    from cellray.pipeline.run import RunResult, annotate

_FROM = {"refine_again": "again", "RunResult": "run", "annotate": "run"}

__all__ = ["RunResult", "annotate", "refine_again"]


def __getattr__(name: str) -> object:
    """Import a public name from its module; see PEP 562."""
    if name not in _FROM:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
