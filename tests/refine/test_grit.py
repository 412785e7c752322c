import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from cellray.errors import RefineError
from cellray.refine.graph import knn_graph
from cellray.refine.grit import memory_bytes, refine
from cellray.refine.solve import solve_direct

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def two_kinds(n=300, genes=120, seed=0):
    """Counts of two clear cell types and scores that are right for four cells in five."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(0.5, 2.0, (2, genes))[truth]).astype(np.float32))
    return counts, noisy_scores(truth, 2, 0.2, rng), truth


def noisy_scores(truth, n_classes, share_wrong, rng):
    shown = np.where(rng.random(len(truth)) < share_wrong, rng.integers(0, n_classes, len(truth)), truth)
    scores = rng.dirichlet(np.ones(n_classes), len(truth)) * 0.4
    scores[np.arange(len(truth)), shown] += 0.6
    return scores.astype(np.float32)


def test_refines_and_tells():
    counts, p0, truth = two_kinds()
    before = p0.copy()
    result = refine(p0, counts, lam=1.0, k=15, n_pcs=10)
    facts = result.diagnostics
    assert result.p.dtype == np.float32
    assert result.p.min() >= 0
    assert (result.p.argmax(axis=1) == truth).mean() > 0.99 > (p0.argmax(axis=1) == truth).mean()
    np.testing.assert_array_equal(p0, before)
    graph = knn_graph(result.points, 15)
    np.testing.assert_allclose(result.p, solve_direct(graph, p0, 1.0), atol=1e-6)
    assert facts["n_cells"] == 300
    assert facts["n_edges"] == graph.nnz / 2
    assert facts["n_changed"] == np.count_nonzero(result.p.argmax(axis=1) != p0.argmax(axis=1))
    assert facts["edge_disagreement_after"] < 0.02 < facts["edge_disagreement_before"]
    assert facts["energy_after"] < facts["energy_before"]
    np.testing.assert_allclose(facts["class_masses_after"], facts["class_masses_before"], rtol=1e-5)
    assert facts["settings"]["pca"]["n_pcs"] == facts["n_pcs"] == result.points.shape[1] == 10
    assert json.loads(json.dumps(facts)) == facts


def test_same_input_same_bytes():
    counts, p0, _ = two_kinds()
    first, second = (refine(p0, counts, lam=1.0, k=15, n_pcs=10, seed=3) for _ in range(2))
    assert first.p.tobytes() == second.p.tobytes()
    assert first.diagnostics == second.diagnostics


def test_contrast_of_the_scores_does_not_matter():
    counts, p0, _ = two_kinds()
    flat = (0.5 + 0.01 * (p0 - 0.5)).astype(np.float32)
    sharp, dull = (refine(p, counts, lam=1.0, k=15, n_pcs=10).p.argmax(axis=1) for p in (p0, flat))
    np.testing.assert_array_equal(sharp, dull)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_tiny_datasets(n):
    counts, p0, _ = two_kinds()
    result = refine(p0[:n], counts[:n], lam=1.0, k=15, n_pcs=50)
    assert result.p.shape == (n, 2)
    np.testing.assert_allclose(result.p.sum(axis=1), 1, atol=1e-6)
    assert result.diagnostics["k"] == max(0, n - 1)
    if n == 1:
        np.testing.assert_array_equal(result.p, p0[:1])


def test_lam_zero_changes_nothing():
    counts, p0, _ = two_kinds()
    result = refine(p0, counts, lam=0.0, k=15, n_pcs=10)
    np.testing.assert_array_equal(result.p, p0)
    assert result.diagnostics["n_changed"] == 0


def test_what_cannot_be_refined_is_said():
    counts, p0, _ = two_kinds()
    with pytest.raises(RefineError, match=r"\(299, 2\).*300 cells"):
        refine(p0[1:], counts, lam=1.0, k=15, n_pcs=10)
    for value in (np.nan, -0.5, np.inf):
        scores = p0.copy()
        scores[5, 1] = value
        with pytest.raises(RefineError, match="scores hold"):
            refine(scores, counts, lam=1.0, k=15, n_pcs=10)
        spoiled = counts.copy()
        spoiled.data[3] = value
        with pytest.raises(RefineError, match="counts hold"):
            refine(p0, spoiled, lam=1.0, k=15, n_pcs=10)
    with pytest.raises(RefineError, match="lam"):
        refine(p0, counts, lam=-1.0, k=15, n_pcs=10)


def test_corrupted_truth_of_real_cells_gets_better():
    path = SHARED / "data" / "datasets" / "pbmc_zheng2017_facs.h5ad"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    import anndata
    from sklearn.metrics import f1_score

    data = anndata.read_h5ad(path)[::2]
    kinds, truth = np.unique(data.obs["cell_type_broad"].to_numpy(str), return_inverse=True)
    p0 = noisy_scores(truth, len(kinds), 0.4, np.random.default_rng(0))
    p = refine(p0, sparse.csr_matrix(data.X), lam=1.0, k=15, n_pcs=50).p
    before, after = p0.argmax(axis=1), p.argmax(axis=1)
    assert (before == truth).mean() < 0.72
    assert (after == truth).mean() > 0.93
    assert f1_score(truth, after, average="macro") > f1_score(truth, before, average="macro") + 0.1


def test_memory_estimate_is_above_the_measured_peak_and_not_far():
    """A process of its own makes 4,000 cells, refines them and tells its peak resident memory."""
    n, genes, c, per_cell = 4000, 16_000, 20, 800
    program = f"""
import re, numpy as np
from pathlib import Path
from scipy import sparse
from cellray.refine.grit import refine
rng = np.random.default_rng(0)
columns = np.sort(rng.integers(0, {genes}, ({n}, {per_cell})), axis=1).ravel()
rows = np.repeat(np.arange({n}), {per_cell})
counts = sparse.csr_matrix((np.ones(columns.size, np.float32), (rows, columns)), shape=({n}, {genes}))
refine(rng.dirichlet(np.ones({c}), {n}).astype(np.float32), counts, lam=1.0, k=15, n_pcs=10)
# Not ru_maxrss, which starts at the peak of the process that forked this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(counts.nnz, peak)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    nnz, peak = map(int, done.stdout.split())
    assert peak <= memory_bytes(n, c, 15, nnz) <= 4 * peak


def test_memory_estimate_grows_with_everything():
    base = memory_bytes(100_000, 50, 15, 10**8)
    assert memory_bytes(200_000, 50, 15, 10**8) > base
    assert memory_bytes(100_000, 50, 15, 2 * 10**8) > base
    assert memory_bytes(100_000, 5000, 15, 10**8) > base
    assert memory_bytes(100_000, 50, 1500, 10**8) > base
