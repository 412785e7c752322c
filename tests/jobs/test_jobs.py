"""The demo and the benchmarks run and say what they promise; the goals themselves are not tests of a busy machine."""

import json
import subprocess
import sys

import anndata
import numpy as np
import pytest

from jobs import demo
from jobs.bench import annotate as bench
from jobs.bench import encode, refine
from jobs.bench.atlas import Atlas, noisy_scores
from jobs.bench.synthetic import write_cells, write_model


def test_tokenise_ratio_compares_equal_tokens():
    found = bench.tokenise_ratio(n_cells=300, n_genes=2000, genes_per_cell=300, repeats=3)
    assert found["tokenise_ratio"] > 1
    assert found["tokenise_cells_per_s"] > 0


def test_demo_recovers_whole_counts(tmp_path):
    cells, labels = demo.prepare(tmp_path)
    data = anndata.read_h5ad(cells)
    assert data.shape == (700, 765)
    assert (data.X.data == np.rint(data.X.data)).all()
    assert data.X.data.min() >= 1
    assert len(labels.read_text().split()) == len(demo.TERMS)
    assert data.obs["bulk_labels_ontology_term_id"].notna().all()


@pytest.mark.usefixtures("ray")
def test_demo(tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("pbmc68k.h5ad", "annotations.parquet", "report.html", "before GRIT", "macro-F1", "cells/s"):
        assert name in printed
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "cellray_cell_type" in anndata.read_h5ad(tmp_path / "pbmc68k.h5ad").obs


def test_synthetic_data_repeat_themselves(tmp_path):
    first, second = (write_cells(tmp_path / f"{name}.h5ad", 30, 100, 20) for name in "ab")
    assert (anndata.read_h5ad(first).X != anndata.read_h5ad(second).X).nnz == 0
    one, two = (write_model(tmp_path / name, 50) for name in "xy")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_a_made_up_atlas_is_read_as_it_was_written(tmp_path):
    given = {"n_types": 4, "n_genes": 300, "depth": 200}
    atlas, again = (Atlas.write(tmp_path / name, 25_000, **given) for name in ("a", "b"))
    blocks = list(atlas.blocks())
    assert [block.shape for block in blocks] == [(20_000, 300), (5_000, 300)]
    assert all((one != two).nnz == 0 for one, two in zip(blocks, again.blocks(), strict=True))
    assert 150 < np.mean(blocks[0].sum(axis=1)) < 250
    scores = noisy_scores(atlas.kinds, 4, 0.7)
    assert abs(np.mean(scores.argmax(axis=1) == atlas.kinds) - 0.7) < 0.02
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_the_refinement_benchmark_of_one_size(capsys):
    assert refine.main(["--cells", "3000"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] > 0.9  # the scores were right for 0.6 of the cells
    assert set(found["steps"]) == {"pca", "graph", "solve"}
    assert 0 < found["peak_gb"] < 8


def test_the_encoder_benchmark(capsys):
    assert encode.main(["--only", "binning", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["binning_ratio"] > 1
    with pytest.raises(SystemExit):
        encode.main(["--model", "scgpt-12l"])


def test_the_encoder_benchmark_needs_no_framework():
    code = "import sys, jobs.bench.encode; assert not {'ray', 'scanpy', 'anndata', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
