"""What every step of GRPO was like: a row a step, in Parquet and for TensorBoard.

Contract: rows travel with the checkpoint, so a run that is resumed has each step once. Events for TensorBoard are
written as they happen; what a resumed run repeats replaces what was there.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FILE = "metrics.parquet"
PROMPTS = "prompts"


class Metrics:
    """The rows so far; ``folder`` receives events, None none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Any = None
        self.rows: list[dict[str, Any]] = []

    def add(self, step: int, values: dict[str, float], prompts: list[str]) -> None:
        """Add the row of a step, from 0; ``prompts`` are the keys of what was asked."""
        self.rows.append({"step": step, **values, PROMPTS: prompts})
        if self._folder is not None:
            if self._writer is None:
                from tensorboardX import SummaryWriter

                self._writer = SummaryWriter(str(self._folder), purge_step=step)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def save(self, folder: Path) -> None:
        """Write the rows into the folder of a checkpoint."""
        pq.write_table(pa.Table.from_pylist(self.rows), folder / FILE, compression="zstd")

    def load(self, folder: Path) -> None:
        """Read the rows of a checkpoint."""
        self.rows = pq.read_table(folder / FILE).to_pylist()
