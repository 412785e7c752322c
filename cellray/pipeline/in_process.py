"""An AnnData in memory, annotated or embedded in this process: the stages of a run in their order, without Ray.

Contract: labels are those of a run over a file with the same cells. Shards follow one another and lie in a temporary
folder, so that memory is that of one shard beside the object, and of refinement. The object is changed at the very end
and only if all went well; its matrices never are. It neither starts nor imports Ray, and leaves nothing on the disk.
"""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from cellray import schema, storage
from cellray.errors import EncodeError, InternalError, ReadError, SettingError, boundary
from cellray.ingest import DatasetPlan, GeneIndex
from cellray.ingest.memory import AnnDataSource
from cellray.manifest import Manifest, ShardRecord
from cellray.models import checkpoints
from cellray.pipeline import stages
from cellray.pipeline.finish import Concluded, Finishing, conclude, conclude_embedding, label
from cellray.pipeline.order import WorkOrder
from cellray.pipeline.progress import Logged, Progress, Silent
from cellray.pipeline.run import DatasetRun, check_length, counts_only, inspect_all, label_set, plugin_labels
from cellray.pipeline.scoring import open_scorer, token_shard
from cellray.plugins.router import Chosen
from cellray.scratch import Scratch
from cellray.settings import AnnotateSettings

if TYPE_CHECKING:
    from anndata import AnnData

MAX_CELLS: Final = 100_000
DATASET_ID: Final = "adata"


def annotate_adata(adata: "AnnData", settings: AnnotateSettings, progress: Progress | None = None) -> Manifest:
    """Annotate, or embed, the cells of ``adata``; labels, embedding and record go into it.

    Parameters
    ----------
    adata
        At most ``MAX_CELLS`` cells.
    settings
        Of the run; ``inputs`` and ``out`` are not looked at.
    progress
        Where cells are counted.

    Raises
    ------
    SettingError
        If there are too many cells, or something that only a run on Ray can do is asked for.
    CellRayError
        As of a dataset of a run; NoLabelError if all cells were rejected.
    """
    from cellray.write import annotate_adata as write

    _check(adata, settings)
    progress = Logged(progress or Silent())
    with Scratch("annotate") as scratch, stages.listening(progress.stage):
        concluded, told = _work(adata, settings.model_copy(update={"out": str(scratch.path)}), progress)
        stages.entering(stages.WRITING)
        write(adata, concluded.results)
    for line in told(concluded.manifest):
        progress.say(line)
    return concluded.manifest


def _check(adata: "AnnData", settings: AnnotateSettings) -> None:
    if adata.n_obs > MAX_CELLS:
        msg = (
            f"{adata.n_obs:,} cells are more than the {MAX_CELLS:,} that are annotated in this process; save them and "
            "annotate the file: adata.write_h5ad('cells.h5ad'), cellray.annotate('cells.h5ad', out='FOLDER')"
        )
        raise SettingError(msg)
    if adata.isbacked and adata.is_view:
        msg = "a view of a backed AnnData cannot take labels; load it first: adata.to_memory()"
        raise SettingError(msg)
    for name in ("reason", "address", "encoders"):
        if getattr(settings, name) is not None:
            msg = (
                f"setting {name!r}: it is of runs on Ray, and an AnnData is annotated in this process; leave it away, "
                "or save the cells and annotate the file: cellray.annotate('cells.h5ad', out='FOLDER')"
            )
            raise SettingError(msg)


def _work(
    adata: "AnnData", settings: AnnotateSettings, progress: Progress
) -> tuple[Concluded, Callable[[Manifest], Any]]:
    """Return what the dataset came to, and what says so in lines."""
    checkpoint = checkpoints.load(settings.model)
    check_length(settings, checkpoint)
    chosen = None if settings.plugins is None else Chosen.of(settings.plugins, settings.tissue)
    labels = label_set(settings, checkpoint) if chosen is None else plugin_labels(settings, checkpoint, chosen)
    genes = GeneIndex(checkpoint.genes, checkpoint.symbols)
    source = AnnDataSource.of(adata, DATASET_ID, settings.genome)
    plans, errors = inspect_all([source], genes, settings, labels, progress, integers=counts_only(settings, checkpoint))
    for error in errors.values():
        if isinstance(error, InternalError):
            error.add_note(error.trace)
        raise error
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    run = DatasetRun(settings, run_id, checkpoint, labels, chosen, "", progress, encode=True)
    job = _scored(run.order, plans[0], progress)
    if not labels:
        return conclude_embedding(job), run.told
    stages.entering(stages.REFINING)
    return conclude(label(job, view=False)), run.told


def _scored(order: WorkOrder, plan: DatasetPlan, progress: Progress) -> Finishing:
    """Score all shards, one after another."""
    from cellray.write import part_name, write_part

    scoring = order.scoring
    folder = storage.join(order.folder(plan.source.dataset_id), schema.SCORES_DIR)
    seconds = dict.fromkeys(("read", "encode", "write"), 0.0)
    shards = []
    progress.start(plan.n_cells, 0)
    progress.stage(stages.ENCODING)
    scorer = open_scorer(scoring)
    scorer.encode = _counting(scorer.encode, progress)  # type: ignore[method-assign]
    for start in range(0, plan.n_cells, order.shard_cells):
        stop = min(start + order.shard_cells, plan.n_cells)
        rows, began = f"rows {start}-{stop}", perf_counter()
        with boundary(ReadError, rows):
            tokens = token_shard(plan, start, stop, tokenizer=scoring.tokenizer, min_genes=scoring.min_genes)
        read = perf_counter()
        with boundary(EncodeError, rows):
            scores = scorer.score(tokens)
        encoded = perf_counter()
        name = part_name(plan.content_hash, start, stop, order.scoring_key)
        digest = write_part(storage.join(folder, name), scores, scoring.labels)
        shards.append(ShardRecord(name=name, start=start, stop=stop, sha256=digest))
        seconds["read"] += read - began
        seconds["encode"] += encoded - read
        seconds["write"] += perf_counter() - encoded
        progress.in_hand(0)
        progress.advance(stop - start)
    return Finishing(order, plan, tuple(shards), seconds)


def _counting(encode: Callable[..., Any], progress: Progress) -> Callable[..., Any]:
    """Return an encoder's ``encode``, which shows after each batch how many cells of the shard are done."""
    n_cells = 0
    known: Any = None

    def encode_and_count(columns: Any, offsets: Any, rows: Any) -> Any:
        nonlocal n_cells, known
        numbers = encode(columns, offsets, rows)
        if known is not offsets:  # another shard
            known, n_cells = offsets, 0
        n_cells += len(rows)
        progress.in_hand(n_cells)
        return numbers

    return encode_and_count
