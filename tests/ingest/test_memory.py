"""Peak memory of a whole pass does not follow the number of cells.

The peak is the kernel's ``VmHWM``: ``ru_maxrss`` of a child starts at what its parent had when it forked.
"""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

N_GENES = 150

STREAM = r"""
import re, sys
from pathlib import Path
import pyarrow as pa
from cellray import schema
from cellray.ingest import GeneIndex, count_rejects, find_sources, inspect_dataset

names = [f"ENSG{n:011d}" for n in range(150)]
genes = GeneIndex(pa.table([names, range(150), [1.0] * 150], schema=schema.genes()), schema.symbols().empty_table())
plan = inspect_dataset(find_sources([sys.argv[1]])[0], genes)
assert count_rejects(plan, min_genes=1, n_slots=150, shard_cells=2000) == {}
print(plan.n_cells, re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def write(path, layout, n_cells):
    """Write cells that have every gene: 40,000 of them are 48 MB."""
    major, minor = (n_cells, N_GENES) if layout == "csr" else (N_GENES, n_cells)
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        if layout == "dense":
            del file["X"]
            file["X"] = np.ones((n_cells, N_GENES), np.float32)
        else:
            group.attrs.update({"encoding-type": f"{layout}_matrix", "shape": (n_cells, N_GENES)})
            group["data"] = np.ones(n_cells * N_GENES, np.float32)
            group["indices"] = np.tile(np.arange(minor, dtype=np.int32), major)
            group["indptr"] = np.arange(major + 1, dtype=np.int64) * minor
        for name, index in (
            ("obs", [f"c{n}" for n in range(n_cells)]),
            ("var", [f"ENSG{n:011d}" for n in range(N_GENES)]),
        ):
            file.create_group(name)["_index"] = index


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_ten_times_the_cells_in_the_same_memory(layout, tmp_path):
    peak = {}
    for n_cells in (4000, 40000):
        path = tmp_path / f"{n_cells}.h5ad"
        write(path, layout, n_cells)
        run = subprocess.run([sys.executable, "-c", STREAM, path], capture_output=True, text=True, check=True)
        cells, peak[n_cells] = map(int, run.stdout.split())
        assert cells == n_cells
    assert peak[40000] <= 1.15 * peak[4000], peak
