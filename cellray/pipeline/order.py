"""What the stages of a run are told: plain data that travels to the workers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cellray import schema, storage
from cellray.settings import AnnotateSettings
from cellray.tokenize.tokenizers import Tokenizer

if TYPE_CHECKING:
    from cellray.plugins.router import Chosen


@dataclass(frozen=True)
class Scoring:
    """What scores a cell: the model's folder and tokenizer, and the labels with their texts; without any it embeds.

    ``embedding_key`` and ``embedding_width`` say where embeddings go and how wide they are; ``max_tokens`` is None for
    the model's own; ``plugins`` are those that score instead of the model alone.
    """

    model: str
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    alpha: float
    batch_tokens: int
    min_genes: int
    embedding_key: str
    embedding_width: int
    ctm_top_k: int | None = None
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    max_tokens: int | None = None
    plugins: "Chosen | None" = None


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
    refining: AnnotateSettings
    versions: dict[str, str]
    record: dict[str, Any]

    def folder(self, dataset_id: str) -> str:
        """Return the folder that receives a dataset's results."""
        return storage.join(self.out, schema.DATASETS_DIR, dataset_id)
