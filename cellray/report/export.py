"""The labels of a run as text files, one row a cell, for R or a spreadsheet.

Contract: one file a finished dataset, ``<id>.csv`` or ``<id>.tsv``, gzip-compressed when asked for; rows are in the
input's order, columns are ``COLUMNS`` and, where the user gave clusters, their label and share. Cells are quoted as
RFC 4180 says; a missing value is empty, and text of the user's is kept as it is, whatever a spreadsheet makes of it.
A file is written whole or not at all, part by part, so that memory is that of one part. A file that is there and not
an earlier export is refused before any is written.
"""

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.errors import ReadError, boundary
from cellray.report.folder import DatasetResult, read_run

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["csv", "tsv"]

COLUMNS: Final = (
    schema.CELL_ID,
    schema.CELL_TYPE,
    schema.CELL_TYPE_ID,
    schema.SCORE,
    schema.MARGIN,
    schema.SOURCE,
    schema.STATUS,
    schema.REJECT_CODE,
    schema.ENCODER_CELL_TYPE,
)
_OF_CLUSTERS: Final = (schema.CLUSTER_CELL_TYPE, schema.CLUSTER_SHARE)
_DELIMITERS: Final[dict[str, str]] = {"csv": ",", "tsv": "\t"}


@dataclass
class Exported:
    """What was written: ``files`` by dataset, and ``failed`` maps the other datasets to the reason."""

    files: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 when every dataset is written, 3 when some are not finished, 1 when none is."""
        if not self.failed:
            return 0
        return 3 if self.files else 1


def export(out: str, to: str | None = None, *, form: Form = "csv", compress: bool = False) -> Exported:
    """Write the labels of every finished dataset.

    Parameters
    ----------
    out
        Output folder of ``cellray annotate``.
    to
        Folder for the files; None: ``out``.
    form
        ``csv`` or ``tsv``.
    compress
        Write ``.gz``.

    Raises
    ------
    SettingError
        If ``out`` is no output folder, or a file is there that no export wrote.
    """
    from cellray.targets import reserve

    run = read_run(out)
    result = Exported({}, {one.dataset_id: one.failure for one in run.datasets if one.manifest is None})
    finished = [one for one in run.datasets if one.manifest is not None]
    folder = out if to is None else to
    names = {one.dataset_id: f"{one.dataset_id}.{form}{'.gz' if compress else ''}" for one in finished}
    if finished:
        reserve(folder, list(names.values()), [one.manifest.source for one in finished if one.manifest])
    for dataset in finished:
        target = storage.join(folder, names[dataset.dataset_id])
        with storage.writing(target) as path, path.open("wb") as file:
            _write(file, dataset, out, _DELIMITERS[form], compress=compress)
        result.files[dataset.dataset_id] = target
    return result


def _write(file: IO[bytes], dataset: DatasetResult, out: str, delimiter: str, *, compress: bool) -> None:
    stream: Any = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if compress else file
    for number, frame in enumerate(_frames(dataset, out)):
        text = frame.to_csv(index=False, header=number == 0, sep=delimiter, lineterminator="\n")
        stream.write(text.encode())
    if compress:
        stream.close()


def _frames(dataset: DatasetResult, out: str) -> "Iterator[pd.DataFrame]":
    """Yield the rows part by part."""
    clusters = _clusters(dataset, out)
    uri, at = storage.join(dataset.folder, schema.ANNOTATIONS_FILE), 0
    # A column that is not there is a KeyError.
    what = f"annotations of dataset {dataset.dataset_id!r}"
    with boundary(ReadError, what, KeyError), storage.open_read(uri) as file:
        table = pq.ParquetFile(file)
        for number in range(table.num_row_groups):
            frame = table.read_row_group(number, columns=list(COLUMNS)).select(COLUMNS).to_pandas()
            for name, values in clusters.items():
                frame[name] = values[at : at + len(frame)]
            at += len(frame)
            yield frame


def _clusters(dataset: DatasetResult, out: str) -> dict[str, Sequence[Any]]:
    """Return the columns of the user's clusters, a value a cell, from the annotated copy; none where there are none."""
    if dataset.manifest is None or dataset.manifest.clusters is None:
        return {}
    import h5py
    from anndata.io import read_elem

    uri = storage.join(out, f"{dataset.dataset_id}.h5ad")
    what = f"clusters of dataset {dataset.dataset_id!r}: {uri}"
    with boundary(ReadError, what, KeyError), storage.open_read(uri) as file, h5py.File(file, "r") as copy:
        return {name: read_elem(copy[f"obs/{schema.OBS_PREFIX}{name}"]) for name in _OF_CLUSTERS}
