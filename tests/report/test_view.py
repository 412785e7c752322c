"""The layout of a sample in the plane."""

import warnings

import numpy as np
import pytest

from cellray import schema
from cellray.report import two_dimensional


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(90, 8)).astype(np.float32)
    points[45:] += 12
    return points


def test_umap_separates_blobs_repeats_itself_and_is_silent(blobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = two_dimensional(blobs, np.arange(90))
        again = two_dimensional(blobs, np.arange(90))
    assert first.schema == schema.view()
    assert first.equals(again)
    xy = np.column_stack([first[schema.VIEW_X].to_numpy(), first[schema.VIEW_Y].to_numpy()])
    one, two = xy[:45], xy[45:]
    gap = np.linalg.norm(one.mean(axis=0) - two.mean(axis=0))
    assert gap > 3 * max(one.std(axis=0).max(), two.std(axis=0).max())


def test_sample_is_bounded_sorted_seeded_and_skips_missing_points(blobs):
    points = blobs.copy()
    points[::3] = np.nan
    rows = np.arange(1000, 1090)
    table = two_dimensional(points, rows, max_cells=9, seed=4)
    chosen = table[schema.ROW].to_numpy()
    assert len(chosen) == 9
    assert (np.diff(chosen) > 0).all()
    assert not ((chosen - 1000) % 3 == 0).any()
    assert table.equals(two_dimensional(points, rows, max_cells=9, seed=4))
    assert chosen.tolist() != two_dimensional(points, rows, max_cells=9, seed=5)[schema.ROW].to_pylist()


@pytest.mark.parametrize(("n", "p"), [(0, 3), (1, 3), (49, 3), (4, 1)])
def test_few_cells_show_their_first_two_columns(n, p):
    points = np.random.default_rng(1).normal(size=(n, p)).astype(np.float32)
    table = two_dimensional(points, np.arange(n))
    np.testing.assert_array_equal(table[schema.VIEW_X].to_numpy(), points[:, 0])
    np.testing.assert_array_equal(table[schema.VIEW_Y].to_numpy(), points[:, 1] if p > 1 else np.zeros(n))


@pytest.mark.parametrize("n", [50, 60])
def test_tiny_and_identical_cells_get_finite_coordinates(n):
    table = two_dimensional(np.ones((n, 4), np.float32), np.arange(n))
    assert np.isfinite(table[schema.VIEW_X].to_numpy()).all()
    assert np.isfinite(table[schema.VIEW_Y].to_numpy()).all()
