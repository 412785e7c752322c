"""Pre-training of a small scGPT-architecture base: expression from CLS, masked values, labels of training cells.

Deviations from scGPT's pre-training, made for a base of a few hundred thousand weights and a few thousand cells:

1. CLS predicts the cell's expression in the basis of its principal components, each of unit variance, by a linear map;
   upstream multiplies gene and cell vectors for the genes of a batch. Most of a single gene's variance is noise, and
   its share of the loss would be too.
2. Gene vectors start from the components' loadings, so that genes that go together need not be found out first.
3. Masked values are predicted by a two-layer head on the gene's own state before the last layer, in the same pass.
4. Labels of the training cells are predicted from CLS, a dataset's cells among its own labels: without them a base of
   this size is worse than the genes themselves.
5. A share of a cell's genes is left out, drawn anew each time, so that shallow cells and small panels are nothing new.
6. The result is a moving average of the weights.

The heads are not kept. The loop is ``cellray.train.loop``.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.models.packed import Segments
from cellray.models.scgpt import ScGPT
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.train.config import ScGPTPretrainConfig
from cellray.train.initial import initialise
from cellray.train.loop import Alone, OnRay, Plan, fit, shuffled, warm_cosine
from cellray.train.scgpt_corpus import ScGPTCorpus, model_config
from cellray.train.thinned import thinned

_MASK_VALUE = -1.0
_WARM_UP = 0.1
_LARGE = 1e9
_LARGEST_ERROR = 25.0  # squared standard deviations; single cells are far out
_SPREAD = 0.05  # of the gene vectors at the start


@dataclass(frozen=True)
class ScGPTInput:
    """What every worker needs."""

    config: ScGPTPretrainConfig
    corpus: ScGPTCorpus


@dataclass(frozen=True)
class _Batch:
    ids: Tensor
    values: Tensor
    cells: Segments
    masked: Tensor
    truth: Tensor
    rows: np.ndarray

    def to(self, device: torch.device) -> "_Batch":
        ids, values, masked, truth = (one.to(device) for one in (self.ids, self.values, self.masked, self.truth))
        return _Batch(ids, values, self.cells.to(device), masked, truth, self.rows)


class ScGPTPretrainer(nn.Module):
    """The base with the heads of its losses."""

    def __init__(self, given: ScGPTInput) -> None:
        super().__init__()
        self.corpus, self.config = given.corpus, given.config
        sizes = model_config(given.config, given.corpus.genes.num_rows)
        self.base = ScGPT(sizes)
        width = sizes.hidden_size
        self.expression = nn.Linear(width, given.corpus.scores.shape[1])
        self.value = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1))
        self.classes = nn.Linear(width, given.corpus.classes.shape[1])
        self.apply(initialise)
        vectors = torch.from_numpy(given.corpus.vectors[:, :width])
        with torch.no_grad():
            self.base.encoder.embedding.weight[: len(vectors), : vectors.shape[1]] += vectors * (
                _SPREAD / vectors.std()
            )

    def forward(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss and its parts."""
        corpus, config, batch = self.corpus, self.config, batch.to(self.base.device)
        label, scores, own = (
            torch.from_numpy(one).to(self.base.device)
            for one in (corpus.label[batch.rows], corpus.scores[batch.rows], corpus.classes[corpus.dataset[batch.rows]])
        )
        cls, states = self.base.encode_genes(batch.ids, batch.values, batch.cells)
        error = (self.expression(cls) - scores) ** 2
        found = self.value(states[batch.masked])[:, 0]
        logits = self.classes(cls).masked_fill(~own, -_LARGE)
        parts = {
            "expression": error.clamp(max=_LARGEST_ERROR).mean(),
            "masked": F.mse_loss(found, batch.truth) if len(found) else found.sum(),
            # Cells without a label count as no cell, also where a batch has no other.
            "classes": F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
            / (label >= 0).sum().clamp(min=1),
        }
        total = parts["expression"] + config.masked_weight * parts["masked"] + config.class_weight * parts["classes"]
        return total, {name: value.detach() for name, value in parts.items()}


def batches(given: ScGPTInput, epoch: int, rank: int, world: int) -> list[_Batch]:
    """Return the batches of a worker in an epoch: training cells with genes left out and values masked."""
    corpus, config = given.corpus, given.config
    training = np.flatnonzero(~corpus.held_out & (np.diff(corpus.offsets) > 0))
    rng = np.random.default_rng([config.seed, epoch, rank, 1])
    sizes = model_config(config, corpus.genes.num_rows)
    found = []
    for at in shuffled(len(training), config.batch_cells, config.seed, epoch, rank, world):
        rows = np.sort(training[at])
        ids, values, cell = thinned(sizes, (corpus.tokens, corpus.bins, corpus.offsets), rows, rng, config.drops)
        is_cls = ids == sizes.cls_token
        masked = np.flatnonzero((rng.random(len(ids)) < config.mask_share) & ~is_cls)
        truth = values[masked] / config.n_bins
        values[masked] = _MASK_VALUE
        cells = Segments.of(np.bincount(cell, minlength=len(rows)).tolist())
        tensors = [torch.from_numpy(one) for one in (ids, values, masked, truth)]
        found.append(_Batch(tensors[0], tensors[1], cells, tensors[2], tensors[3], rows))
    return found


def pretrain(given: ScGPTInput, workers: Alone | None = None) -> tuple[ScGPTPretrainer, dict[str, float]]:
    """Train a base; returns it with its heads, on the workers' device, and what the loop says of itself."""
    config, workers = given.config, workers or Alone()
    torch.manual_seed(config.seed)
    trainer = ScGPTPretrainer(given).to(workers.device)
    optimiser = torch.optim.AdamW(trainer.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    facts = fit(
        trainer,
        trainer,
        optimiser,
        lambda epoch, rank, world: batches(given, epoch, rank, world),
        Plan(config.epochs, config.seed, partial(warm_cosine, warm_up=_WARM_UP), average_decay=config.average_decay),
        workers=workers,
    )
    return trainer, facts


def checkpoint_of(given: ScGPTInput, base: ScGPT) -> ScGPTCheckpoint:
    """Return the trained base as the content of a model folder; it has no classes."""
    return ScGPTCheckpoint(given.config.name, "", base.config, base.state_dict(), given.corpus.genes, [])


def pretrain_worker(loop: dict[str, ScGPTInput]) -> None:
    """Run the loop of ``loop["given"]`` on one Ray Train worker."""
    pretrain(loop["given"], OnRay())
