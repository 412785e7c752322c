"""What refinement costs, against the paper's way: ``python -m jobs.bench.refine [--data DIR] [--json]``.

Ratios of CPU seconds within one run, one thread, medians of three:

``solve_ratio_lam1``, ``solve_ratio_lam100``
    ``scipy.sparse.linalg.spsolve`` once per class, as the paper does, over ours; 30,746 cells, 19 classes, k = 15.
    Goals: 200 and 50. ``spsolve_classes_timed`` classes are really solved, the others counted like them.
``max_abs_error``, ``argmax_agreement``
    Our solution against the float64 one, the worse of both lam. Goals: at most 5e-6, at least 0.9999.
``e2e_ratio_10k``, ``e2e_ratio_30k``
    scanpy's preprocessing, PCA and neighbours with ``spsolve`` per class over ours from counts to scores. Goals: 8, 20.
``time_per_cell_ratio_1m``, ``peak_rss_gb_1m``
    CPU seconds a cell of a whole refinement at 1,000,000 cells and 50 classes over those at 100,000, each in a process
    of its own, and the former's peak resident memory. Goals: at most 1.5, at most 8.

``--data`` adds real graphs: simulated scores of stated accuracy on the Allen cells, and all methods on the bundled
model's scores of every labelled dataset (``jobs.bench.methods``).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numba
import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from cellray.refine.graph import knn_graph
from cellray.refine.grit import Options, refine
from cellray.refine.pca import principal_components
from cellray.refine.solve import solve, solve_direct
from jobs.bench.atlas import Atlas, noisy_scores
from jobs.numbers import count

_PARTS = ("solve", "e2e", "scale")
_REPEATS = 3
_CLASSES, _CELLS = 19, 30_746
_WARM_UP = 5000
_TIMED = 2  # classes that spsolve really solves in each of the repeats


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.refine", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=[*_PARTS, "real"], default=None)
    parser.add_argument("--data", type=Path, default=None, help="folder of real datasets")
    parser.add_argument("--cells", type=count, default=None, help="only refine so many made-up cells, in this process")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    numba.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        if given.cells is not None:
            sys.stdout.write(json.dumps(one_size(given.cells)) + "\n")
        else:
            show(measure(given), as_json=given.json)
    return 0


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return all that was asked for."""
    found: dict[str, Any] = {}
    measures: dict[str, Callable[[Path], dict[str, Any]]] = {"solve": solving, "e2e": end_to_end, "scale": scaling}
    for part in _PARTS:
        if given.only in (None, part):
            with tempfile.TemporaryDirectory() as folder:
                found |= measures[part](Path(folder))
    if given.data is not None and given.only in (None, "real"):
        from jobs.bench.methods import allen, table

        found |= {"allen": allen(given.data), "methods": table(given.data)}
    return found


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """Print a figure a line, or JSON."""
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for key, value in found.items():
        for row in value if isinstance(value, list) else [value]:
            sys.stdout.write(f"{key:<28}{row:,.6g}\n" if isinstance(row, float | int) else f"{key:<28}{row}\n")


def solving(folder: Path) -> dict[str, Any]:
    """Compare solvers on one graph."""
    atlas = Atlas.write(folder, _CELLS, n_types=_CLASSES, n_genes=3000, depth=1500)
    points, _ = principal_components(atlas.blocks)
    graph = knn_graph(points, 15)
    p0 = noisy_scores(atlas.kinds, _CLASSES, 0.6)
    solve(graph[:1000][:, :1000], p0[:1000], 1.0, direct_cells=0)  # compiles
    found: dict[str, Any] = {"spsolve_classes_timed": _TIMED * _REPEATS}
    errors, agreements = [], []
    for lam in (1.0, 100.0):
        ratios = []
        for repeat in range(_REPEATS):
            theirs, seconds = clocked(partial(per_class, graph, p0, lam, repeat * _TIMED))
            solution, ours = clocked(partial(solve, graph, p0, lam))
            ratios.append(seconds * _CLASSES / _TIMED / ours)
            errors.append(np.abs(solution.p[:, repeat * _TIMED : (repeat + 1) * _TIMED] - theirs).max())
        found[f"solve_ratio_lam{lam:g}"] = statistics.median(ratios)
        direct = solve_direct(graph, p0, lam)
        errors.append(np.abs(solution.p - direct).max())
        agreements.append(np.mean(solution.p.argmax(axis=1) == direct.argmax(axis=1)))
    return {**found, "max_abs_error": float(max(errors)), "argmax_agreement": float(min(agreements))}


def per_class(graph: sparse.csr_matrix, p0: np.ndarray, lam: float, first: int) -> np.ndarray:
    """Solve ``_TIMED`` classes the paper's way: the matrix is factorised anew for each."""
    from scipy.sparse.linalg import spsolve

    degrees = np.asarray(graph.sum(axis=1), np.float64).ravel()
    matrix = sparse.csc_matrix(sparse.diags_array(1 + lam * degrees) - lam * graph.astype(np.float64))
    return np.stack([spsolve(matrix, p0[:, first + at].astype(np.float64)) for at in range(_TIMED)], axis=1)


