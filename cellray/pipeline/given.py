"""What a dataset brings along for refinement, checked before any cell is encoded: known labels, batches, coordinates.

Contract: ``check_given`` reads the ``obs`` columns and the ``obsm`` and ``obsp`` entries that the settings name and
raises the dataset's error, in one line with the way out, when one cannot be used. ``known_labels`` reads a column of
known labels as every label is read. Nothing is refined here.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from cellray.errors import DatasetError, RefineError
from cellray.ingest import DatasetSource, check_beside, check_numbers, read_obs_text
from cellray.labels.candidates import Label, close_labels, match_truth
from cellray.labels.ontology import Ontology
from cellray.settings import AnnotateSettings

_UNKNOWN = ("", "unknown", "nan", "none", "na", "<na>")
_MOST_SHOWN = 3
_MOST_BATCHES = 0.5  # of the cells: more batches than this are no batches
_FEW_CELLS = 20


def check_given(source: DatasetSource, settings: AnnotateSettings, labels: Sequence[Label]) -> None:
    """Check the entries of ``obs``, ``obsm`` and ``obsp`` that the settings name.

    Parameters
    ----------
    source
        The dataset.
    settings
        Names them.
    labels
        The label set of the run.

    Raises
    ------
    MissingKeyError
        If one is not there.
    DatasetError
        If one cannot be used for what it is named for.
    """
    check_beside(source, settings.beside())
    if settings.cluster_key is not None:
        _check_groups(source, settings.cluster_key, "--cluster-key", "clusters")
    if settings.refine == "none":
        return
    if settings.graph_batch_key is not None:
        _check_groups(source, settings.graph_batch_key, "--graph-batch-key", "batches")
    if settings.donor_key is not None:
        _check_groups(source, settings.donor_key, "--donor-key", "donors")
    if settings.anchor_key is not None:
        known_labels(source, settings.anchor_key, read_obs_text(source, settings.anchor_key), labels)
    if settings.use_rep is not None:
        _check_finite(source, "obsm", settings.use_rep, "--use-rep")
    if settings.use_graph is not None:
        shape = _check_finite(source, "obsp", settings.use_graph, "--use-graph")
        if shape[0] != shape[1]:
            msg = f"{source.uri}: obsp[{settings.use_graph!r}] is {shape}, not cells x cells; name another one"
            raise RefineError(msg)


def known_labels(source: DatasetSource, key: str, known: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """Return the numbers of known labels, given by name or Cell Ontology id; -1 where nothing is known.

    Parameters
    ----------
    source, key
        The dataset and its ``obs`` column, for messages.
    known
        (n,) str, the column; empty, "unknown" and "nan" are nothing.
    labels
        The label set of the run.

    Returns
    -------
    numpy.ndarray
        int64[n].

    Raises
    ------
    RefineError
        If a value is no label of the run.
    """
    values, which, counts = np.unique(known, return_inverse=True, return_counts=True)
    texts = [str(value) for value in values]
    empty = np.array([text.strip().lower() in _UNKNOWN for text in texts])
    matched = np.array(match_truth(texts, None, labels, Ontology()), np.int64)
    matched[empty] = -1
    strange = [at for at in np.argsort(-counts) if matched[at] < 0 and not empty[at]]
    if strange:
        shown = "; ".join(_named(texts[at], int(counts[at]), labels) for at in strange[:_MOST_SHOWN])
        more = f" and {len(strange) - _MOST_SHOWN} more" if len(strange) > _MOST_SHOWN else ""
        msg = (
            f"{source.uri}: obs[{key!r}] holds what is no label of this run: {shown}{more}; give names or Cell "
            "Ontology ids of the label set, or leave these cells empty"
        )
        raise RefineError(msg)
    return matched[which]


def _named(text: str, count: int, labels: Sequence[Label]) -> str:
    close = close_labels(text, labels, 1)
    return f"{text!r} ({count:,} cells{f', close to {close[0]!r}' if close else ''})"


def _check_groups(source: DatasetSource, key: str, option: str, what: str) -> None:
    """Refuse a column that gives (nearly) every cell a group of its own, or holds measured numbers."""
    values = read_obs_text(source, key)
    filled = values[values != ""]
    if not len(filled):
        msg = f"{source.uri}: obs[{key!r}] is empty; name a column of {what} for {option}"
        raise DatasetError(msg)
    groups = Counter(filled.tolist())
    decimals = sum(count for value, count in groups.items() if _is_decimal(value))
    if len(filled) >= _FEW_CELLS and (decimals > len(filled) / 2 or len(groups) > _MOST_BATCHES * len(filled)):
        example = next(iter(groups))
        kind = "decimal numbers" if decimals > len(filled) / 2 else "a value of its own for most cells"
        msg = (
            f"{source.uri}: obs[{key!r}] holds {kind} ({len(groups):,} values in {len(filled):,} cells, such as "
            f"{example!r}), which are no {what}; name a column of {what} for {option}"
        )
        raise DatasetError(msg)


def _is_decimal(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except (ValueError, OverflowError):
        return False


def _check_finite(source: DatasetSource, kind: Literal["obsm", "obsp"], key: str, option: str) -> tuple[int, int]:
    """Refuse an entry with values that are no numbers; returns its shape."""
    shape, finite = check_numbers(source, kind, key)
    if not finite:
        msg = (
            f"{source.uri}: {kind}[{key!r}] holds values that are missing or infinite; name another entry for {option}"
        )
        raise RefineError(msg)
    return shape
