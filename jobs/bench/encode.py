"""What encoding costs, against the official way: ``python -m jobs.bench.encode [--data DIR] [--json]``.

Ratios of seconds within one run, real sizes, random weights, float32 on a CPU; the baseline is ``jobs.bench.official``
in batches of 32 cells:

``langcell_zero_shot_ratio``
    Cells with 8 labels through both branches. Goal: 3. Of the baseline's passes over labels ``ctm_passes_timed`` are
    really timed, the others counted like them.
``langcell_similarity_ratio``
    The same with ``alpha`` 1, where the baseline too leaves matching out. Goal: 1.5.
``scgpt_ratio``
    scGPT embeddings of at most 1,200 tokens. Goal: 1.5.
``binning_ratio``
    scGPT's bins against a loop of ``numpy.quantile`` and ``digitize`` over cells, medians of five. Goal: 5.

``label_agreement_float16``, ``label_agreement_bfloat16``, ``score_gap_float16``, ``score_gap_bfloat16``
    With ``--data``: share of real cells to which ``mini`` gives the label that it gives in float32 on a CPU, and the
    largest difference of a score; on a GPU, if there is one, where float32 is compared as well. Goal: 0.999.

Cells have the lengths of cells drawn from the labelled datasets of ``--data``, else of a log-normal distribution.

``--model langcell-12l|scgpt-12l --random-weights`` measures one encoder alone, on a GPU if there is one: cells and
tokens a second, share of the machine's matrix-product peak and peak memory, at full length and on the natural mix. It
needs neither Ray nor scanpy.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import torch
from scipy import sparse
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from cellray import schema
from cellray.encode import tokenizer_of
from cellray.encode.encoder import Encoder
from cellray.encode.langcell import LangCellEncoder
from cellray.encode.scgpt import ScGPTEncoder
from cellray.ingest import GeneIndex, find_sources, inspect_dataset, read_shard
from cellray.models import checkpoints
from cellray.models.bert import BertConfig
from cellray.models.langcell import LangCell, LangCellConfig
from cellray.models.langcell_folder import LangCellCheckpoint
from cellray.models.scgpt import ScGPT, ScGPTConfig
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.tokenize.bins import bin_tokens
from cellray.tokenize.shards import token_table
from jobs.bench import official
from jobs.numbers import count

_BATCH = 32
_LABELS, _WORDS = 8, 48
_PASSES = 2
_FEWEST = 20  # genes of a cell, as in a run
_REPEATS = 5
_ALONE = 4096
_GENES = 25_000
_PEAK_FLOPS = 790e12  # dense half precision of one H200, as reached by large products
_DATASETS = ("pbmc_zheng2017_facs", "liver_he2020", "pancreas_baron2016_mini", "pbmc_kang2018_1267genes")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.encode", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=None, help="folder of real datasets, for the lengths of cells")
    parser.add_argument("--only", choices=["langcell", "scgpt", "binning", "precision"], default=None)
    parser.add_argument("--cells", type=count, default=None, help="cells of each comparison")
    parser.add_argument("--model", choices=["langcell-12l", "scgpt-12l"], default=None, help="measure one alone")
    parser.add_argument("--random-weights", action="store_true", help="with --model: there are no others here")
    given = parser.parse_args(arguments)
    if given.model and not given.random_weights:
        parser.error("--model names sizes without weights: add --random-weights")
    lengths = natural_lengths(
        given.data, given.cells or (_ALONE if given.model and torch.cuda.is_available() else _BATCH)
    )
    if given.model:
        found = alone(given.model, lengths)
    else:
        found = {"cells": len(lengths), "mean_genes": float(lengths.mean()), "threads": torch.get_num_threads()}
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "binning": binning,
            "scgpt": lambda: scgpt(lengths),
            "langcell": lambda: langcell(lengths),
        }
        if given.data is not None:
            parts["precision"] = lambda: agreement(given.data)
        for name, measure in parts.items():
            if given.only in (None, name):
                found |= measure()
    if given.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        for key, value in found.items():
            sys.stdout.write(f"{key:<32}{value:,.4g}\n" if isinstance(value, float | int) else f"{key:<32}{value}\n")
    return 0


def natural_lengths(folder: Path | None, n: int) -> np.ndarray:
    """Return the numbers of detected genes of ``n`` cells."""
    rng = np.random.default_rng(0)
    if folder is None:
        return np.clip(rng.lognormal(6.7, 0.6, n), 20, 4000).astype(np.int64)
    found = []
    for name in _DATASETS:
        with h5py.File(folder / "datasets" / f"{name}.h5ad") as file:
            found.append(np.diff(file["X"]["indptr"][:]))
    return rng.choice(np.concatenate(found), n, replace=False)


def random_cells(lengths: np.ndarray, longest: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return token columns and offsets of made-up cells."""
    rng = np.random.default_rng(1)
    lengths = np.minimum(lengths, longest - 1)
    tokens = np.concatenate([rng.permutation(_GENES)[:length] + 2 for length in lengths]).astype(np.uint16)
    bins = rng.integers(1, 51, len(tokens)).astype(np.int16)
    return {schema.TOKENS: tokens, schema.BINS: bins}, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def langcell_12l() -> LangCellCheckpoint:
    """Make LangCell's real sizes with random weights."""
    cell = BertConfig(_GENES + 3, 512, 12, 8, 1024, 2048, "relu")
    text = BertConfig(28_895, 768, 12, 12, 3072, 512, "gelu", token_types=False, encoder_width=512)
    config = LangCellConfig(cell, text, 2048, _GENES + 2)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(1, 100)}))
    from tokenizers.pre_tokenizers import Whitespace

    words.pre_tokenizer = Whitespace()
    state = _random(lambda: LangCell(config))
    tables = (schema.genes().empty_table(), schema.symbols().empty_table())
    return LangCellCheckpoint("langcell-12l", "", config, state, *tables, words, [])


