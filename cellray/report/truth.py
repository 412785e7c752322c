"""The truth column of an annotated ``.h5ad``.

Contract: of the whole file only one or two ``obs`` columns are read, on a local disk or on S3. A cell has no truth when
its value is missing, empty or "unknown" (CELLxGENE's word for it). It does not know the label set.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cellray import storage
from cellray.errors import ReadError, boundary

_ID_SUFFIXES = ("_ontology_term_id", "_ontology_id")
_ABSENT = ("", "unknown")


@dataclass(frozen=True)
class Truth:
    """Distinct truths of a dataset and which one each cell has.

    ``values`` and ``ids`` (Cell Ontology ids, None if the file has no such column) have one entry a distinct truth;
    ``codes`` (n,) int64 points into them, -1 for no truth.
    """

    values: list[str]
    ids: list[str] | None
    codes: np.ndarray


def read_truth(uri: str, key: str) -> tuple[Truth | None, list[str]]:
    """Return the truth in ``obs[key]`` (None if there is no such column) and the names of all ``obs`` columns.

    Raises
    ------
    ReadError
        If the file is missing or damaged.
    """
    import h5py

    formats = (KeyError, ValueError, AttributeError)
    with boundary(ReadError, f"obs of {uri}", *formats), storage.open_read(uri) as file, h5py.File(file) as h5:
        obs = h5["obs"]
        columns = [str(column) for column in obs.attrs["column-order"]]
        if key not in columns:
            return None, columns
        values, value_codes = _distinct(obs[key])
        id_key = next((key + suffix for suffix in _ID_SUFFIXES if key + suffix in columns), None)
        if id_key is None:
            return Truth(values, None, value_codes), columns
        ids, id_codes = _distinct(obs[id_key])
    # One code a distinct (value, id); a cell without a value has no truth whatever its id.
    pairs = value_codes * (len(ids) + 1) + id_codes + 1
    kept, codes = np.unique(pairs[value_codes >= 0], return_inverse=True)
    all_codes = np.full(len(value_codes), -1)
    all_codes[value_codes >= 0] = codes
    value_of, id_of = kept // (len(ids) + 1), kept % (len(ids) + 1) - 1
    return Truth([values[i] for i in value_of], [ids[i] if i >= 0 else "" for i in id_of], all_codes), columns


def _distinct(column: Any) -> tuple[list[str], np.ndarray]:
    import pandas as pd
    from anndata.io import read_elem

    values = pd.Series(read_elem(column)).astype("string").str.strip()
    codes, distinct = pd.factorize(values.mask(values.str.lower().isin(_ABSENT)))
    return [str(value) for value in distinct], codes
