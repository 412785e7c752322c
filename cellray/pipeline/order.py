"""What the stages of a run are told: plain data that travels to the workers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cellray import schema, storage
from cellray.settings import RefineSettings


@dataclass(frozen=True)
class Scoring:
    """What scores a cell: the model's folder, gene tokens and medians by slot, and the labels with their texts."""

    model: str
    tokens: np.ndarray
    medians: np.ndarray
    max_genes: int
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    alpha: float
    batch_tokens: int
    min_genes: int


@dataclass(frozen=True)
class WorkOrder:
    """What a run does to every dataset; ``record`` goes into ``uns``. Without ``encode`` all scores must be there."""

    out: str
    shard_cells: int
    encode: bool
    encoders: int | None
    scoring: Scoring
    label_ids: tuple[str, ...]
    scoring_key: str
    refining_key: str
    refining: RefineSettings
    versions: dict[str, str]
    record: dict[str, Any]

    def folder(self, dataset_id: str) -> str:
        """Return the folder that receives a dataset's results."""
        return storage.join(self.out, schema.DATASETS_DIR, dataset_id)