def scgpt_12l() -> ScGPTCheckpoint:
    """Make scGPT's real sizes with random weights."""
    config = ScGPTConfig(60_697, 512, 12, 8, 512, 60_695)
    genes: pa.Table = schema.symbol_tokens().empty_table()
    return ScGPTCheckpoint("scgpt-12l", "", config, _random(lambda: ScGPT(config)), genes, [])


def _random(build: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build().state_dict()


def langcell(lengths: np.ndarray) -> dict[str, Any]:
    """Compare LangCell with the official procedure on the same cells."""
    checkpoint = langcell_12l()
    texts = [" ".join(f"w{1 + (label * 7 + word) % 90}" for word in range(_WORDS)) for label in range(_LABELS)]
    columns, offsets = random_cells(lengths, checkpoint.config.max_tokens)
    rows = np.arange(len(lengths))
    model, text_ids = checkpoint.build(), checkpoint.text_ids(texts)
    cls = np.array([checkpoint.config.cls_token])
    cells = [
        torch.from_numpy(
            np.concatenate([cls, columns[schema.TOKENS][offsets[row] : offsets[row + 1]]]).astype(np.int64)
        )
        for row in rows
    ]
    warm = LangCellEncoder(checkpoint, texts, alpha=0.5)
    warm.score_tokens(columns, offsets, rows[:1])

    seconds = {"encode": 0.0, "match": 0.0, "ours": 0.0, "similarity": 0.0}
    theirs = []
    with torch.inference_mode():
        for start in range(0, len(cells), _BATCH):
            ids = official.padded(cells[start : start + _BATCH], 0)
            (_, states, mask), spent = clocked(partial(official.langcell_cells, model, ids))
            seconds["encode"] += spent
            _, spent = clocked(lambda: official.langcell_text(model, text_ids))
            seconds["encode"] += spent
            for label in range(_PASSES):
                text = text_ids[label]
                found, spent = clocked(partial(official.langcell_match, model, states, mask, text))
                seconds["match"] += spent * _LABELS / _PASSES
                theirs.append(found)
            del states
    (_, ours), seconds["ours"] = clocked(lambda: warm.score_tokens(columns, offsets, rows))
    similar = LangCellEncoder(checkpoint, texts, alpha=1)
    (_, again), seconds["similarity"] = clocked(lambda: similar.score_tokens(columns, offsets, rows))
    if np.abs(ours - again).max() > 1e-4 or len(theirs) == 0:
        msg = "the two modes disagree on embeddings"
        raise AssertionError(msg)
    return {
        "langcell_zero_shot_ratio": (seconds["encode"] + seconds["match"]) / seconds["ours"],
        "langcell_similarity_ratio": seconds["encode"] / seconds["similarity"],
        "ctm_passes_timed": _PASSES,
        "langcell_cells_per_s": len(rows) / seconds["ours"],
        "langcell_similarity_cells_per_s": len(rows) / seconds["similarity"],
    }


def scgpt(lengths: np.ndarray) -> dict[str, Any]:
    """Compare scGPT with a padded batch through PyTorch's own transformer."""
    checkpoint = scgpt_12l()
    columns, offsets = random_cells(lengths, checkpoint.config.max_tokens)
    rows = np.arange(len(lengths))
    model, config = checkpoint.build(), checkpoint.config
    own = [slice(offsets[row], offsets[row + 1]) for row in rows]
    ids = [_with_first(columns[schema.TOKENS][one], config.cls_token).long() for one in own]
    values = [_with_first(columns[schema.BINS][one], config.pad_value).float() for one in own]
    encoder = ScGPTEncoder(checkpoint, classify=False)
    encoder.score_tokens(columns, offsets, rows[:1])
    pad = config.cls_token - 1

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            batches = [slice(start, start + _BATCH) for start in range(0, len(rows), _BATCH)]
            found = [
                official.scgpt_embed(
                    model, official.padded(ids[one], pad), official.padded(values[one], config.pad_value), pad
                )
                for one in batches
            ]
        return torch.cat(found).numpy()

    theirs_found, baseline = clocked(theirs)
    (_, ours), spent = clocked(lambda: encoder.score_tokens(columns, offsets, rows))
    if np.abs(ours - theirs_found).max() > 1e-4:
        msg = "embeddings differ from the baseline's"
        raise AssertionError(msg)
    return {"scgpt_ratio": baseline / spent, "scgpt_cells_per_s": len(rows) / spent}


def binning(n_cells: int = 1000, n_genes: int = 16_000, genes_per_cell: int = 1000) -> dict[str, float]:
    """Compare the bins of raw counts with the loop that everybody writes."""
    rng = np.random.default_rng(0)
    columns = np.sort(np.argsort(rng.random((n_cells, n_genes)), 1)[:, :genes_per_cell], 1).astype(np.int32)
    values = rng.geometric(0.6, columns.size).astype(np.float32)
    counts = sparse.csr_matrix((values, columns.ravel(), np.arange(n_cells + 1) * genes_per_cell), (n_cells, n_genes))
    names, tokens = [f"cell{row}" for row in range(n_cells)], np.arange(n_genes)
    bin_tokens(counts, names, tokens)

    def loop() -> None:
        for row in range(n_cells):
            own = counts.data[counts.indptr[row] : counts.indptr[row + 1]]
            edges = np.quantile(own, np.linspace(0, 1, 50))
            left, right = np.digitize(own, edges), np.digitize(own, edges, right=True)
            np.ceil(rng.random(len(own)) * (right - left) + left)

    pairs = [(clocked(loop)[1], clocked(lambda: bin_tokens(counts, names, tokens))[1]) for _ in range(_REPEATS)]
    theirs, ours = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    return {"binning_ratio": theirs / ours, "binning_cells_per_s": n_cells / ours}


def agreement(folder: Path) -> dict[str, float]:
    """Compare labels on this device with those of float32 on a CPU, on every labelled dataset."""
    checkpoint = checkpoints.load_langcell("mini")
    texts = [label["text"] for label in checkpoint.labels]
    tokenizer, genes = tokenizer_of(checkpoint), GeneIndex(checkpoint.genes, checkpoint.symbols)
    dtypes = [torch.float16, torch.bfloat16, *([torch.float32] if torch.cuda.is_available() else [])]
    encoders = {dtype: LangCellEncoder(checkpoint, texts, dtype=dtype) for dtype in dtypes}
    reference = LangCellEncoder(checkpoint, texts, device="cpu", dtype=torch.float32)
    agreed: dict[torch.dtype, list[np.ndarray]] = {dtype: [] for dtype in dtypes}
    gaps = dict.fromkeys(dtypes, 0.0)
    for name in _DATASETS:
        (source,) = find_sources([str(folder / "datasets" / f"{name}.h5ad")])
        plan = inspect_dataset(source, genes)
        cells = read_shard(plan, 0, plan.n_cells, min_genes=_FEWEST, n_slots=len(tokenizer.tokens))
        shard = token_table(cells, tokenizer, plan.slots)
        exact = _scores(reference, shard)
        for dtype, encoder in encoders.items():
            scores = _scores(encoder, shard)
            agreed[dtype].append(scores.argmax(axis=1) == exact.argmax(axis=1))
            gaps[dtype] = max(gaps[dtype], float(np.abs(scores - exact).max()))
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in dtypes}
    shares = {f"label_agreement_{name}": float(np.concatenate(agreed[dtype]).mean()) for dtype, name in names.items()}
    return {**shares, **{f"score_gap_{name}": gaps[dtype] for dtype, name in names.items()}}


