"""Cells in enough shards to be interrupted, and what an undisturbed run makes of them."""

import pytest

from cellray.pipeline import annotate
from cellray.settings import AnnotateSettings
from jobs.bench.synthetic import write_cells

N_SHARDS, SHARD = 16, 400


def settings_of(many, tiny_model):
    """What all runs have in common but the output folder."""
    return {"inputs": [str(many)], "model": str(tiny_model), "shard_cells": SHARD, "refine": "none"}


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """A dataset of ``N_SHARDS`` shards."""
    return write_cells(tmp_path_factory.mktemp("many") / "many.h5ad", N_SHARDS * SHARD, 300, 60)


@pytest.fixture(scope="session")
def undisturbed(many, tiny_model, tmp_path_factory, ray):
    """The bytes of its annotations."""
    out = tmp_path_factory.mktemp("undisturbed")
    annotate(AnnotateSettings.checked(**settings_of(many, tiny_model), out=str(out)))
    return (out / "datasets" / "many" / "annotations.parquet").read_bytes()
