"""The annotated copy of one dataset inside a run: which way it is made, by the input's format.

Contract: of AnnData (``.h5ad``, Zarr, a modality of MuData) it is a copy of the whole, whatever was left out of the
counts; of any other format it is built from what was read, kept columns alone, in one pass over the dataset. What is
added to it is in ``cellray.write``.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cellray.errors import WriteError, boundary
from cellray.ingest import DatasetPlan, read_rows
from cellray.ingest.reader import Reader, open_dataset
from cellray.manifest import ShardRecord

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from cellray.write import Results


def write_copy(plan: DatasetPlan, shards: Sequence[ShardRecord], target: str, results: "Results") -> None:
    """Write the annotated ``.h5ad`` of a dataset to ``target``.

    Raises
    ------
    WriteError
        If it cannot be written; other dataset errors if the dataset cannot be read.
    """
    from cellray.write import annotate_h5ad, annotate_zarr

    source = plan.source
    if source.kind == "h5ad":
        annotate_h5ad(source.uri, target, results)
    elif source.kind == "h5mu":
        annotate_h5ad(source.uri, target, results, group=_modality(source.uri))
    elif source.kind in ("zarr", "zarr_zip"):
        annotate_zarr(source.uri, target, results)
    else:
        _build(plan, shards, target, results)


def _modality(uri: str) -> str:
    """Return where in a MuData file the modality is that was read."""
    from cellray.ingest import tree
    from cellray.ingest.h5ad import modality

    with tree.reading(uri), tree.open_hdf5(uri) as root:
        return str(modality(root)[0].name)


def _build(plan: DatasetPlan, shards: Sequence[ShardRecord], target: str, results: "Results") -> None:
    from cellray.write import build_h5ad

    with boundary(WriteError, f"annotated copy {target}"), open_dataset(plan.source) as reader:
        var, obs = _genes(plan, reader), _columns(reader)

    def blocks() -> "Iterator[tuple[list[str], sparse.csr_matrix]]":
        for shard in shards:
            block = read_rows(plan, shard.start, shard.stop)
            yield block.cell_ids, block.counts

    build_h5ad(blocks(), var, target, results, obs)


def _genes(plan: DatasetPlan, reader: Reader) -> "pd.DataFrame":
    """Return the gene table of the kept columns, indexed by its first column."""
    import pandas as pd

    keys = reader.gene_keys(plan.layer)
    index, *columns = ([*plan.of_genes(reader.gene_names(plan.layer, key))] for key in keys)
    return pd.DataFrame(dict(zip(keys[1:], columns, strict=True)), index=pd.Index(index, dtype=object, name=keys[0]))


def _columns(reader: Reader) -> dict[str, Any]:
    """Return what the file says of its cells: numbers where a column holds nothing else, else categories."""
    import pandas as pd

    found: dict[str, Any] = {}
    for key in reader.keys_beside("obs"):
        values = pd.Series(reader.obs_column(key), dtype=object)
        numbers = pd.to_numeric(values.where(values != ""), errors="coerce")
        as_numbers = bool(((values == "") | numbers.notna()).all() and numbers.notna().any())
        found[key] = numbers.to_numpy() if as_numbers else pd.Categorical(values.where(values != "", None))
    return found
