"""What the plugin benchmark is made of: bases that never saw some types, splits, baselines on counts.

Contract: a pure function of the data, the seed and the arguments; bases are kept in the work folder and read back.
Splits are those of ``cellray.train.plugins.split`` with a fifth held out, which the bases never saw either.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cellray.models import checkpoints
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.plugins.reading import Reading, read_labelled
from cellray.tokenize.cells import Cells
from cellray.train.config import HoldOut, ScGPTPretrainConfig, Sizes
from cellray.train.loop import Alone
from cellray.train.plugins import split
from cellray.train.scgpt_corpus import ScGPTCorpus, prepare_scgpt
from cellray.train.scgpt_pretrain import ScGPTInput, checkpoint_of, pretrain

HELD_OUT = 0.2
FILES = {"blood": "datasets/pbmc_zheng2017_facs.h5ad", "liver": "datasets/liver_he2020.h5ad"}
UNSEEN = {
    "blood": ("CD19+ B", "CD34+", "CD4+/CD25 T Reg"),
    "liver": ("Lymphatic Endothelial Cell", "Macrophage LST1_high"),
}
_CONFIG = Path(__file__).parents[1] / "configs" / "mini-scgpt.yaml"
_SMALL = {"epochs": 1, "top_genes": 200, "sizes": Sizes(hidden=32, layers=1, heads=2, ffn=32, max_tokens=33)}


@dataclass(frozen=True)
class Study:
    """Data, work folder and seed of one base that never saw ``UNSEEN``.

    Attributes
    ----------
    tissue, kind
        What of the tissue the base saw: ``native``: all; ``unlabelled``: no labels; ``foreign``: no cells either, but
        they are among those that genes are chosen by and principal components are made from.
    small
        The base learned hardly anything: to see that all goes through.
    device
        Where bases and plugins are trained.
    """

    data: Path
    work: Path
    seed: int
    tissue: str
    kind: str = "native"
    small: bool = False
    device: str = "cpu"

    @property
    def workers(self) -> Alone:
        """What training loops run on."""
        return Alone(self.device)

    @cached_property
    def corpus(self) -> ScGPTCorpus:
        """What the base was trained on; its genes are chosen without the held-out cells and types."""
        return prepare_scgpt(self._config(), self.data)

    @cached_property
    def base(self) -> ScGPTCheckpoint:
        """The base, trained when it is not in the work folder yet."""
        folder = self.work / f"base-{self.seed}{'' if self.kind == 'native' else f'-{self.kind}-{self.tissue}'}"
        if not (folder / "config.json").is_file():
            given = ScGPTInput(self._config(), self._seen())
            trainer, _ = pretrain(given, self.workers)
            checkpoints.save(folder, checkpoint_of(given, trainer.base.cpu()), torch.float16)
        loaded = checkpoints.load(str(folder))
        assert isinstance(loaded, ScGPTCheckpoint)  # noqa: S101 - for the type checker
        return loaded

    def cells(self) -> Cells:
        """All cells of the tissue, in the order of its file."""
        return read_labelled([str(self.data / FILES[self.tissue])], self.base, Reading(min_genes=1)).cells

    def expression(self) -> np.ndarray:
        """Standardised log expression of the same cells, (n, genes)."""
        return self.corpus.targets(np.flatnonzero(self._own()))

    def _seen(self) -> ScGPTCorpus:
        if self.kind == "native":
            return self.corpus
        own = self._own()
        held_out = self.corpus.held_out | (own if self.kind == "foreign" else False)
        return replace(self.corpus, label=np.where(own, -1, self.corpus.label), held_out=held_out)

    def _own(self) -> np.ndarray:
        number = [entry.file for entry in self._config().sets].index(FILES[self.tissue])
        return self.corpus.dataset == number

    def _config(self) -> ScGPTPretrainConfig:
        config = ScGPTPretrainConfig.read(_CONFIG, seed=self.seed, name=f"strict-{self.seed}")
        rules = {
            FILES[tissue]: HoldOut(fraction=HELD_OUT, key="cell_type", values=types) for tissue, types in UNSEEN.items()
        }
        sets = tuple(
            entry.model_copy(update={"hold_out": rules.get(entry.file, entry.hold_out)})
            for entry in config.sets
            if entry.file in rules or not self.small
        )
        return config.model_copy(update={"sets": sets, **(_SMALL if self.small else {})})


def parts(cells: Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of training, validation and test cells."""
    validation, test = split(cells, HELD_OUT, by_group=False)
    return tuple(map(np.flatnonzero, (~(validation | test), validation, test)))  # type: ignore[return-value]


def on_counts(x: np.ndarray, labels: np.ndarray, *, balanced: bool = False) -> dict[str, object]:
    """Fit the two baselines on standardised log expression: logistic regression and nearest centroid."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid

    weight = "balanced" if balanced else None
    return {
        "logistic": LogisticRegression(C=0.01, max_iter=500, class_weight=weight).fit(x, labels),
        "centroid": NearestCentroid().fit(x, labels),
    }
