"""Reasoning traces by rejection sampling: ``python -m jobs.distill PUZZLES --model DIR --out DIR``.

The teacher is a model folder on vLLM (``--model DIR``) or any server with OpenAI's interface (``--url URL --model
NAME``, with ``OPENAI_API_KEY``). ``DIR/distilled.parquet`` are records with traces for ``jobs.sft``;
``acceptance.json`` says how many puzzles of each size have one. The same command again asks what is missing. Exit code
3: the teacher failed on some.
"""

import argparse
import asyncio
import sys
from typing import Any

import ray

from cellray import storage
from cellray.cluster import ray_session
from cellray.errors import CellRayError, Terminated, one_line
from cellray.puzzles import records
from cellray.puzzles.engine import EngineSettings, check_model, locate
from cellray.puzzles.puzzle import Puzzle
from cellray.settings import checked
from cellray.targets import reserve
from cellray.train.posttraining.distill import PARTS, Actors, Asking, LocalTeacher, Order, ServedTeacher, distil
from jobs.numbers import count, number, positive, seed
from jobs.sft import tell

DISTILLED, ACCEPTANCE = "distilled.parquet", "acceptance.json"


def main(arguments: list[str] | None = None) -> int:
    """Parse, ask, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.distill", description=__doc__)
    parser.add_argument("puzzles", nargs="+", help="files of puzzles with answers")
    parser.add_argument("--model", required=True, help="model folder, mini-cell-o1, or the server's name for it")
    parser.add_argument("--url", default=None, help="of a server with OpenAI's interface, with /v1")
    parser.add_argument("--out", required=True, help="folder that receives the traces")
    parser.add_argument("--candidates", type=number(int), default=8)
    parser.add_argument("--temperature", type=number(float), default=1.0)
    parser.add_argument("--max-tokens", type=number(int), default=3500)
    parser.add_argument(
        "--max-length", type=number(int, 16), default=None, help="longest prompt and answer of a model folder"
    )
    parser.add_argument("--placement", default="appended", help="of the instruction: appended, spaced or system")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--timeout", type=positive, default=600, help="seconds that a server may take")
    parser.add_argument("--together", type=count, default=4, help="chunks of 16 puzzles asked at once")
    parser.add_argument("--engines", type=count, default=1, help="engine actors of a model folder, one a GPU")
    parser.add_argument("--address", default=None, help="Ray cluster; default: start one here")
    parser.add_argument("--json", action="store_true", help="machine-readable result")
    given = parser.parse_args(arguments)
    try:
        facts = run(given)
    except (CellRayError, Terminated) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    tell(facts, as_json=given.json)
    return 3 if facts["failed"] else 0


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Ask for all puzzles; returns the acceptance."""
    asking = checked(
        Asking,
        candidates=given.candidates,
        temperature=given.temperature,
        max_tokens=given.max_tokens,
        placement=given.placement,
        seed=given.seed,
    )
    puzzles = [puzzle for uri in given.puzzles for puzzle in records.read(uri)]
    reserve(given.out, (DISTILLED, ACCEPTANCE, PARTS), given.puzzles)
    if given.url is not None:
        order = Order(given.out, f"{given.url} {given.model}", asking, together=given.together)
        kept, facts = asyncio.run(distil(order, ServedTeacher(given.url, given.model, given.timeout), puzzles))
    else:
        check_model(given.model)
        name = storage.content_hash(locate(given.model))
        kept, facts = _local(Order(given.out, name, asking, together=given.together), given, puzzles)
    records.write(storage.join(given.out, DISTILLED), kept)
    storage.put_json(storage.join(given.out, ACCEPTANCE), facts)
    return facts


def _local(order: Order, given: argparse.Namespace, puzzles: list[Puzzle]) -> tuple[list[Puzzle], dict[str, Any]]:
    settings = checked(EngineSettings, model=locate(given.model), max_length=given.max_length)
    with ray_session(given.address) as resources:
        actor: Any = ray.remote(LocalTeacher).options(
            num_cpus=1,
            num_gpus=int(resources.gpus > 0),
            max_restarts=-1,
            max_concurrency=1024,
            # A variable of its own keeps the actor out of a used process, which may have loaded Numba.
            runtime_env={"env_vars": {"VLLM_LOGGING_LEVEL": "ERROR"}},
        )
        actors = [actor.remote(settings) for _ in range(given.engines)]
        try:
            return asyncio.run(distil(order, Actors(actors), puzzles))
        finally:
            for one in actors:
                ray.kill(one)


if __name__ == "__main__":
    sys.exit(main())
