"""What ``import cellray`` offers: AnnData or paths in, labels and embeddings out.

Contract: an AnnData is annotated in this process and changed in place; files are annotated as ``cellray annotate`` does
it, into an output folder. Options are the fields of ``AnnotateSettings``, by name, and mean the same either way. No
work is done here. Nothing heavy is imported before a function is called.
"""

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

from cellray.errors import SettingError
from cellray.settings import AnnotateSettings

if TYPE_CHECKING:
    from anndata import AnnData

    from cellray.pipeline import RunResult
    from cellray.pipeline.progress import Progress

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_OWN = ("inputs", "out", "task")


@overload
def annotate(data: "AnnData", *, progress: "bool | Progress | None" = None, **options: Any) -> "AnnData": ...
@overload
def annotate(
    data: Paths | AnnotateSettings,
    progress: "bool | Progress | None" = None,
    *,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> "RunResult": ...
def annotate(
    data: Any,
    progress: "bool | Progress | None" = None,
    *,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Any:
    """Label every cell.

    Parameters
    ----------
    data
        An AnnData with raw counts in ``X``, ``raw`` or a layer, of at most 100,000 cells; or one or several paths,
        globs or ``s3://`` URIs of files, as ``cellray annotate`` takes them; or an ``AnnotateSettings`` with both.
    progress
        True shows progress, False does not; None does in a notebook and on a terminal.
    out
        Output folder, for files alone.
    **options
        Fields of ``AnnotateSettings``, which are the options of ``cellray annotate``: ``model="mini"``, ``labels``,
        ``layer``, ``gene_key``, ``refine="grit"``, ``k=15``, ``cluster_key`` and others.

    Returns
    -------
    AnnData or RunResult
        The same AnnData, which has gained ``obs["cellray_cell_type"]`` and the columns beside it, the embedding in
        ``obsm`` (``X_langcell`` or ``X_scgpt``) and the record of the run in ``uns["cellray"]``. Of files what became
        of each dataset; ``failed`` says which could not be annotated, and why.

    Raises
    ------
    SettingError
        If an option is not known or its value is wrong, there are more than 100,000 cells, or ``out`` is missing.
    CellRayError
        If the data cannot be annotated, with the way out in its message.

    Examples
    --------
    >>> adata = scanpy.read_h5ad("pbmc.h5ad")
    >>> cellray.annotate(adata, cluster_key="leiden")
    >>> adata.obs["cellray_cell_type"].value_counts()

    >>> result = cellray.annotate("samples/*.h5ad", out="annotated")
    >>> result.failed
    {}
    """
    return _run(data, progress, out, {"task": "annotate"}, options)


@overload
def embed(data: "AnnData", *, progress: "bool | Progress | None" = None, **options: Any) -> "AnnData": ...
@overload
def embed(
    data: Paths,
    progress: "bool | Progress | None" = None,
    *,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> "RunResult": ...
def embed(
    data: Any,
    progress: "bool | Progress | None" = None,
    *,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Any:
    """Embed every cell, without labels.

    Parameters
    ----------
    data, progress, out, **options
        As in ``annotate``; cells of a single known gene are embedded too unless ``min_genes`` says otherwise.

    Returns
    -------
    AnnData or RunResult
        The same AnnData with the embedding in ``obsm["X_langcell"]`` or ``obsm["X_scgpt"]``, by the model, NaN for
        rejected cells; of files what became of each dataset.

    Raises
    ------
    SettingError, CellRayError
        As ``annotate``.

    Examples
    --------
    >>> cellray.embed(adata).obsm["X_langcell"].shape
    (2700, 256)
    """
    return _run(data, progress, out, {"task": "embed", "refine": "none", "min_genes": 1}, options)


def _run(
    data: Any,
    progress: "bool | Progress | None",
    out: str | os.PathLike[str] | None,
    defaults: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    if isinstance(data, AnnotateSettings):
        if out is not None or options:
            msg = f"settings hold all there is to say; leave {', '.join(['out'] * (out is not None) + [*options])} away"
            raise SettingError(msg)
        with _shown(progress) as shown:
            from cellray.pipeline import annotate as run

            return run(data, shown)
    _check_names(options)
    told = {**defaults, **options}
    if hasattr(data, "obs_names") and hasattr(data, "obsm"):
        if hasattr(data, "mod"):
            msg = "a MuData holds several modalities; give the one with the counts: cellray.annotate(mdata.mod['rna'])"
            raise SettingError(msg)
        if out is not None:
            msg = f"out {str(out)!r}: it is for files; an AnnData takes its labels itself, save it with write_h5ad"
            raise SettingError(msg)
        settings = AnnotateSettings.checked(inputs=("adata",), out="adata", **told)
        with _shown(progress) as shown:
            from cellray.pipeline.in_process import annotate_adata

            annotate_adata(data, settings, shown)
        return data
    inputs = _paths(data)
    if out is None:
        msg = f"files are annotated into a folder; name it: out='FOLDER' (got {inputs[0]!r} alone)"
        raise SettingError(msg)
    settings = AnnotateSettings.checked(inputs=inputs, out=os.fspath(out), **told)
    with _shown(progress) as shown:
        from cellray.pipeline import annotate as run

        return run(settings, shown)


def _check_names(options: dict[str, Any]) -> None:
    known = [name for name in AnnotateSettings.model_fields if name not in _OWN]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
            msg = f"option {name!r} is not known; {hint}"
            raise SettingError(msg)


def _paths(data: Any) -> tuple[str, ...]:
    try:
        return tuple(map(os.fspath, [data] if isinstance(data, str | os.PathLike) else data))
    except TypeError:
        msg = f"an AnnData or paths of files are annotated, not {type(data).__name__}"
        raise SettingError(msg) from None


@contextmanager
def _shown(progress: "bool | Progress | None") -> "Iterator[Progress]":
    """Yield the display: the one given, the one that fits where this runs, or a silent one."""
    import sys

    from cellray.pipeline.progress import in_notebook, showing

    if progress is None:
        progress = in_notebook() or sys.stderr.isatty()
    if not isinstance(progress, bool):
        yield progress
        return
    with showing(quiet=not progress) as shown:
        yield shown
