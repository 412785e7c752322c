"""Refinement alone: the scores of an earlier run, other refinement settings, a new output folder.

Contract: the new folder is as whole as the first: the score files are copied, everything after them is made anew, and
the encoder is never started. The inputs must still be where they were, with the same content, for counts are read
again. The first folder is not changed.
"""

from typing import Any

from cellray import manifest as manifests
from cellray import schema, storage
from cellray.errors import InputError, SettingError, one_line
from cellray.ingest import find_sources
from cellray.pipeline.progress import Progress
from cellray.pipeline.run import RunResult, annotate
from cellray.settings import AnnotateSettings, RefineSettings
from cellray.targets import check_run


def refine_again(scored: str, out: str, changes: dict[str, Any], progress: Progress | None = None) -> RunResult:
    """Refine the stored scores of the output folder ``scored`` into ``out``.

    Parameters
    ----------
    scored, out
        Two output folders, local or ``s3://``.
    changes
        Settings of refinement, and where to run; what is not said has its default, whatever the first run had.

    Raises
    ------
    SettingError
        If ``scored`` is no output folder, ``out`` is the same one, or a setting is wrong.
    """
    try:
        info = storage.read_json(storage.join(scored, schema.RUN_FILE))
    except (OSError, ValueError) as error:
        msg = f"{scored!r} is no output folder of cellray annotate: {one_line(error)}"
        raise InputError(msg) from error
    if info["settings"].get("task") == "embed":
        msg = f"{scored!r} holds embeddings and no scores; run cellray annotate first"
        raise InputError(msg)
    if storage.absolute(scored) == storage.absolute(out):
        msg = f"refinement goes into a new folder; --out {out!r} is the one that the scores are in"
        raise SettingError(msg)
    fresh = {**RefineSettings().model_dump(), "encoders": None, "out": out}
    settings = AnnotateSettings.checked(**{**info["settings"], **fresh, **changes})
    check_run(out, find_sources(settings.inputs, settings.genome))
    for dataset_id in info["datasets"]:
        _copy_scores(
            storage.join(scored, schema.DATASETS_DIR, dataset_id), storage.join(out, schema.DATASETS_DIR, dataset_id)
        )
    return annotate(settings, progress, encode=False)


def _copy_scores(source: str, target: str) -> None:
    """Copy the parts that the dataset's manifest names; a dataset that was never finished has none to trust."""
    if not storage.exists(storage.join(source, schema.SUCCESS_FILE)):
        return
    there = set(storage.list_files(storage.join(target, schema.SCORES_DIR)))
    for shard in manifests.read(source).shards:
        if shard.name not in there:
            storage.copy(*(storage.join(folder, schema.SCORES_DIR, shard.name) for folder in (source, target)))
