"""A small language model of puzzles, trained from scratch: Qwen2's architecture, a tokenizer of its own.

Contract: learns from the training cells of ``cellray.puzzles.build``'s split alone; every puzzle is drawn anew, with
genes left out at random. The epoch whose weights are kept is chosen by puzzles of the split's validation cells. It is a
model for tests, demonstrations and plumbing: what it writes before the answer is a list of cell types and no reasoning.
Post-training of real models is not done here.

The vectors of genes start from singular vectors of the training cells' gene lists: a model this small would spend most
of its steps on finding out which genes go together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cellray.ingest import find_sources
from cellray.puzzles.answer import solution
from cellray.puzzles.build import split_rows
from cellray.puzzles.cells import RankedCells, Ranking, read_ranked
from cellray.puzzles.puzzle import Puzzle
from cellray.train.config import PuzzleLMConfig, Sizes
from cellray.train.initial import loadings
from cellray.train.loop import Alone, OnRay, Plan, fit, warm_cosine
from cellray.train.puzzle_tokens import END, gene_pieces, puzzle_tokenizer

# What only controls training imports this module too, and needs no model.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

_SPREAD = 0.05
_WARM_UP = 0.05
_LEAST_VARIANCE = 1e-5
_MOST_EXTRA = 3


@dataclass(frozen=True)
class TypedCells:
    """Cells of one dataset by type: gene lists, and the context of the dataset's first cell."""

    context: str
    by_type: dict[str, list[tuple[str, ...]]]


@dataclass(frozen=True)
class PuzzleLMInput:
    """What every worker needs; ``genes`` and ``vectors`` (genes, width) are the tokens that start with a meaning.

    ``held`` are the puzzles of validation cells; none where those are too few, and the last epoch is kept then.
    """

    config: PuzzleLMConfig
    sets: tuple[TypedCells, ...]
    held: tuple[Puzzle, ...]
    genes: list[str]
    vectors: np.ndarray
    labels: list[str]


