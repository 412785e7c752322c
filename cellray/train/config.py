"""What a pre-training run may be told. Unknown fields are errors; the file is saved beside the model it made."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cellray.errors import SettingError, one_line


class Strict(BaseModel):
    """Settings that refuse what they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HoldOut(Strict):
    """Cells never trained on: a ``fraction`` by hash of the cell name, and the ``values`` of obs column ``key``."""

    fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    key: str | None = None
    values: tuple[str, ...] = ()


class TrainingSet(Strict):
    """One dataset: its file under the data folder and the obs column of labels (for LangCell Cell Ontology ids).

    Only scGPT takes a set without labels (None).
    """

    file: str
    label_key: str | None = "cell_type_ontology_id"
    hold_out: HoldOut = HoldOut()


class Sizes(Strict):
    """Sizes of one encoder."""

    hidden: Annotated[int, Field(ge=1)]
    layers: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    ffn: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class FromFile(Strict):
    """What a run reads from a YAML file."""

    @classmethod
    def read(cls, path: Path, **overrides: Any) -> Self:
        """Read a YAML file; anything wrong is a ``SettingError`` naming the file and the field."""
        try:
            values = yaml.safe_load(path.read_text())
            return cls(**{**values, **{key: value for key, value in overrides.items() if value is not None}})
        except ValidationError as error:
            first = error.errors()[0]
            msg = f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise SettingError(msg) from error
        except (OSError, yaml.YAMLError, TypeError) as error:
            msg = f"{path}: {one_line(error)}"
            raise SettingError(msg) from error


class Architecture(FromFile):
    """Which kind of model a configuration is of; the other fields are those of its class."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    architecture: Literal["langcell", "scgpt", "qwen2"] = "langcell"


class ScGPTPretrainConfig(FromFile):
    """Pre-training of a small scGPT-architecture base; an epoch is one pass over the training cells."""

    architecture: Literal["scgpt"]
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    sets: tuple[TrainingSet, ...]
    top_genes: Annotated[int, Field(ge=1, description="highly variable genes of each set; the model knows all")] = 1200
    sizes: Sizes
    n_bins: Annotated[int, Field(ge=3)] = 51
    epochs: Annotated[int, Field(ge=1)] = 8
    batch_cells: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    mask_share: Annotated[float, Field(ge=0, le=1, description="share of values masked")] = 0.15
    drops: Annotated[tuple[float, ...], Field(min_length=1, description="shares of a cell's genes left out")] = (
        0.15,
        0.4,
        0.6,
    )
    components: Annotated[int, Field(ge=1, description="principal components of expression that CLS predicts")] = 64
    masked_weight: Annotated[float, Field(ge=0)] = 0.3
    class_weight: Annotated[float, Field(ge=0)] = 0.2
    average_decay: Annotated[float, Field(ge=0, lt=1, description="of the average of weights; 0 keeps the last")] = 0.99


class PuzzleLMConfig(FromFile):
    """A small language model of puzzles from scratch; ``files`` are labelled datasets. An epoch has ``steps`` steps."""

    architecture: Literal["qwen2"]
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    files: tuple[str, ...]
    label_key: str = "cell_type"
    held_out: Annotated[float, Field(gt=0, lt=0.5, description="share of cells in validation, and in test")] = 0.1
    min_cells: Annotated[int, Field(ge=2)] = 3
    max_cells: Annotated[int, Field(ge=2)] = 10
    top_genes: Annotated[int, Field(ge=1)] = 24
    listed_genes: Annotated[int, Field(ge=1, description="genes of a cell that a puzzle's are drawn from")] = 40
    most_dropped: Annotated[float, Field(ge=0, lt=1, description="largest share of them left out")] = 0.4
    extra_share: Annotated[float, Field(ge=0, le=1, description="share of puzzles with candidates to spare")] = 0.2
    min_gene_cells: Annotated[int, Field(ge=1, description="a rarer gene has no token of its own")] = 32
    sizes: Sizes
    epochs: Annotated[int, Field(ge=1)] = 10
    steps: Annotated[int, Field(ge=1)] = 500
    batch_puzzles: Annotated[int, Field(ge=1)] = 8
    drawers: Annotated[int, Field(ge=0, description="processes that draw puzzles for a worker; 0: it does")] = 0
    validation_puzzles: Annotated[int, Field(ge=1, description="by which the epoch that is kept is chosen")] = 240
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class PretrainConfig(FromFile):
    """The whole run of a LangCell. ``steps`` are optimiser steps of ``batch_cells`` cells per worker."""

    architecture: Literal["langcell"] = "langcell"
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    sets: tuple[TrainingSet, ...]
    symbols: str | None = None
    min_gene_cells: Annotated[int, Field(ge=1)] = 10
    text_vocab: Annotated[int, Field(ge=1)] = 3000
    cell: Sizes
    text: Sizes
    steps: Annotated[int, Field(ge=1)]
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    batch_cells: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    average_decay: Annotated[float, Field(ge=0, lt=1, description="of the average of weights; 0 keeps the last")] = 0.99
    class_exponent: Annotated[float, Field(ge=0, le=1, description="0 balances classes fully, 1 keeps their sizes")] = (
        0.3
    )
    panel_share: Annotated[float, Field(ge=0, le=1, description="share of cells cut to a random gene panel")] = 0.7
    smallest_panel: Annotated[float, Field(gt=0, le=1)] = 0.04
    admixture: Annotated[float, Field(ge=0, le=1, description="most of another cell's genes mixed into a cell")] = 0.4
    programs_off: Annotated[float, Field(ge=0, le=1, description="share of cells that lose a gene program")] = 0.3
    programs_on: Annotated[float, Field(ge=0, le=1, description="share of cells that a gene program is added to")] = 0.4
    ancestor_share: Annotated[float, Field(ge=0, le=1, description="share of cells named by an ancestor term")] = 0.3
    mask_share: Annotated[float, Field(ge=0, le=1, description="share of genes masked in every second cell")] = 0.15
    masked_per_batch: Annotated[int, Field(ge=1)] = 512
    ctm_weight: Annotated[float, Field(ge=0)] = 1.0
    masked_weight: Annotated[float, Field(ge=0)] = 0.2
    checkpoint_steps: Annotated[int, Field(ge=1)] = 250
    matching_steps: Annotated[int, Field(ge=0, description="steps of the matching head alone, after the others")] = 0
    matching_learning_rate: Annotated[float, Field(gt=0)] = 2e-3

    @property
    def all_steps(self) -> int:
        """Steps of both phases."""
        return self.steps + self.matching_steps
