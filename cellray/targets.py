"""Whether what a verb or job would write replaces a file that is not its own; asked before any work.

Contract: a target is refused when it is an input (the same file, links followed) or when it exists and nothing in its
folder says that CellRay wrote it. A run says so by ``run.json`` and its ``datasets`` folder; all others by a list of
their files, ``_outputs.json``, which is written before the work. Refusal is a ``SettingError`` (exit code 2) that names
the file. Nothing here writes results.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from cellray import schema, storage
from cellray.errors import SettingError
from cellray.ingest.sources import DatasetSource

_WHOLE = "*"


def check_run(out: str, sources: Sequence[DatasetSource]) -> None:
    """Check the output folder of a run over ``sources``.

    Parameters
    ----------
    out
        Output folder, local or ``s3://``.
    sources
        The run's datasets; each becomes ``<id>.h5ad`` and ``datasets/<id>``.

    Raises
    ------
    SettingError
        If a file of the run is an input, or is there and not of an earlier run.
    """
    inputs = [uri for source in sources for uri in (source.uri, *(uri for _, uri in source.files))]
    _check_inside(out, [source.uri for source in sources])
    there = _names(out)
    run = _json(storage.join(out, schema.RUN_FILE)) if schema.RUN_FILE in there else None
    run = run if isinstance(run, dict) and {"run_id", "schema_version", "datasets"} <= run.keys() else None
    ours, recorded = run is not None, set(run["datasets"]) if run else set()
    known = set(storage.list_folders(storage.join(out, schema.DATASETS_DIR))) if schema.DATASETS_DIR in there else set()
    identities = _identities(inputs)
    copies = {f"{source.dataset_id}.h5ad": source.dataset_id for source in sources}
    for name in sorted(there & {*copies, schema.RUN_FILE, schema.REPORT_FILE}):
        target = storage.join(out, name)
        _check_input(out, target, identities)
        dataset_id = copies.get(name)
        if not ours or (dataset_id and dataset_id not in recorded and not _left_by_us(out, dataset_id, known)):
            raise SettingError(_not_ours(target))
    for source in sources:
        if source.dataset_id in known and not ours and not _left_by_us(out, source.dataset_id, known):
            raise SettingError(_not_ours(storage.join(out, schema.DATASETS_DIR, source.dataset_id)))


def reserve(out: str | Path, names: Collection[str] | None, inputs: Iterable[str | Path] = ()) -> None:
    """Check files of a folder that a verb or job is about to write, and note that they are its own.

    Parameters
    ----------
    out
        Folder, local or ``s3://``; made if it is not there.
    names
        Files and folders directly in it; None: everything in it, so that it must be empty, missing or ours.
    inputs
        Files and folders that are read.

    Raises
    ------
    SettingError
        If one is an input, or is there and not ours.
    """
    folder = storage.absolute(str(out))
    identities = _identities(map(str, inputs))
    if _identity(folder) in identities:
        msg = f"--out {folder!r} is an input and would be changed; give another folder"
        raise SettingError(msg)
    there = _names(folder) - {schema.OUTPUTS_FILE}
    listed = _json(storage.join(folder, schema.OUTPUTS_FILE)) or {}
    recorded = set(listed.get("files", ())) if isinstance(listed, dict) else set()
    wanted = there if names is None else there & set(names)
    for name in sorted(wanted):
        target = f"{folder.rstrip('/')}/{name}"
        _check_input(folder, target, identities)
        if name not in recorded and _WHOLE not in recorded:
            raise SettingError(_not_ours(target))
    new = recorded | ({_WHOLE} if names is None else set(names))
    if new != recorded:
        storage.put_json(storage.join(folder, schema.OUTPUTS_FILE), {"files": sorted(new)})


def check_model_folder(folder: str | Path) -> None:
    """Check a folder that is to become a model folder of ours: it must be missing, empty or one already.

    Raises
    ------
    SettingError
        If it holds something else.
    """
    uri = storage.absolute(str(folder))
    there = sorted(_names(uri))
    if not there:
        return
    config = _json(storage.join(uri, "config.json")) if "config.json" in there else None
    if not (isinstance(config, dict) and str(config.get("format", "")).startswith("cellray-")):
        msg = f"{uri!r} is not empty and no model folder of CellRay (it has {there[0]}); give a new folder"
        raise SettingError(msg)


def _check_input(out: str, target: str, identities: Collection[object]) -> None:
    if _identity(target) in identities:
        msg = f"--out {out!r}: {target} is an input and would be replaced; give another folder"
        raise SettingError(msg)


def _not_ours(target: str) -> str:
    return f"{target} is there and was not written by an earlier run; give another --out, or move it away"


def _left_by_us(out: str, dataset_id: str, known: Collection[str]) -> bool:
    """Whether the folder of a dataset holds what a run of ours leaves."""
    if dataset_id not in known:
        return False
    folder = storage.join(out, schema.DATASETS_DIR, dataset_id)
    files, folders = set(storage.list_files(folder)), set(storage.list_folders(folder))
    return bool(files & {schema.MANIFEST_FILE, schema.ERROR_FILE} or folders & {schema.SCORES_DIR, schema.STAGED_DIR})


def _check_inside(out: str, inputs: Iterable[str]) -> None:
    """Refuse an output folder inside a dataset that is a folder: its content, and so its name, would change."""
    if not storage.is_local(out):
        inside = next((uri for uri in inputs if out == uri or out.startswith(uri.rstrip("/") + "/")), None)
    else:
        above = {path.resolve() for path in (Path(out).resolve(), *Path(out).resolve().parents)}
        local = (uri for uri in inputs if storage.is_local(uri))
        inside = next((uri for uri in local if Path(uri).is_dir() and Path(uri).resolve() in above), None)
    if inside is not None:
        msg = f"--out {out!r} lies in the input {inside}, which would be changed; give a folder outside of it"
        raise SettingError(msg)


def _identities(uris: Iterable[str]) -> set[object]:
    found = {_identity(uri) for uri in uris}
    return found - {None}


def _identity(uri: str) -> object:
    """Return what two names of one file share: device and inode, links followed; of S3 the URI. None for no file."""
    if not storage.is_local(uri):
        return uri.rstrip("/")
    try:
        status = os.stat(storage.absolute(uri))  # noqa: PTH116 - a string may be any path
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _names(uri: str) -> set[str]:
    """Names of everything in a folder, links too, but for temporary files."""
    if not storage.is_local(uri):
        return {*storage.list_files(uri), *storage.list_folders(uri)}
    path = Path(storage.absolute(uri))
    return {one.name for one in path.iterdir() if not one.name.startswith(".tmp-")} if path.is_dir() else set()


def _json(uri: str) -> Any:
    """Return a JSON file's content; None if there is none or it is no JSON."""
    try:
        return storage.read_json(uri)
    except (OSError, ValueError):
        return None
