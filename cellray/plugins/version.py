"""A plugin version: what it holds and when that is wrong.

::

    adapter_config.json         PEFT's form: type, sizes, base and its digest, task, tissue, parent
    adapter_model.safetensors   weights of experts and head (float32)
    labels.json                 names and Cell Ontology ids of the classes in use, in their order; the rest is reserved
    thresholds.json             score of each class below which a label is doubtful
    metrics.json                what training and gate measured
    replay.parquet              training cells that are shown again when a class is added   (schema.labelled_cells)
    held_out.parquet            cells never trained on, which later versions are judged by

Contract: files are bytes here; where they lie, and that they are the ones that were written, is the registry's business
(``cellray.plugins.registry``). Whatever does not fit is a ``ValueError`` that names the file, tensor or field.
"""

import io
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as serialise

from cellray import schema
from cellray.models.moe_lora import MoELoRAConfig, Plugin
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.models.state import State, check_state, loaded
from cellray.tokenize.cells import Cells

CONFIG, WEIGHTS, LABELS = "adapter_config.json", "adapter_model.safetensors", "labels.json"
THRESHOLDS, METRICS, REPLAY, HELD_OUT = "thresholds.json", "metrics.json", "replay.parquet", "held_out.parquet"
FILES = (CONFIG, WEIGHTS, LABELS, THRESHOLDS, METRICS, REPLAY, HELD_OUT)
TASKS = ("cells", "tissue")

_MOST = {"n_experts": 64, "rank": 256, "n_classes": 10_000, "class_layers": 8, "hidden_size": 8192, "num_layers": 128}
_NAMES = {"r": "rank", "lora_alpha": "alpha", "num_experts": "n_experts"}  # PEFT's names of ours