def _scores(encoder: Encoder, shard: pa.Table) -> np.ndarray:
    found = encoder.score(shard)[schema.PROBABILITIES].combine_chunks().drop_null()
    return found.flatten().to_numpy().reshape(len(found), -1)


def alone(name: str, lengths: np.ndarray) -> dict[str, Any]:
    """Measure one encoder at full length and on the natural mix of lengths."""
    encoder: Encoder
    if name == "langcell-12l":
        checkpoint = langcell_12l()
        encoder = LangCellEncoder(checkpoint, batch_tokens=262_144)
        embedding: nn.Module = encoder.model.cell_bert.embeddings
        full, ffn = checkpoint.config.max_tokens, checkpoint.config.cell.intermediate_size
    else:
        scgpt_checkpoint = scgpt_12l()
        encoder = ScGPTEncoder(scgpt_checkpoint, classify=False, batch_tokens=262_144)
        embedding = encoder.model.encoder
        full, ffn = scgpt_checkpoint.config.max_tokens, scgpt_checkpoint.config.ffn_size
    computed: list[int] = []
    embedding.register_forward_pre_hook(lambda _, given: computed.append(given[0].numel()))
    found: dict[str, Any] = {"model": name, "device": encoder.device, "precision": str(encoder.dtype)}
    for mix, wanted in (("full", np.full(len(lengths), full)), ("natural", lengths)):
        columns, offsets = random_cells(wanted, full)
        rows = np.arange(len(wanted))
        encoder.score_tokens(columns, offsets, rows[: min(len(rows), 256)])
        if encoder.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        computed.clear()
        _, spent = clocked(partial(encoder.score_tokens, columns, offsets, rows))
        tokens = np.diff(offsets) + 1.0
        flops = float(np.sum(12 * tokens * (8 * 512**2 + 4 * 512 * ffn + 4 * tokens * 512)))
        found |= {
            f"{mix}_cells_per_s": len(rows) / spent,
            f"{mix}_tokens_per_s": float(tokens.sum()) / spent,
            f"{mix}_padding_share": 1 - float(tokens.sum()) / sum(computed),
            f"{mix}_tflops": flops / spent / 1e12,
        }
        if encoder.device == "cuda":
            found[f"{mix}_flop_utilisation"] = flops / spent / _PEAK_FLOPS
            found[f"{mix}_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def clocked(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what ``work`` returns, and the seconds that it took."""
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def _with_first(values: np.ndarray, first: float) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[first], values.astype(np.float64)]))


if __name__ == "__main__":
    sys.exit(main())
