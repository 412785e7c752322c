"""The one room that knows the order of the stages: ``run`` orders them, ``stream`` and ``finish`` are its two halves.

``stream`` takes shards of all datasets through reading, tokenising, encoding and writing as one Ray Data plan;
``finish`` takes one dataset from its written scores to labels, the annotated copy and the manifest, as one Ray task,
``refining`` being its first step. ``again`` does that second half once more for stored scores.
"""

from cellray.pipeline.again import refine_again
from cellray.pipeline.run import RunResult, annotate

__all__ = ["RunResult", "annotate", "refine_again"]
