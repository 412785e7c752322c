"""Sources to shards: find datasets, decide how to read them, read and judge their cells.

Contract: ``find_sources`` -> ``inspect_dataset`` -> (``stage``) -> ``read_shard``. Plans are small and travel to the
workers; values are read there. Nothing here knows of models beyond their gene table, and nothing runs on Ray.
"""

from cellray.ingest.beside import check_beside, check_numbers, read_coordinates, read_graph, read_obs_text
from cellray.ingest.genes import GeneIndex, GeneMatch
from cellray.ingest.plan import DatasetPlan, inspect_dataset
from cellray.ingest.rejects import count_rejects
from cellray.ingest.rows import RowBlock, Shard, judge, read_rows, read_shard
from cellray.ingest.sources import DatasetSource, find_sources
from cellray.ingest.staging import needs_staging, stage

__all__ = [
    "DatasetPlan",
    "DatasetSource",
    "GeneIndex",
    "GeneMatch",
    "RowBlock",
    "Shard",
    "check_beside",
    "check_numbers",
    "count_rejects",
    "find_sources",
    "inspect_dataset",
    "judge",
    "needs_staging",
    "read_coordinates",
    "read_graph",
    "read_obs_text",
    "read_rows",
    "read_shard",
    "stage",
]
