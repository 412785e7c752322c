"""How many cells of a dataset would be rejected, and why: the answer of ``cellray inspect``.

Contract: reads every cell once, a shard at a time. A layout that cannot be read by row is staged in a temporary local
folder.
"""

import tempfile
from collections import Counter

from cellray.ingest.plan import DatasetPlan
from cellray.ingest.rows import read_shard
from cellray.ingest.staging import needs_staging, stage


def count_rejects(plan: DatasetPlan, *, min_genes: int, n_slots: int, shard_cells: int = 8192) -> dict[str, int]:
    """Return the number of cells for each reject code that occurs.

    Parameters
    ----------
    min_genes, n_slots
        As in ``read_shard``.
    shard_cells
        Cells held in memory at a time.
    """
    with tempfile.TemporaryDirectory(prefix="cellray-inspect-") as folder:
        if needs_staging(plan):
            plan = stage(plan, folder, shard_cells)
        rejects: Counter[str] = Counter()
        for start in range(0, plan.n_cells, shard_cells):
            shard = read_shard(
                plan, start, min(start + shard_cells, plan.n_cells), min_genes=min_genes, n_slots=n_slots
            )
            rejects.update(code for code in shard.reject_codes if code is not None)
    return dict(rejects)
