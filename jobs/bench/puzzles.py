"""How fast puzzles are solved: ``python -m jobs.bench.puzzles [--puzzles N] [--width W] [--json]``.

``bulk_ratio``
    Puzzles a second of the engine over those of ``transformers`` asked one at a time; same model, greedy and free, and
    ``same_outputs``, the share of texts that are equal. The other two decode one-to-one.
``ray_data_overhead``
    Seconds of ``solve_puzzles``'s plan, from its engine being up to its last part, over those of the bare engine, less
    one.
``served_ratio``
    Puzzles a second of the app at 16 clients over those of the bare engine with 16 puzzles in flight; the clients share
    the machine. ``served_ratio_all``: over those of the bare engine given all at once.

``permutations``
    Share of 1,000 puzzles of 2 to 15 cells, drawn at temperature 1, whose one-to-one answer is a permutation; half of
    the labels begin with another one.

Goals: 5, 0.15, 0.85, 1. Puzzles are made of the bundled model's own genes and types, at random. ``--width`` takes a
model of random weights instead of the bundled one, eight layers of that width, which says little before its answers:
the larger the model, the less counts the way to it.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cellray.puzzles import Puzzle
from cellray.puzzles.answer import accepted
from cellray.puzzles.engine import BUNDLED, Engine, EngineSettings, Sampling, locate
from cellray.puzzles.solve import SolveSettings
from jobs.numbers import count

_MODEL = "mini-cell-o1"
_LAYERS, _HEAD = 8, 64
_THOUGHTS = 8  # tokens, of a random model
_TOKENS = 200
_CLIENTS = 16
_ALONE = 24
_PORT = 18_551
_LONGEST = 60


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.puzzles", description=__doc__)
    parser.add_argument("--puzzles", type=count, default=256)
    parser.add_argument("--nested", type=count, default=1000, help="puzzles of `permutations`")
    parser.add_argument("--width", type=count, default=None, help=f"of a random model, a multiple of {_HEAD}")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    # The app's replica would have one thread by Ray, where the bare engine and those in actors have all.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    with tempfile.TemporaryDirectory() as folder:
        model = _MODEL if given.width is None else write_random(folder, given.width)
        engine = EngineSettings(model=model, max_length=2048, cache_bytes=256 << 20)
        solving = SolveSettings(max_tokens=_TOKENS, thoughts=None if given.width is None else _THOUGHTS)
        found = measured(engine, solving, given)
    if given.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        sys.stdout.write("".join(f"{key} {value:.3f}\n" for key, value in found.items()))
    return 0


def measured(engine: EngineSettings, solving: SolveSettings, given: argparse.Namespace) -> dict[str, float]:
    """Return every figure."""
    puzzles = made_up(given.puzzles)
    # The engine first: vLLM 0.32 on a CPU does not start in a process that has loaded Numba, as the pipeline does.
    replies, free_s, bare_s, sixteen_s, valid = asyncio.run(bare(engine, solving, puzzles, nested(given.nested)))
    texts, alone_s = one_at_a_time(engine.model, puzzles[:_ALONE])
    from cellray.cluster import ray_session

    with ray_session(cpus=4) as resources:
        streamed_s = streamed(engine, solving, puzzles, resources)
        served_s = served(engine, solving, puzzles)
    return {
        "bulk_ratio": (alone_s / _ALONE) / (free_s / given.puzzles),
        "same_outputs": float(np.mean([one == other for one, other in zip(texts, replies, strict=False)])),
        "ray_data_overhead": streamed_s / bare_s - 1,
        "served_ratio": sixteen_s / served_s,
        "served_ratio_all": bare_s / served_s,
        "permutations": valid,
        "puzzles_per_s": given.puzzles / bare_s,
    }


def write_random(folder: str, width: int) -> str:
    """Write a model folder of random weights with the bundled model's tokenizer; returns it."""
    import torch
    from transformers import AutoTokenizer

    from cellray.train.config import Sizes
    from cellray.train.puzzle_lm import random_model

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED[_MODEL])
    torch.manual_seed(0)
    sizes = Sizes(hidden=width, layers=_LAYERS, heads=width // _HEAD, ffn=3 * width, max_tokens=4096)
    random_model(tokenizer, sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def made_up(n: int) -> list[Puzzle]:
    """Draw puzzles of 3 to 8 cells with 24 genes each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED[_MODEL])
    pieces = sorted(tokenizer.get_added_vocab())
    genes = [piece[2:] for piece in pieces if piece.startswith(", ") and " " not in piece[2:]]
    named = [piece for piece in pieces if piece[:1].isalpha() and piece not in genes and " " in piece]
    types = [piece for piece in named if piece == piece.strip() and len(piece) < _LONGEST and ":" not in piece]
    rng = np.random.default_rng(0)
    return [
        Puzzle(
            "x ",
            tuple(tuple(str(gene) for gene in rng.choice(genes, 24, replace=False)) for _ in range(size)),
            tuple(str(name) for name in rng.choice(types, size, replace=False)),
        )
        for size in rng.integers(3, 9, n).tolist()
    ]


def nested(n: int) -> list[Puzzle]:
    """Draw puzzles of 2 to 15 cells whose labels begin with one another."""
    rng = np.random.default_rng(1)
    pool = [
        name + ending for name in ("T cell", "B", "CD4+ T", "naïve", "NK", "x") for ending in ("", " 1", " 1b", "-")
    ]
    return [
        Puzzle("x ", (("CD3D", "LYZ"),) * size, tuple(str(one) for one in rng.choice(pool, size, replace=False)))
        for size in rng.integers(2, 16, n).tolist()
    ]


def one_at_a_time(folder: str, puzzles: list[Puzzle]) -> tuple[list[str], float]:
    """Ask ``transformers``; returns texts and seconds."""
    import torch
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    folder = locate(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), Qwen2ForCausalLM.from_pretrained(folder).float().eval()
    texts, started = [], time.perf_counter()
    for puzzle in puzzles:
        text = tokenizer.apply_chat_template(puzzle.messages(), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found = model.generate(
                ids, max_new_tokens=_TOKENS, do_sample=False, stop_strings=["</answer>"], tokenizer=tokenizer
            )
        texts.append(str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts, time.perf_counter() - started


async def bare(
    settings: EngineSettings, solving: SolveSettings, puzzles: list[Puzzle], wild: list[Puzzle]
) -> tuple[list[str], float, float, float, float]:
    """Ask the engine; returns free texts, seconds free, one-to-one, and so with 16 in flight, and how often it held."""
    engine = Engine(settings)
    await engine.ask(puzzles[-1].messages(), Sampling(max_tokens=_TOKENS))

    async def ask(puzzle: Puzzle, *, free: bool) -> str:
        rule = None if free else (puzzle.candidates, len(puzzle))
        sampling = Sampling(max_tokens=_TOKENS, one_to_one=rule, thoughts=solving.thoughts)
        return (await engine.ask(puzzle.messages(), sampling)).texts[0]

    started = time.perf_counter()
    texts = await asyncio.gather(*(ask(puzzle, free=True) for puzzle in puzzles))
    between = time.perf_counter()
    await engine.client.reset_prefix_cache()
    await asyncio.gather(*(ask(puzzle, free=False) for puzzle in puzzles))
    seconds = time.perf_counter() - between
    await engine.client.reset_prefix_cache()
    places = asyncio.Semaphore(_CLIENTS)

    async def in_turn(puzzle: Puzzle) -> None:
        async with places:
            await ask(puzzle, free=False)

    again = time.perf_counter()
    await asyncio.gather(*map(in_turn, puzzles))
    sixteen = time.perf_counter() - again

    async def drawn(number: int, puzzle: Puzzle) -> bool:
        rule = (puzzle.candidates, len(puzzle))
        sampling = Sampling(temperature=1, seed=number, max_tokens=2 * _TOKENS, one_to_one=rule, thoughts=8)
        return accepted((await engine.ask(puzzle.messages(), sampling)).texts[0], puzzle) is not None

    valid = await asyncio.gather(*(drawn(number, puzzle) for number, puzzle in enumerate(wild)))
    engine.close()
    return texts, between - started, seconds, sixteen, float(np.mean(valid))


def streamed(engine: EngineSettings, solving: SolveSettings, puzzles: list[Puzzle], resources: Any) -> float:
    """Return the seconds of Ray Data's plan, from its engine being up."""
    import pyarrow as pa
    import ray

    from cellray.pipeline.engines import through_engines
    from cellray.pipeline.solving import SolveOrder, Solver

    class Timed(Solver):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self._engine(lambda engine: engine.ask(puzzles[-1].messages(), Sampling(max_tokens=_TOKENS)))
            self._up = time.time()

        def __call__(self, batch: pa.Table) -> pa.Table:
            return super().__call__(batch).append_column("up", pa.array([self._up]))

    with tempfile.TemporaryDirectory() as out:
        order = SolveOrder(out, engine, solving)
        chunks = [puzzles[at : at + order.chunk] for at in range(0, len(puzzles), order.chunk)]
        given = (order, [ray.put(chunk) for chunk in chunks], out, "part")
        rows = list(through_engines(Timed, given, len(chunks), engine, 1, resources))
        return time.time() - rows[0]["up"]


def served(engine: EngineSettings, solving: SolveSettings, puzzles: list[Puzzle]) -> float:
    """Return the seconds that 16 clients take for the puzzles."""
    from ray import serve

    from deployments.cell_o1 import Arguments, build_app

    serve.start(http_options={"host": "127.0.0.1", "port": _PORT})
    options = engine.model_dump(include={"max_length", "cache_bytes"})
    serve.run(build_app(Arguments(model=engine.model, engine=options, cpus=0.5)), name="bench")
    settings: dict[str, Any] = solving.model_dump(exclude_none=True)

    def ask(puzzle: Puzzle) -> None:
        cells = [{"genes": list(genes)} for genes in puzzle.cells]
        body = json.dumps({"cells": cells, "candidates": list(puzzle.candidates), "context": "x", "settings": settings})
        request = urllib.request.Request(f"http://127.0.0.1:{_PORT}/v1/puzzles/solve", data=body.encode())
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310 - this machine's own address
            answer.read()

    with ThreadPoolExecutor(_CLIENTS) as clients:
        list(clients.map(ask, puzzles[:_CLIENTS]))
        started = time.perf_counter()
        list(clients.map(ask, puzzles))
        seconds = time.perf_counter() - started
    serve.shutdown()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