def prepare_puzzles(config: PuzzleLMConfig, folder: Path) -> PuzzleLMInput:
    """Read the training and validation cells of every file under ``folder``."""
    ranking = Ranking(label_key=config.label_key, top_genes=config.listed_genes)
    sets, held = [], []
    for source in find_sources([str(folder / name) for name in config.files]):
        cells = read_ranked(source, ranking)
        rows = split_rows(cells, config.held_out, by_donor=False)
        sets.append(_typed(cells, rows["train"]))
        held.append(_typed(cells, rows["validation"]))
    plain = config.model_copy(update={"most_dropped": 0.0, "extra_share": 0.0})
    rng = np.random.default_rng([config.seed, len(sets)])
    mixed = [one for one in held if len(one.by_type) > 1]
    each = -(-config.validation_puzzles // max(1, len(mixed)))
    judged = [draw(one, plain, rng) for one in mixed for _ in range(each)]
    lists = [genes for typed in sets for cells in typed.by_type.values() for genes in cells]
    genes, counts = np.unique(np.concatenate([np.array(one) for one in lists]), return_counts=True)
    known = genes[counts >= config.min_gene_cells].tolist()
    labels = sorted({label for typed in sets for label in typed.by_type})
    return PuzzleLMInput(config, tuple(sets), tuple(judged), known, gene_vectors(lists, known, config), labels)


def _typed(cells: RankedCells, rows: Sequence[int]) -> TypedCells:
    by_type: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        by_type.setdefault(cells.labels[row], []).append(cells.genes[row])
    return TypedCells(cells.contexts[0], by_type)


def gene_vectors(lists: Sequence[tuple[str, ...]], genes: list[str], config: PuzzleLMConfig) -> np.ndarray:
    """Right singular vectors of cells by genes, whose entries fall with the rank; (genes, width) float32."""
    number = {gene: at for at, gene in enumerate(genes)}
    rows, columns, values = [], [], []
    for row, cell in enumerate(lists):
        for rank, gene in enumerate(cell):
            if gene in number:
                rows.append(row)
                columns.append(number[gene])
                values.append(1 / np.log2(2 + rank))
    cells = sparse.csr_matrix((values, (rows, columns)), (len(lists), len(genes)))
    found = loadings(cells, config.sizes.hidden, config.seed, least_variance=_LEAST_VARIANCE)
    vectors = np.zeros((len(genes), config.sizes.hidden), np.float32)
    vectors[:, : found.shape[1]] = found * (_SPREAD / found.std())
    return vectors


def draw(typed: TypedCells, config: PuzzleLMConfig, rng: np.random.Generator) -> Puzzle:
    """Draw a puzzle: cells of different types, each with up to ``most_dropped`` of its genes left out."""
    types = sorted(typed.by_type)
    most = min(config.max_cells, len(types))
    n = int(rng.integers(min(config.min_cells, most), most + 1))
    order = [str(label) for label in rng.permutation(types)]
    extra = int(rng.integers(1, _MOST_EXTRA + 1)) if rng.random() < config.extra_share else 0
    cells = []
    for label in order[:n]:
        own = typed.by_type[label]
        genes = own[int(rng.integers(len(own)))]
        kept = rng.random(len(genes)) >= rng.uniform(0, config.most_dropped)
        shown = [gene for gene, keep in zip(genes, kept, strict=True) if keep] or list(genes)
        cells.append(tuple(shown[: config.top_genes]))
    candidates = tuple(str(label) for label in rng.permutation(order[: n + extra]))
    return Puzzle(typed.context, tuple(cells), candidates, tuple(order[:n]))


@dataclass(frozen=True)
class _Batch:
    ids: Tensor
    target: Tensor

    def to(self, device: torch.device) -> "_Batch":
        return _Batch(self.ids.to(device), self.target.to(device))


def random_model(tokenizer: "PreTrainedTokenizerBase", sizes: Sizes, **more: Any) -> "Qwen2ForCausalLM":
    """Return a model of random weights for the words of ``tokenizer``; ``more`` goes to its configuration."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": sizes.max_tokens,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen2ForCausalLM(Qwen2Config(**{**fields, **more}))


class PuzzleLMTrainer(nn.Module):
    """The model, its tokenizer, and the loss of what it says."""

    def __init__(self, given: PuzzleLMInput) -> None:
        super().__init__()
        self.tokenizer = puzzle_tokenizer(given.genes, given.labels, [typed.context for typed in given.sets])
        sizes = given.config.sizes
        self.model = random_model(self.tokenizer, sizes)
        with torch.no_grad():
            vectors = torch.from_numpy(given.vectors)
            for place in (0, 1):
                ids = self.tokenizer.convert_tokens_to_ids([gene_pieces(gene)[place] for gene in given.genes])
                self.model.model.embed_tokens.weight[ids] = vectors

    def forward(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and it again by name."""
        batch = batch.to(self.model.device)
        loss = self.model(input_ids=batch.ids, labels=batch.target).loss
        return loss, {"loss": loss.detach()}


class Drawn(Dataset[_Batch]):
    """A worker's batches of an epoch, drawn when they are asked for."""

    def __init__(
        self, given: PuzzleLMInput, tokenizer: "PreTrainedTokenizerBase", epoch: int, rank: int, world: int
    ) -> None:
        self._given, self._tokenizer, self._seed = given, tokenizer, [given.config.seed, epoch, rank]
        self._steps = -(-given.config.steps // world)
        weights = np.sqrt([sum(map(len, typed.by_type.values())) for typed in given.sets])
        self._shares = weights / weights.sum()

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> _Batch:
        config, sets = self._given.config, self._given.sets
        rng = np.random.default_rng([*self._seed, step])
        chosen = rng.choice(len(sets), config.batch_puzzles, p=self._shares)
        return _batch([draw(sets[number], config, rng) for number in chosen], self._tokenizer)


def _batch(puzzles: Sequence[Puzzle], tokenizer: "PreTrainedTokenizerBase") -> _Batch:
    asked, said = [], []
    for puzzle in puzzles:
        chat: Any = tokenizer.apply_chat_template(puzzle.messages(), tokenize=False, add_generation_prompt=True)
        asked.append(tokenizer(chat, add_special_tokens=False)["input_ids"])
        said.append(tokenizer(solution(puzzle) + END, add_special_tokens=False)["input_ids"])
    longest = max(len(a) + len(b) for a, b in zip(asked, said, strict=True))
    ids = np.full((len(puzzles), longest), tokenizer.pad_token_id, np.int64)
    target = np.full((len(puzzles), longest), -100, np.int64)
    for row, (prompt, answer) in enumerate(zip(asked, said, strict=True)):
        whole = len(prompt) + len(answer)
        ids[row, :whole] = [*prompt, *answer]
        target[row, len(prompt) : whole] = answer
    return _Batch(torch.from_numpy(ids), torch.from_numpy(target))


def pretrain_puzzles(given: PuzzleLMInput, workers: Alone | None = None) -> tuple[PuzzleLMTrainer, dict[str, float]]:
    """Train a model; returns it with its tokenizer, and what the loop says of itself."""
    workers = workers or Alone()
    config = given.config
    torch.manual_seed(config.seed)
    trainer = PuzzleLMTrainer(given).to(workers.device)
    size = config.batch_puzzles
    judged = [_batch(given.held[at : at + size], trainer.tokenizer) for at in range(0, len(given.held), size)]

    def batches(epoch: int, rank: int, world: int) -> DataLoader[_Batch]:
        drawn = Drawn(given, trainer.tokenizer, epoch, rank, world)
        # Not forked: a worker of Ray has threads beside this one.
        how = "forkserver" if config.drawers else None
        return DataLoader(drawn, batch_size=None, num_workers=config.drawers, multiprocessing_context=how)

    @torch.no_grad()
    def validate() -> float:
        return -float(np.mean([float(trainer(batch)[0]) for batch in judged]))

    facts = fit(
        trainer,
        trainer,
        torch.optim.AdamW(trainer.parameters(), config.learning_rate, weight_decay=config.weight_decay),
        batches,
        Plan(config.epochs, config.seed, partial(warm_cosine, warm_up=_WARM_UP)),
        validate=validate if judged else None,
        workers=workers,
    )
    return trainer, facts


def save_puzzle_model(folder: Path, trainer: PuzzleLMTrainer) -> None:
    """Write a Hugging Face model folder, weights in float16."""
    trainer.model.half().save_pretrained(folder)
    trainer.model.float()
    trainer.tokenizer.save_pretrained(folder)


def pretrain_puzzles_worker(loop: dict[str, PuzzleLMInput]) -> None:
    """Run the loop of ``loop["given"]`` on one Ray Train worker."""
    pretrain_puzzles(loop["given"], OnRay())
