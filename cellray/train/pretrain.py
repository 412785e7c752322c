"""The pre-training loop of one Ray Train worker: LangCell from scratch on labelled cells.

Deviations from the LangCell paper, made for a model that must ship in a few megabytes:

1. Both encoders start from random weights; the paper starts from Geneformer and PubMedBERT.
2. Cells are cut to random gene panels, so that the model stands datasets of a few hundred genes.
3. A cell's text is now and then that of an ancestor term, so that coarse label sets work (``cellray.train.terms``).
4. Masked genes are predicted in the same pass as the other losses, in every second cell.
5. Gene embeddings start from a singular value decomposition of the training cells (``cellray.train.initial``).
6. One CLS serves the contrastive and the matching loss; there is no momentum encoder or queue.
7. Gene programs are switched on and off in training cells, so that no one program decides (``cellray.train.programs``),
   and some genes of another cell are mixed into every second one, as ambient RNA does (``cellray.train.corpus``).
8. In a second phase cross-attention and matching head are trained alone, on a hard and a random negative text: hard
   ones come from the cell's own lineage, and of other texts the head would have no idea.
9. The result is a moving average of the weights, which is steadier than the last of them on cells of other labs.

The loop goes on from the last checkpoint of the workers it is given; it knows no dataset format.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cellray.models.bert import BertConfig
from cellray.models.langcell import LangCell, LangCellConfig
from cellray.models.packed import Segments, places
from cellray.train import losses
from cellray.train.checkpoint import restore, save, state_of
from cellray.train.config import PretrainConfig, Sizes
from cellray.train.corpus import FIRST_GENE, Batch, Corpus, Sampler
from cellray.train.initial import gene_vectors, initialise
from cellray.train.loop import Alone, OnRay, decay_at
from cellray.train.programs import Programs
from cellray.train.terms import Terms


@dataclass(frozen=True)
class TrainingInput:
    """What every worker needs: settings, cells, terms, tokenised term texts and the sizes of both vocabularies."""

    config: PretrainConfig
    corpus: Corpus
    terms: Terms
    text_ids: np.ndarray
    cls_token: int
    text_vocab: int


def model_config(config: PretrainConfig, cls_token: int, text_vocab: int) -> LangCellConfig:
    """Sizes of the model that ``config`` describes."""

    def bert(sizes: Sizes, vocab: int, act: str, **more: Any) -> BertConfig:
        return BertConfig(
            vocab_size=vocab,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.ffn,
            max_position_embeddings=sizes.max_tokens,
            hidden_act=act,
            hidden_dropout_prob=sizes.dropout,
            **more,
        )

    text = bert(config.text, text_vocab, "gelu", token_types=False, encoder_width=config.cell.hidden)
    return LangCellConfig(bert(config.cell, cls_token + 1, "relu"), text, config.cell.max_tokens, cls_token)


class Pretrainer(nn.Module):
    """The model with its losses, as one module so that gradients are averaged over workers."""

    def __init__(self, given: TrainingInput) -> None:
        super().__init__()
        self.given = given
        self.model = LangCell(model_config(given.config, given.cls_token, given.text_vocab))
        self.gene_bias = nn.Parameter(torch.zeros(given.cls_token + 1))
        self.apply(initialise)

    def start_from(self, vectors: np.ndarray) -> None:
        """Add (n_tokens, hidden) gene vectors to the embedding's noise."""
        with torch.no_grad():
            self.model.cell_bert.embeddings.word_embeddings.weight += torch.from_numpy(vectors)

    def only_matching(self) -> None:
        """Freeze all but what nothing else uses: cross-attention and the matching head."""
        self.requires_grad_(requires_grad=False)
        self.model.ctm_head.requires_grad_(requires_grad=True)
        for layer in self.model.text_bert.layers:
            layer.crossattention.requires_grad_(requires_grad=True)

    def forward(
        self, batch: Batch, generator: torch.Generator, *, matching_only: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss and its parts; in the second phase that of matching alone."""
        model, config = self.model, self.given.config
        temperature = model.config.temperature
        relations = torch.from_numpy(batch.relations)
        with torch.set_grad_enabled(not matching_only):
            there = batch.ids != model.config.cell.pad_token_id
            packed = Segments.of(there.sum(axis=1).tolist())
            cells, states = model.encode_cells(torch.from_numpy(batch.ids[there]), packed)
            texts = model.encode_texts(torch.from_numpy(self.given.text_ids[batch.texts]))
        pairs = [
            torch.from_numpy(batch.target),
            losses.hard_negatives(cells, texts.embeddings, relations, temperature, generator),
        ]
        if matching_only:
            pairs.append(losses.random_negatives(relations, generator))
        pair = torch.stack(pairs, 1)
        logits = model.match(states, packed, texts.states[pair], texts.mask[pair])
        matching = losses.matching(logits, (relations == -1).any(1))
        if matching_only:
            return matching, {"matching": matching.detach()}
        parts = {
            "contrastive": losses.contrastive(cells, texts.embeddings, relations, temperature),
            "matching": matching,
        }
        at = torch.from_numpy(batch.masked_at)
        embedding = model.cell_bert.embeddings.word_embeddings.weight
        genes = torch.from_numpy(batch.masked_genes)
        parts["masked"] = losses.masked_genes(
            states[packed.first[at[:, 0]] + at[:, 1]], genes, embedding, self.gene_bias
        )
        total = parts["contrastive"] + config.ctm_weight * parts["matching"] + config.masked_weight * parts["masked"]
        return total, {name: value.detach() for name, value in parts.items()}


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero, in each phase."""
    highest, steps = config.learning_rate, config.steps
    if step >= config.steps:
        highest, steps, step = config.matching_learning_rate, config.matching_steps, step - config.steps
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Average(AveragedModel):
    """Moving average of a model's weights, quicker in the first steps so that it forgets where they began.

    Parameters
    ----------
    model
        Whose weights; ``update_parameters(model)`` takes them in after each step.
    decay
        Weight of the average against the newest weights, once ``decay`` < (step + 1) / (step + 10).
    """

    def __init__(self, model: LangCell, decay: float) -> None:
        def mean(average: Tensor, now: Tensor, n_averaged: Tensor | int) -> Tensor:
            return now.lerp(average, decay_at(decay, n_averaged))

        super().__init__(model, avg_fn=mean)

    @property
    def model(self) -> LangCell:
        """The averaged model."""
        return cast("LangCell", self.module)


def held_out_accuracy(model: LangCell, given: TrainingInput) -> float:
    """Share of labelled held-out cells whose most similar label text is their own (similarity branch, whole cells)."""
    corpus = given.corpus
    rows = np.flatnonzero(corpus.held_out & (corpus.label >= 0))
    if not len(rows):
        return math.nan
    labels = torch.from_numpy(given.text_ids[: given.terms.n_labels])
    right = 0
    with torch.inference_mode():
        texts = model.encode_texts(labels)
        for part in np.split(rows, range(128, len(rows), 128)):
            index, lengths = places(corpus.offsets, part, model.config.max_tokens)
            ids = np.where(index < 0, model.config.cls_token, corpus.flat[index]).astype(np.int64)
            found = model.embed_cells(torch.from_numpy(ids), Segments.of(lengths)) @ texts.embeddings.T
            right += int((found.argmax(1).numpy() == corpus.label[part]).sum())
    return right / len(rows)


def train(given: TrainingInput, workers: Alone | None = None) -> LangCell:
    """Train, from the latest checkpoint when there is one; returns the averaged model."""
    workers = workers or Alone()
    config = given.config
    torch.manual_seed(config.seed)
    trainer = Pretrainer(given)
    vectors = gene_vectors(given.corpus, given.cls_token + 1, config.cell.hidden, config.seed)
    trainer.start_from(vectors)
    optimiser = torch.optim.AdamW(trainer.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    average = Average(trainer.model, config.average_decay)
    kept = {"module": trainer, "average": average}
    first = workers.resume(lambda folder: restore(folder, kept, optimiser))
    parallel: nn.Module | None = None
    sampler = Sampler(given.corpus, given.terms, config, given.cls_token, Programs(vectors, FIRST_GENE))
    for step in range(first, config.all_steps):
        matching_only = step >= config.steps
        if step == config.steps:
            trainer.model.load_state_dict(average.model.state_dict())
        if parallel is None or step == config.steps:
            if matching_only:
                trainer.only_matching()
            parallel = workers.parallel(trainer)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        # Dropout and negatives depend on the step alone, so a resumed run repeats an undisturbed one.
        torch.manual_seed(hash((config.seed, workers.rank, step)) & 0x7FFFFFFF)
        generator = torch.Generator().manual_seed(step)
        parallel.train()
        loss, parts = parallel(sampler.batch(workers.rank, step), generator, matching_only=matching_only)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(trainer.model)
        if (step + 1) % config.checkpoint_steps == 0 or step + 1 in (config.steps, config.all_steps):
            metrics = {"step": step + 1, "loss": loss.item(), **{name: value.item() for name, value in parts.items()}}
            if workers.rank == 0:
                metrics["held_out_accuracy"] = held_out_accuracy(average.model.eval(), given)
            state = state_of(kept, optimiser, keep=workers.rank == 0)
            workers.report(metrics, partial(save, state=state, step=step + 1))
    return average.model.eval()


def train_worker(loop: dict[str, TrainingInput]) -> None:
    """Run ``train`` on one Ray Train worker."""
    train(loop["given"], OnRay())
