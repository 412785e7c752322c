"""What a run counts for those who watch a cluster: Ray exports it to Prometheus on every node, as ``ray_cellray_...``.

It counts what this run did, not what an earlier one left.
"""

from ray.util.metrics import Counter

from cellray.manifest import Manifest


class Meters:
    """Counters of one run."""

    def __init__(self) -> None:
        self._cells = Counter("cellray_annotated_cells", "Cells scored, rejected ones included")
        self._rejected = Counter("cellray_rejected_cells", "Cells rejected, by reason", tag_keys=("code",))
        self._datasets = Counter("cellray_datasets", "Datasets by what became of them", tag_keys=("state",))

    def scored(self, n_cells: int) -> None:
        """Count the cells of a shard."""
        if n_cells:
            self._cells.inc(n_cells)

    def ended(self, outcome: object) -> None:
        """Count a dataset: a manifest, or the error that stopped it."""
        finished = isinstance(outcome, Manifest)
        self._datasets.inc(tags={"state": "finished" if finished else "failed"})
        if isinstance(outcome, Manifest):
            for code, n_cells in outcome.rejects.items():
                self._rejected.inc(n_cells, tags={"code": code})
