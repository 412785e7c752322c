"""Engines inside Ray Data actors: kept alive, shared by the threads of an actor, fed with numbered pieces of work.

Contract: an engine whose process dies is started anew and the work under way redone, three times at most; an actor
that is killed is started anew by Ray. An actor works on several pieces at once, so that the engine's batch does not run
empty at the end of each. It does not know what the engine is asked.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import ray
from ray.data import ActorPoolStrategy, DataContext

from cellray.cluster import Resources, ray_log_level
from cellray.puzzles.engine import Engine, EngineDeadError, EngineSettings

_CONCURRENT = 4
_RESTARTS = 3
NUMBER = "number"
_Result = TypeVar("_Result")


class RunningEngine:
    """An engine on an event loop of its own."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._starts = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._engine: Engine | None = self._start()

    def __call__(self, work: Callable[[Engine], Coroutine[Any, Any, _Result]]) -> _Result:
        """Do ``work`` with the engine.

        Raises
        ------
        EngineDeadError
            If the engine died too often.
        """
        while True:
            engine = self._engine
            if engine is None:
                msg = f"the engine died {self._starts} times"
                raise EngineDeadError(msg)
            try:
                return asyncio.run_coroutine_threadsafe(work(engine), self._loop).result()
            except EngineDeadError:
                with self._lock:
                    if self._engine is engine:
                        engine.close()
                        self._engine = self._start() if self._starts <= _RESTARTS else None

    def _start(self) -> Engine:
        self._starts += 1

        async def start() -> Engine:
            return Engine(self._settings)

        return asyncio.run_coroutine_threadsafe(start(), self._loop).result()


def through_engines(
    actor: type, arguments: tuple[Any, ...], n: int, engine: EngineSettings, engines: int, resources: Resources
) -> Iterator[dict[str, Any]]:
    """Give the numbers 0 to ``n`` to actors, one number a call; yields the rows that the calls return.

    Parameters
    ----------
    actor
        Maps a table with one row, column ``NUMBER``, to a table.
    arguments
        What it is made with.
    engine, engines
        The engine in each actor, and how many actors there are at most.
    resources
        What the cluster offers.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(ray_log_level())
    done = ray.data.from_items([{NUMBER: number} for number in range(n)], override_num_blocks=n).map_batches(
        actor,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
        num_gpus=engine.tensor_parallel if resources.gpus else 0,
        compute=ActorPoolStrategy(
            size=min(engines, n),
            max_tasks_in_flight_per_actor=2 * _CONCURRENT,
            max_concurrent_calls_per_actor=_CONCURRENT,
            enable_true_multi_threading=True,
        ),
        fn_constructor_args=arguments,
        # A process of its own: vLLM does not start in one that has loaded Numba, as a reused worker may have.
        runtime_env={"env_vars": {"VLLM_NO_USAGE_STATS": "1", **_threads(min(engines, n), resources)}},
    )
    yield from done.iter_rows()


def _threads(engines: int, resources: Resources) -> dict[str, str]:
    """Return the variable by which engines without a GPU share all CPUs; Ray's own is one thread an actor."""
    if resources.gpus:
        return {}
    of_a_node = os.cpu_count() or 1  # the other nodes are taken to be like this one
    own = str(max(1, min(of_a_node, resources.cpus // engines)))
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", own)}
