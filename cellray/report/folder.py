"""The output folder of a run, as the report and the evaluation read it.

Contract: a dataset counts as finished only if its manifest and ``_SUCCESS`` belong to the run in ``run.json``;
otherwise it is failed (``error.json``) or unfinished. Annotations are read in batches, so memory is a few bytes a cell.
It writes nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cellray import manifest, schema, storage
from cellray.errors import ReadError, SettingError, boundary
from cellray.manifest import Manifest


@dataclass(frozen=True)
class DatasetResult:
    """One dataset of a run: finished with a ``manifest``, or not, for the reason in ``failure``."""

    dataset_id: str
    folder: str
    manifest: Manifest | None
    failure: str


@dataclass(frozen=True)
class Run:
    """``run.json`` as ``info``, the names of the label set in order, and every dataset in the order of the run."""

    uri: str
    info: dict[str, Any]
    labels: list[str]
    datasets: list[DatasetResult]


@dataclass(frozen=True)
class Calls:
    """The labels of one dataset's cells, in the input's order, as indices into the run's labels (-1: none).

    ``before`` (n,) int32 is the encoder's, ``after`` (n,) int32 the final one, ``status`` (n,) int32 an index into
    ``schema.Status``, ``score`` (n,) float32 NaN where there is none.
    """

    before: np.ndarray
    after: np.ndarray
    status: np.ndarray
    score: np.ndarray

    def having(self, status: schema.Status) -> np.ndarray:
        """Return a (n,) bool mask of the cells with ``status``."""
        return self.status == list(schema.Status).index(status)


def read_run(out_uri: str) -> Run:
    """Read what the run in ``out_uri`` left.

    Raises
    ------
    SettingError
        If there is no readable ``run.json``, or the run embedded only.
    ReadError
        If a manifest is damaged.
    """
    try:
        info = storage.read_json(storage.join(out_uri, schema.RUN_FILE))
    except (OSError, ValueError) as error:
        msg = f"{out_uri!r} holds no readable {schema.RUN_FILE}; pass the folder that `cellray annotate --out` wrote"
        raise SettingError(msg) from error
    if not info["labels"]:
        msg = f"{out_uri!r} holds embeddings and no labels; run `cellray annotate` first"
        raise SettingError(msg)
    datasets = [_read_dataset(out_uri, dataset_id, info["refining_key"]) for dataset_id in info["datasets"]]
    return Run(out_uri, info, [label["name"] for label in info["labels"]], datasets)


def read_calls(dataset: DatasetResult, labels: list[str]) -> Calls:
    """Read the labels of a finished dataset; a damaged file is a ``ReadError`` that names the dataset."""
    columns = {
        schema.ENCODER_CELL_TYPE: pa.array(labels),
        schema.CELL_TYPE: pa.array(labels),
        schema.STATUS: pa.array(list(schema.Status)),
    }
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*columns, schema.SCORE)}
    uri = storage.join(dataset.folder, schema.ANNOTATIONS_FILE)
    # A column that is not there is a KeyError.
    what = f"annotations of dataset {dataset.dataset_id!r}"
    with boundary(ReadError, what, KeyError), storage.open_read(uri) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=list(found)):
            for name, values in columns.items():
                index = pc.fill_null(pc.index_in(batch[name], value_set=values), -1)
                found[name].append(index.to_numpy(zero_copy_only=False))
            found[schema.SCORE].append(pc.fill_null(batch[schema.SCORE], np.nan).to_numpy(zero_copy_only=False))
    before, after, status = (np.concatenate([np.zeros(0, np.int32), *found[name]]) for name in columns)
    calls = Calls(before, after, status, np.concatenate([np.zeros(0, np.float32), *found[schema.SCORE]]))
    annotated = calls.having(schema.Status.ANNOTATED)
    if (np.minimum(before, after)[annotated] < 0).any():
        msg = f"dataset {dataset.dataset_id!r} has labels that {schema.RUN_FILE} does not list; run it again"
        raise ReadError(msg)
    return calls


def _read_dataset(out_uri: str, dataset_id: str, refining_key: str) -> DatasetResult:
    folder = storage.join(out_uri, schema.DATASETS_DIR, dataset_id)
    # A record that does not fit its model is a ValueError, one that is no record a KeyError or TypeError.
    with boundary(ReadError, f"dataset {dataset_id!r}", ValueError, KeyError, TypeError):
        if storage.exists(storage.join(folder, schema.MANIFEST_FILE)):
            record = manifest.read(folder)
            if manifest.is_complete(folder, record.content_hash, refining_key):
                return DatasetResult(dataset_id, folder, record, "")
        error_file = storage.join(folder, schema.ERROR_FILE)
        if storage.exists(error_file):
            error = storage.read_json(error_file)
            trace = f"; its trace is in {error_file}" if error.get("trace") else ""
            return DatasetResult(dataset_id, folder, None, f"{error['code']}: {error['message']}{trace}")
    return DatasetResult(dataset_id, folder, None, "not finished; run the same command again to complete it")
