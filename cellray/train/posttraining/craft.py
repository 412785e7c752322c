"""CRAFT: the stages that teach a language model to reason about single cells, as settings and as dialogues.

Contract: a stage is supervised fine-tuning (``sft``) of the model that the stage before left, on answers with reasons,
direct answers, or both. Direct answers come from labelled datasets, read and put into sentences as ``cellray reason``
does, or from files of examples; answers with reasons from files alone: no reason is made up here. Files of examples
are those of the CellReasoner repository (``instruction``, ``input``, ``output``): JSON, JSON lines or Parquet.

Deviations from CellReasoner, whose learning rates, ranks, epochs and batches are not public:

1. All numbers are ours; ``jobs/configs/craft.yaml`` says which.
2. The prompt ends with the answer's opening (``<think>``) in training as it does in inference, and holds no other one.
3. The last stage replays a share of the direct examples before it, so that the direct mode is not lost.
4. Each stage's adapter is merged into the weights that the next stage starts from.
5. The mode decides the instruction; that of a record is not read.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from cellray import storage
from cellray.errors import InputError, boundary
from cellray.ingest import find_sources
from cellray.labels.spoken import LONGEST
from cellray.reasoner.form import GENES, SentenceForm
from cellray.reasoner.prompt import OPENINGS, THINK, THOUGHT, Mode, messages
from cellray.tokenize.sentence import Form
from cellray.train.config import FromFile, HoldOut, Strict
from cellray.train.posttraining.cells import LabelledCells, LabelledReading, rank_genes
from cellray.train.posttraining.config import Adapter, SFTConfig
from cellray.train.posttraining.examples import Dialogue

_FILES = (".json", ".jsonl", ".parquet")
_NAME = r"^[A-Za-z0-9._-]{1,64}$"


class Stage(Strict):
    """One stage. ``reasoned`` and ``direct`` are files of examples; ``direct`` also labelled datasets."""

    name: Annotated[str, Field(pattern=_NAME)]
    reasoned: tuple[str, ...] = ()
    direct: tuple[str, ...] = ()
    replay: Annotated[float, Field(ge=0, le=1, description="share of earlier stages' direct examples, again")] = 0.0
    learning_rate: Annotated[float, Field(gt=0)]
    epochs: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.reasoned and not self.direct:
            msg = f"stage {self.name!r} has nothing to learn; give reasoned or direct"
            raise ValueError(msg)
        return self


class CraftConfig(FromFile):
    """The whole course. A step is ``batch`` examples, times ``accumulate``, times workers."""

    name: Annotated[str, Field(pattern=_NAME)]
    model: Annotated[str, Field(description="Hugging Face model folder")]
    seed: int = 0
    adapter: Adapter | None = Adapter(rank=64, alpha=128, dropout=0.05)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    checkpointing: bool = False
    batch: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 8
    max_length: Annotated[int | None, Field(ge=16)] = 8192
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.03
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    save_steps: Annotated[int | None, Field(ge=1)] = None
    form: Form | None = None
    genes: Annotated[int | None, Field(ge=1, description="of a sentence, at most; None: the model's, or 1,000")] = None
    ranked_genes: Annotated[str | None, Field(description="file of the ranked list, for hvg_rank")] = None
    ranked_from_cells: Annotated[int | None, Field(ge=1, description="or genes of a list made of training cells")] = (
        None
    )
    label_key: str = "cell_type"
    layer: str | None = None
    gene_key: str | None = None
    min_genes: Annotated[int, Field(ge=1)] = 20
    hold_out: Annotated[HoldOut, Field(description="cells of labelled datasets that are never trained on")] = HoldOut()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _stages(self) -> Self:
        twice = [name for name, n in Counter(stage.name for stage in self.stages).items() if n > 1]
        if self.ranked_from_cells is not None and (self.ranked_genes is not None or self.form == "expr_rank"):
            msg = "ranked_from_cells makes the list of hvg_rank; leave ranked_genes and form expr_rank away"
            raise ValueError(msg)
        if twice or self.stages[0].replay:
            msg = f"stage {twice[0]!r} is there twice" if twice else "the first stage has nothing to replay"
            raise ValueError(msg)
        return self

    def sentence_form(self) -> SentenceForm:
        """Return how cells are put into sentences; reads the training cells if the list is to be made of them."""
        if self.ranked_from_cells is None:
            return SentenceForm.of(self.model, form=self.form, genes=self.genes, ranked_genes=self.ranked_genes)
        uris = [uri for stage in self.stages for uri in stage.direct if not uri.endswith(_FILES)]
        ranked = rank_genes(_datasets(uris, self), self.ranked_from_cells)
        return SentenceForm(form="hvg_rank", genes=self.genes or GENES, ranked=ranked)

    def sft(self, stage: Stage, model: str) -> SFTConfig:
        """Return the settings of fine-tuning ``model`` in ``stage``."""
        shared = self.model_dump(
            include={"seed", "dtype", "checkpointing", "batch", "accumulate", "max_length", "warm_up", "save_steps"}
        )
        return SFTConfig(
            name=f"{self.name}-{stage.name}"[:64],
            model=model,
            adapter=self.adapter,
            validation=self.validation,
            learning_rate=stage.learning_rate,
            epochs=stage.epochs,
            **shared,
        )


@dataclass
class Lessons:
    """What each stage teaches, and the cells of labelled datasets that were left out, by reason."""

    stages: list[list[Dialogue]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def lessons(config: CraftConfig, form: SentenceForm) -> Lessons:
    """Read what all stages teach, before any of them starts.

    Raises
    ------
    InputError
        If a file holds no examples of its kind. Dataset errors if a dataset cannot be read.
    """
    found = Lessons()
    earlier: list[Dialogue] = []
    for number, stage in enumerate(config.stages):
        reasoned = [one for uri in stage.reasoned for one in read_examples(uri, "reasoning")]
        direct = [one for uri in stage.direct for one in _direct(uri, config, form, found.left_out)]
        rng = np.random.default_rng([config.seed, number])
        again = rng.permutation(len(earlier))[: round(stage.replay * len(earlier))]
        found.stages.append([*reasoned, *direct, *(earlier[at] for at in np.sort(again))])
        earlier += direct
    return found


def lesson(sentence: str, label: str, reasons: str | None = None) -> Dialogue:
    """Return what a cell teaches: its label, behind reasons if there are any."""
    mode: Mode = "direct" if reasons is None else "reasoning"
    said = label if reasons is None else f"{reasons}{THOUGHT}\n{label}"
    return Dialogue(messages(sentence, mode), said, OPENINGS[mode])


def read_examples(uri: str, mode: Mode) -> list[Dialogue]:
    """Read a file of examples, all of one mode.

    Raises
    ------
    InputError
        If it cannot be read, or a record is not of that mode.
    """
    with boundary(InputError, f"examples {uri}", ValueError):
        if uri.endswith(".parquet"):
            with storage.open_read(uri) as file:
                rows: Any = pq.read_table(file).to_pylist()
        else:
            text = storage.read_bytes(uri).decode()
            rows = [json.loads(line) for line in text.splitlines()] if uri.endswith(".jsonl") else json.loads(text)
    if not isinstance(rows, list) or not rows:
        msg = f"examples {uri}: no list of records with input and output"
        raise InputError(msg)
    return [_example(uri, number, row, mode) for number, row in enumerate(rows)]


def _example(uri: str, number: int, row: Any, mode: Mode) -> Dialogue:
    known = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("input", "output"))
    sentence, output = (row["input"].strip(), row["output"].strip()) if known else ("", "")
    before, thought, label = output.rpartition(THOUGHT)
    reasons, label = before.replace(THINK, "").replace(THOUGHT, "").strip(), label.strip()
    wrong = ""
    if not sentence or not label or len(label) > LONGEST or "\n" in label:
        wrong = "needs input, a line of genes, and output, which ends with a cell type"
    elif mode == "reasoning" and not (thought and reasons):
        wrong = f"has no reasons before {THOUGHT}; list the file under direct"
    elif mode == "direct" and thought:
        wrong = f"holds {THOUGHT}; list the file under reasoned"
    if wrong:
        msg = f"examples {uri}: record {number} {wrong}"
        raise InputError(msg)
    return lesson(sentence, label, reasons if mode == "reasoning" else None)


def _direct(uri: str, config: CraftConfig, form: SentenceForm, left_out: Counter[str]) -> list[Dialogue]:
    if uri.endswith(_FILES):
        return read_examples(uri, "direct")
    found = []
    for dataset in _datasets([uri], config):
        for shard in dataset.shards(form):
            found += [lesson(*one) for one in zip(shard.sentences, shard.labels, strict=True)]
        left_out.update(dataset.left_out)
    return found


def _datasets(uris: Sequence[str], config: CraftConfig) -> list[LabelledCells]:
    reading = LabelledReading(config.label_key, config.layer, config.gene_key, config.min_genes, config.hold_out)
    return [LabelledCells(source, reading) for source in find_sources(uris)]
