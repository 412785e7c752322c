"""Pre-train a small LangCell, scGPT-architecture or puzzle language model with Ray Train.

``python -m jobs.pretrain --config FILE --data DIR --out DIR``

The configuration's ``architecture`` says which (``cellray.train.config``). Running the same command again after a crash
goes on from the last checkpoint. The result is a model folder for ``--model``.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer

from cellray import storage
from cellray.errors import CellRayError, Terminated, one_line
from cellray.labels.candidates import Label, prompt
from cellray.labels.ontology import Ontology
from cellray.models import checkpoints
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.targets import check_model_folder, reserve
from cellray.train.checkpoint import restore
from cellray.train.config import Architecture, PretrainConfig, PuzzleLMConfig, ScGPTPretrainConfig
from cellray.train.prepare import prepare
from cellray.train.pretrain import Average, Pretrainer, TrainingInput, model_config, train_worker
from cellray.train.puzzle_lm import PuzzleLMTrainer, prepare_puzzles, pretrain_puzzles_worker, save_puzzle_model
from cellray.train.scgpt_corpus import prepare_scgpt
from cellray.train.scgpt_pretrain import ScGPTInput, ScGPTPretrainer, checkpoint_of, pretrain_worker
from cellray.train.terms import Terms
from jobs.numbers import count
from jobs.training import add_arguments, trained


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, save; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.pretrain", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML of one of the classes in cellray.train.config")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that the configuration's files are relative to"
    )
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=count, default=None, help="LangCell, puzzles: overrides the configuration")
    parser.add_argument("--epochs", type=count, default=None, help="scGPT, puzzles: overrides the configuration")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    try:
        architecture = Architecture.read(given.config).architecture
        if architecture == "qwen2":
            reserve(given.out, None, [given.data])
        else:
            check_model_folder(given.out)
        if architecture == "scgpt":
            scgpt(ScGPTPretrainConfig.read(given.config, epochs=given.epochs), given)
        elif architecture == "qwen2":
            puzzles(PuzzleLMConfig.read(given.config, epochs=given.epochs, steps=given.steps), given)
        else:
            langcell(PretrainConfig.read(given.config, steps=given.steps), given)
    except (CellRayError, Terminated) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    return 0


def langcell(config: PretrainConfig, given: argparse.Namespace) -> None:
    """Prepare the corpus, train on the cluster and write the model folder."""
    training, empty = langcell_input(config, given.data, given.runs)
    sys.stdout.write(
        f"{len(training.corpus.label)} cells, {training.cls_token - 2} genes, {len(empty.labels)} labels,"
        f" {len(training.terms.ids)} terms\n"
    )
    average = Average(Pretrainer(training).model, config.average_decay)
    with trained(train_worker, training, config.name, given, on_gpus=False) as folder:
        restore(folder, {"average": average})
    checkpoints.save(given.out, replace(empty, state=average.model.state_dict()), torch.float16)


def langcell_input(config: PretrainConfig, data: Path, runs: Path) -> tuple[TrainingInput, LangCellCheckpoint]:
    """Return what is trained on, and the model without weights."""
    ontology = Ontology()
    prepared = prepare(config, data, lambda term: ontology.find(term) == term)
    terms = Terms.build(prepared.labels, ontology.ancestors)
    prompts = [prompt(ontology.name(term), ontology.definition(term)) for term in terms.ids]
    tokenizer = text_tokenizer(ontology, config.text_vocab, runs / f"{config.name}-tokenizer.json")
    cls_token = int(prepared.genes["token"].to_numpy().max()) + 1
    sizes = model_config(config, cls_token, tokenizer.get_vocab_size())
    labels = [Label(ontology.name(term), term, text) for term, text in zip(prepared.labels, prompts, strict=False)]
    empty = LangCellCheckpoint(
        config.name, "", sizes, {}, prepared.genes, prepared.symbols, tokenizer, [vars(label) for label in labels]
    )
    text_ids = empty.text_ids(prompts).numpy()
    return TrainingInput(config, prepared.corpus, terms, text_ids, cls_token, tokenizer.get_vocab_size()), empty


def scgpt(config: ScGPTPretrainConfig, given: argparse.Namespace) -> None:
    """Prepare the corpus, train on the cluster and write the model folder."""
    training = ScGPTInput(config, prepare_scgpt(config, given.data))
    n_cells = int((~training.corpus.held_out).sum())
    sys.stdout.write(f"{n_cells} training cells, {training.corpus.genes.num_rows} genes\n")
    trainer = ScGPTPretrainer(training)
    with trained(pretrain_worker, training, config.name, given) as folder:
        restore(folder, {"best": trainer})
    checkpoints.save(given.out, checkpoint_of(training, trainer.base), torch.float16)


def puzzles(config: PuzzleLMConfig, given: argparse.Namespace) -> None:
    """Read the training cells, train on the cluster and write the model folder."""
    training = prepare_puzzles(config, given.data)
    n_cells = sum(len(cells) for typed in training.sets for cells in typed.by_type.values())
    sys.stdout.write(f"{n_cells} training cells, {len(training.genes)} genes, {len(training.labels)} labels\n")
    trainer = PuzzleLMTrainer(training)
    with trained(pretrain_puzzles_worker, training, config.name, given) as folder:
        restore(folder, {"best": trainer})
    save_puzzle_model(given.out, trainer)


def text_tokenizer(ontology: Ontology, vocab: int, kept: Path) -> Tokenizer:
    """Train a WordPiece vocabulary on the names and definitions of all Cell Ontology terms, or read the ``kept`` one.

    The library's trainer breaks ties at random, so a run that is resumed must find the vocabulary it began with.
    """
    if kept.is_file():
        return Tokenizer.from_file(str(kept))
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    texts = [prompt(ontology.name(term), ontology.definition(term)) for term in ontology.terms()]
    wordpiece.train_from_iterator(texts, vocab_size=vocab, min_frequency=2, show_progress=False)
    storage.put(str(kept), wordpiece.to_str().encode())
    return Tokenizer.from_file(str(kept))


if __name__ == "__main__":
    sys.exit(main())
