"""The one room that knows the order of the stages: ``run`` orders them, ``stream`` and ``finish`` are its two halves.

``stream`` takes shards of all datasets through reading, tokenising, encoding and writing as one Ray Data plan;
``finish`` takes one dataset from its written scores to labels, the annotated copy and the manifest, as one Ray task.
"""

from cellray.pipeline.run import RunResult, annotate

__all__ = ["RunResult", "annotate"]
