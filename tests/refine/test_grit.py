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
from cellray.refine.grit import Given, Options, memory_bytes
from cellray.refine.grit import refine as refine_blocks
from cellray.refine.solve import solve_direct

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def refine(p0, counts, given=None, **options):
    blocks = [] if counts is None else [counts[: len(p0) // 2], counts[len(p0) // 2 :]]
    return refine_blocks(p0, lambda: blocks, Options(**options), given)


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
    assert facts["settings"]["points"]["n_pcs"] == facts["n_pcs"] == result.points.shape[1] == 10
    assert facts["knn_recall"] == 1
    assert facts["classes_emptied"] == []
    assert set(result.steps) == {"pca", "graph", "solve"}
    assert all(step["seconds"] >= 0 and step["peak_gb"] > 0.05 for step in result.steps.values())
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
    with pytest.raises(RefineError, match=r"299 cells .* 300 cells"):
        refine_blocks(p0[1:], lambda: [counts])
    for value in (np.nan, -0.5, np.inf):
        scores = p0.copy()
        scores[5, 1] = value
        with pytest.raises(RefineError, match="scores of row 5"):
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
refine(rng.dirichlet(np.ones({c}), {n}).astype(np.float32), lambda: [counts])
# Not ru_maxrss, which starts at the peak of the process that forked this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(counts.nnz, peak)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    nnz, peak = map(int, done.stdout.split())
    assert peak - nnz * 8 <= memory_bytes(n, c, 15) <= 4 * peak


def test_memory_estimate_grows_with_everything():
    base = memory_bytes(100_000, 50, 15)
    assert memory_bytes(200_000, 50, 15) > base
    assert memory_bytes(100_000, 5000, 15) > base
    assert memory_bytes(100_000, 50, 1500) > base
    assert memory_bytes(1_000_000, 50, 15) < 8e9


@pytest.mark.parametrize("method", ["majority", "average"])
def test_the_baselines_are_the_papers(method):
    counts, p0, _ = two_kinds(60)
    result = refine(p0, counts, method=method, k=5, n_pcs=10)
    distance = np.linalg.norm(result.points[:, None].astype(float) - result.points[None], axis=2)
    near = distance.argsort(axis=1)[:, :6]  # the cell itself is the nearest
    votes = np.eye(2)[p0.argmax(axis=1)][near].mean(axis=1)
    if method == "average":
        np.testing.assert_allclose(result.p, p0[near].mean(axis=1), atol=1e-6)
    else:
        np.testing.assert_allclose(result.p, votes, atol=2e-3)
        decided = votes[:, 0] != votes[:, 1]
        np.testing.assert_array_equal(result.p.argmax(axis=1)[decided], votes.argmax(axis=1)[decided])
    assert "iterations" not in result.diagnostics


def test_given_points_and_graph_are_used():
    counts, p0, truth = two_kinds()
    points = np.eye(2, dtype=np.float32)[truth] + 0.01 * np.random.default_rng(1).normal(size=(300, 2)).astype(
        np.float32
    )
    by_points = refine(p0, counts, Given(points=points))
    assert (by_points.p.argmax(axis=1) == truth).all()
    np.testing.assert_array_equal(by_points.points, points)
    graph = knn_graph(points, 15)
    by_graph = refine(p0, counts, Given(graph=graph))
    np.testing.assert_allclose(by_graph.p, by_points.p, atol=1e-6)
    with pytest.raises(RefineError, match=r"shape \(5, 5\), there are 300 cells"):
        refine(p0, counts, Given(graph=graph[:5, :5]))


def test_anchors_hold_and_pull():
    counts, p0, truth = two_kinds()
    known = np.where(np.arange(300) < 30, truth, -1)
    wrong = p0[:, ::-1].copy()  # an encoder that takes each kind for the other
    assert (refine(wrong, counts).p.argmax(axis=1) == truth).mean() < 0.2
    held = refine(wrong, counts, Given(anchors=known), lam=30.0)
    np.testing.assert_array_equal(held.p[:30], np.eye(2, dtype=np.float32)[truth[:30]])
    assert held.diagnostics["n_anchored"] == 30
    assert (held.p.argmax(axis=1) == truth).mean() > 0.9
    weighted = refine(wrong, counts, Given(anchors=known), lam=30.0, anchor_weight=1e7)
    np.testing.assert_allclose(weighted.p, held.p, atol=1e-3)
    voted = refine(p0, counts, Given(anchors=known), method="majority")
    np.testing.assert_array_equal(voted.p[:30].argmax(axis=1), truth[:30])


def test_batches_are_balanced():
    """Two batches, far apart: without balance no cell has a neighbour in the other one."""
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], 100)
    points = rng.normal(size=(200, 5)).astype(np.float32) + 100 * batch[:, None].astype(np.float32)
    p0 = rng.dirichlet(np.ones(3), 200).astype(np.float32)
    apart = refine(p0, None, Given(points=points), k=10)
    joined = refine(p0, None, Given(points=points, batches=batch), k=10)
    assert joined.diagnostics["k"] == 10
    np.testing.assert_allclose(apart.p[batch == 0].sum(axis=0), p0[batch == 0].sum(axis=0), rtol=1e-4)
    assert np.abs(joined.p[batch == 0].sum(axis=0) - p0[batch == 0].sum(axis=0)).max() > 0.5


@pytest.mark.parametrize("rule", ["gcv", "loo"])
def test_a_chosen_lam_smooths_noise_and_leaves_signal(rule):
    counts, p0, truth = two_kinds()
    noisy = refine(p0, counts, lam=rule)
    clean = refine(np.eye(2, dtype=np.float32)[truth], counts, lam=rule)
    assert noisy.diagnostics["lam_rule"] == rule
    assert noisy.diagnostics["lam"] > 0.1
    assert len(noisy.diagnostics["lam_criterion"]) == 11
    assert (noisy.p.argmax(axis=1) == truth).mean() > (p0.argmax(axis=1) == truth).mean()
    assert (clean.p.argmax(axis=1) == truth).mean() > 0.98


def test_a_class_that_loses_all_cells_is_told():
    counts, _, _ = two_kinds(80)
    p0 = np.tile(np.array([[0.6, 0.3, 0.1]], np.float32), (80, 1))
    p0[7] = [0.2, 0.1, 0.7]
    facts = refine(p0, counts, lam=10.0).diagnostics
    assert facts["classes_emptied"] == [2]
    assert facts["n_changed"] == 1
