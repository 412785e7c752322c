"""A small base, cells of four made-up types, and plugins trained on them in this process."""

from dataclasses import dataclass
from pathlib import Path

import anndata
import pytest

from cellray.models import checkpoints
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.plugins.making import first_version, plan_training
from cellray.plugins.reading import Found, Reading, read_labelled
from cellray.plugins.version import PluginCheckpoint
from cellray.train.plugins import PluginSettings, train
from jobs.bench.synthetic import write_cells, write_scgpt

N_GENES = 200
SETTINGS = PluginSettings(n_experts=2, rank=2, alpha=2, n_classes=6, epochs=12, learning_rate=1e-2)


@dataclass(frozen=True)
class World:
    """Paths of the base and of cells: of three known types, of the new one, and of all."""

    base: Path
    known: Path
    new: Path
    every: Path

    def checkpoint(self) -> ScGPTCheckpoint:
        """The base."""
        return checkpoints.load(str(self.base))


def version(world: World, path: Path, *, tissue: str = "liver", seed: int = 0) -> PluginCheckpoint:
    """A plugin trained on the cells at ``path``."""
    base = world.checkpoint()
    found = read_labelled([str(path)], base, Reading())
    settings = PluginSettings(**{**vars(SETTINGS), "seed": seed})
    given, test = plan_training(base, found.cells, settings, hold_out=0.4, by_group=False)
    plugin, facts = train(given)
    return first_version(base, given, test, plugin, found, task="cells", tissue=tissue, facts=facts)


def assigner(world: World) -> PluginCheckpoint:
    """A tissue-assignment plugin: T and B cells are blood, the others liver."""
    base = world.checkpoint()
    found = read_labelled([str(world.every)], base, Reading())
    blood = found.cells.take((found.cells.labels == "T cell") | (found.cells.labels == "B cell")).relabelled("blood")
    rest = found.cells.take((found.cells.labels != "T cell") & (found.cells.labels != "B cell")).relabelled("liver")
    cells = type(blood).concatenated([blood, rest])
    given, test = plan_training(base, cells, SETTINGS, hold_out=0.3, by_group=False)
    plugin, facts = train(given)
    return first_version(base, given, test, plugin, Found(cells), task="tissue", tissue="tissues", facts=facts)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Files of the base and the cells."""
    folder = tmp_path_factory.mktemp("plugins")
    every = write_cells(folder / "every.h5ad", 400, N_GENES, 60, seed=1)
    data = anndata.read_h5ad(every)
    is_new = (data.obs["cell_type"] == "monocyte").to_numpy()
    data[~is_new].copy().write_h5ad(folder / "known.h5ad")
    data[is_new].copy().write_h5ad(folder / "new.h5ad")
    return World(write_scgpt(folder / "base", N_GENES), folder / "known.h5ad", folder / "new.h5ad", every)


@pytest.fixture(scope="session")
def liver(world: World) -> PluginCheckpoint:
    """A plugin of three types."""
    return version(world, world.known)


@pytest.fixture(scope="session")
def tissues(world: World) -> PluginCheckpoint:
    """The plugin that tells two made-up tissues apart."""
    return assigner(world)