@dataclass(frozen=True)
class PluginCheckpoint:
    """A plugin with what belongs to it.

    Attributes
    ----------
    task, tissue
        ``cells`` of a tissue, or ``tissue``: which tissue a cell is from.
    base, base_digest
        Name and digest of the model folder that it was trained on, and works with.
    config, state
        Sizes and weights.
    labels
        Dicts with ``name`` and ``term_id``, one a class in use.
    thresholds
        One number a class in use.
    metrics
        JSON values.
    replay, held_out
        Training cells shown again, and cells to be judged by.
    parent
        Version that this one was made from, or "".
    """

    task: str
    tissue: str
    base: str
    base_digest: str
    config: MoELoRAConfig
    state: State
    labels: list[dict[str, str]]
    thresholds: list[float]
    metrics: dict[str, Any]
    replay: Cells
    held_out: Cells
    parent: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the classes in use."""
        return [label["name"] for label in self.labels]

    def build(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Plugin:
        """Return the plugin in evaluation mode on ``device``, all but its head in ``dtype``."""
        return cast("Plugin", loaded(lambda: Plugin(self.config, len(self.labels)), self.state, device, dtype))

    def on(self, base: ScGPTCheckpoint) -> Self:
        """Return this plugin if it belongs to ``base``; otherwise a ``ValueError``."""
        if self.base_digest != base.digest:
            msg = (
                f"plugin {self.tissue!r} was trained on base {self.base!r} (digest {self.base_digest[:12]}), "
                f"not on {base.name!r} (digest {base.digest[:12]}); give the model that it belongs to"
            )
            raise ValueError(msg)
        sizes = (self.config.hidden_size, self.config.num_layers)
        if sizes != (base.config.hidden_size, base.config.num_layers):
            msg = f"plugin {self.tissue!r}: width and layers are {sizes}, not those of base {base.name!r}"
            raise ValueError(msg)
        return self

    def changed(self, **what: Any) -> Self:
        """Return a copy with other fields."""
        return replace(self, **what)

    def files(self) -> dict[str, bytes]:
        """Return the content of every file."""
        sizes = asdict(self.config)
        config = {
            "peft_type": "MOE_LORA",
            "task_type": "SEQ_CLS",
            "target_modules": ["in_proj"],
            "modules_to_save": ["cls_decoder"],
            **{name: sizes.pop(ours) for name, ours in _NAMES.items()},
            **sizes,
            "base_model_name_or_path": self.base,
            "base_digest": self.base_digest,
            "task": self.task,
            "tissue": self.tissue,
            "parent": self.parent,
        }
        tensors = {name: tensor.float().contiguous() for name, tensor in self.state.items()}
        return {
            CONFIG: _json(config),
            WEIGHTS: serialise(tensors, metadata={"format": "pt"}),
            LABELS: _json(self.labels),
            THRESHOLDS: _json(self.thresholds),
            METRICS: _json(self.metrics),
            REPLAY: _parquet(self.replay.table()),
            HELD_OUT: _parquet(self.held_out.table()),
        }

    @classmethod
    def of_files(cls, files: dict[str, bytes]) -> Self:
        """Read and check what ``files`` returned."""
        name = CONFIG
        try:
            raw = json.loads(files[CONFIG])
            config = _config(raw)
            name = LABELS
            labels = [{"name": str(one["name"]), "term_id": str(one["term_id"])} for one in json.loads(files[LABELS])]
            name = THRESHOLDS
            thresholds = [float(one) for one in json.loads(files[THRESHOLDS])]
            name = METRICS
            metrics = dict(json.loads(files[METRICS]))
            name = REPLAY
            replay = _cells(files[REPLAY])
            name = HELD_OUT
            held_out = _cells(files[HELD_OUT])
            name = WEIGHTS
            state = read_tensors(files[WEIGHTS])
            check_state(state, lambda: Plugin(config, len(labels)))
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, pa.ArrowException) as error:
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
            msg = f"{name}: {what}"
            raise ValueError(msg) from error
        found = cls(
            str(raw["task"]),
            str(raw["tissue"]),
            str(raw["base_model_name_or_path"]),
            str(raw["base_digest"]),
            config,
            state,
            labels,
            thresholds,
            metrics,
            replay,
            held_out,
            str(raw["parent"]),
        )
        found.check()
        return found

    def check(self) -> None:
        """Raise ``ValueError`` if labels, thresholds and sizes do not fit together."""
        if self.task not in TASKS:
            msg = f"{CONFIG}: task {self.task!r} is not one of {list(TASKS)}"
            raise ValueError(msg)
        if not 2 <= len(self.labels) <= self.config.n_classes:
            msg = f"{LABELS}: {len(self.labels)} labels; the head has room for 2 to {self.config.n_classes}"
            raise ValueError(msg)
        if len(set(self.names)) != len(self.names) or len(self.thresholds) != len(self.labels):
            msg = f"{LABELS}: a name is there twice, or {THRESHOLDS} has not as many entries"
            raise ValueError(msg)
        for what, cells in ((REPLAY, self.replay), (HELD_OUT, self.held_out)):
            if strange := sorted(set(cells.labels.tolist()) - set(self.names)):
                msg = f"{what}: label {strange[0]!r} is no class of the plugin"
                raise ValueError(msg)


def _config(raw: dict[str, Any]) -> MoELoRAConfig:
    if raw["peft_type"] != "MOE_LORA":
        msg = f"peft_type is {raw['peft_type']!r}, not 'MOE_LORA'"
        raise ValueError(msg)
    theirs = {ours: name for name, ours in _NAMES.items()}
    values = {field.name: raw[theirs.get(field.name, field.name)] for field in fields(MoELoRAConfig)}
    for name, most in _MOST.items():
        if not isinstance(values[name], int) or not 1 <= values[name] <= most:
            msg = f"{theirs.get(name, name)} is {values[name]!r}; it must be a whole number from 1 to {most}"
            raise ValueError(msg)
    values["alpha"] = float(values["alpha"])
    return MoELoRAConfig(**values)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _cells(data: bytes) -> Cells:
    table = pq.read_table(io.BytesIO(data))
    if table.schema.names != schema.labelled_cells().names:
        msg = f"columns are {table.schema.names}, not {schema.labelled_cells().names}"
        raise ValueError(msg)
    return Cells.of_table(table.cast(schema.labelled_cells()))