def end_to_end(folder: Path) -> dict[str, Any]:
    """Compare counts to refined scores, ours against scanpy and spsolve."""
    found = {}
    for n in (_WARM_UP, 10_000, 30_000):  # the first compiles and imports on both sides
        atlas = Atlas.write(folder / str(n), n, n_types=_CLASSES, n_genes=8000, depth=3000)
        p0 = noisy_scores(atlas.kinds, _CLASSES, 0.6)
        counts = sparse.csr_matrix(sparse.vstack(list(atlas.blocks()), format="csr"))
        ratios = []
        for _ in range(_REPEATS if n > _WARM_UP else 1):
            (preparing, solving_one), _ = clocked(partial(scanpy_way, counts, p0))
            _, ours = clocked(partial(refine, p0, partial(list, [counts])))
            ratios.append((preparing + solving_one * _CLASSES) / ours)
        if n > _WARM_UP:
            found[f"e2e_ratio_{n // 1000}k"] = statistics.median(ratios)
    return found


def scanpy_way(counts: sparse.csr_matrix, p0: np.ndarray) -> tuple[float, float]:
    """Return CPU seconds up to the graph, and of one class's solution on it."""
    import anndata
    import scanpy as sc
    from pynndescent import PyNNDescentTransformer

    class Descent(PyNNDescentTransformer):
        """What scanpy uses for 8,192 cells or more; it expects a matrix, and later versions return an array."""

        def fit_transform(self, points: np.ndarray, _y: None = None, **more: Any) -> sparse.csr_matrix:
            return sparse.csr_matrix(super().fit_transform(points, None, **more))

    def prepare() -> Any:
        cells = anndata.AnnData(counts.copy())
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        sc.pp.highly_variable_genes(cells, n_top_genes=2000)
        cells = cells[:, cells.var["highly_variable"]].copy()
        sc.pp.scale(cells, max_value=10)
        sc.pp.pca(cells, n_comps=50, svd_solver="arpack")
        sc.pp.neighbors(cells, transformer=Descent(n_neighbors=15, random_state=0))
        return cells

    cells, preparing = clocked(prepare)
    joined = cells.obsp["distances"] > 0
    graph = sparse.csr_matrix((joined + joined.T).astype(np.float32))
    _, solving_some = clocked(lambda: per_class(graph, p0, 1.0, 0))
    return preparing, solving_some / _TIMED


def scaling(folder: Path) -> dict[str, Any]:
    """Refine 100,000 and 1,000,000 cells, each in a process of its own."""
    sizes = {}
    for n in (100_000, 1_000_000):
        command = [sys.executable, "-m", "jobs.bench.refine", "--cells", str(n)]
        environment = {**os.environ, "TMPDIR": str(folder)}
        done = subprocess.run(  # noqa: S603 - our own interpreter
            command, stdout=subprocess.PIPE, check=True, text=True, env=environment
        )
        sizes[n] = json.loads(done.stdout)
    small, large = sizes.values()
    return {
        "time_per_cell_ratio_1m": large["us_per_cell"] / small["us_per_cell"],
        "peak_rss_gb_1m": large["peak_gb"],
        "us_per_cell_1m": large["us_per_cell"],
        "us_per_cell_100k": small["us_per_cell"],
        "knn_recall_1m": large["knn_recall"],
        "steps_1m": large["steps"],
    }


def one_size(n: int) -> dict[str, Any]:
    """Refine ``n`` cells with 50 classes; CPU microseconds a cell, and the peak memory of this process in GB."""
    with tempfile.TemporaryDirectory() as folder:
        small = Atlas.write(Path(folder) / "small", 2000, n_types=50, n_genes=3000, depth=300)
        warm = Options(lam=1.0)
        refine(noisy_scores(small.kinds, 50, 0.6), small.blocks, warm)
        atlas = Atlas.write(Path(folder) / "atlas", n, n_types=50, n_genes=3000, depth=300)
        p0 = noisy_scores(atlas.kinds, 50, 0.6)
        result, seconds = clocked(lambda: refine(p0, atlas.blocks, warm))
    peak = max(step["peak_gb"] for step in result.steps.values())
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {
        "us_per_cell": seconds / n * 1e6,
        "peak_gb": max(peak, int(match[1]) * 1024 / 1e9 if match else 0),
        "knn_recall": result.diagnostics["knn_recall"],
        "steps": result.steps,
        "accuracy": float(np.mean(result.p.argmax(axis=1) == atlas.kinds)),
    }


def clocked(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what ``work`` returns, and the CPU seconds of this process that it took."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
