"""How many cells of a dataset are rejected, why, and what a user can do about it.

Contract: ``count_rejects`` reads every cell once, a shard at a time; a layout that cannot be read by row is staged in
a temporary local folder. ``reasons`` and ``advice`` put reject codes into words. Nothing here judges a cell: that is
``cellray.ingest.rows``.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from cellray.ingest.plan import DatasetPlan
from cellray.ingest.rows import read_shard
from cellray.ingest.staging import needs_staging, stage
from cellray.schema import RejectCode
from cellray.scratch import Scratch

MANY: Final = 0.1
"""Share of rejected cells from which on the terminal names the way out."""

_ADVICE: Final = {
    RejectCode.NOT_FINITE: "a value is missing or infinite, as concat(join='outer') leaves it; "
    "fill missing counts: anndata.concat(..., join='outer', fill_value=0)",
    RejectCode.NEGATIVE_COUNT: "a value is below zero, as in scaled data; pass --layer with the raw counts",
    RejectCode.NON_INTEGER_COUNT: "a value has decimals; pass --layer with the raw counts, or --layer and --round to "
    "round a corrected layer",
    RejectCode.EMPTY_CELL: "the cell has no counts; leave empty droplets out (take the filtered matrix)",
    RejectCode.NO_KNOWN_GENE: "no gene with counts is the model's; check the gene names, or pass --gene-key",
    RejectCode.TOO_FEW_GENES: "the cell has fewer of the model's genes than --min-genes, as an empty droplet has; take "
    "the filtered matrix, or pass a smaller --min-genes",
}


def reasons(rejects: Mapping[str, int]) -> str:
    """Return reject codes with their numbers of cells, the most frequent first: ``too_few_genes 20, not_finite 5``."""
    found = sorted(((code, count) for code, count in rejects.items() if count), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{code} {count:,}" for code, count in found)


def advice(code: str) -> str:
    """Return what a reject code means and the way out; an unknown code has none, the empty string."""
    return _ADVICE[RejectCode(code)] if code in list(RejectCode) else ""


def way_out(rejects: Mapping[str, int], n_cells: int) -> str:
    """Return the advice for the most frequent reason when at least a tenth of ``n_cells`` was rejected, else ``""``."""
    if sum(rejects.values()) < max(1, MANY * n_cells):
        return ""
    most = min(rejects, key=lambda code: (-rejects[code], code))
    return f"most are {most}: {advice(most)}"


def count_rejects(plan: DatasetPlan, *, min_genes: int, n_slots: int, shard_cells: int = 8192) -> dict[str, int]:
    """Return the number of cells for each reject code that occurs.

    Parameters
    ----------
    min_genes, n_slots
        As in ``read_shard``.
    shard_cells
        Cells held in memory at a time.
    """
    with Scratch("inspect") as scratch:
        if needs_staging(plan):
            plan = stage(plan, str(scratch.path), shard_cells)
        rejects: Counter[str] = Counter()
        for start in range(0, plan.n_cells, shard_cells):
            shard = read_shard(
                plan, start, min(start + shard_cells, plan.n_cells), min_genes=min_genes, n_slots=n_slots
            )
            rejects.update(code for code in shard.reject_codes if code is not None)
    return dict(rejects)
