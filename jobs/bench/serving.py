"""What the served plugins take: ``python -m jobs.bench.plugins --only serving``.

Four plugins with random weights on the bundled base (weights do not change the cost), one replica, requests of
``_CELLS`` made-up cells that name their tissue, over HTTP on this machine:

``p50_ms``, ``p95_ms``, ``p99_ms``, ``cells_per_s``
    By number of concurrent clients, each asking without a pause and one tissue after the other; ``failed`` counts
    answers other than 200.
``mixed_over_single``
    Cells a second of a batch in which every cell uses another of the four plugins, over one with one plugin for all, in
    this process, medians. Goal: 0.8.
``cold_switch_ms``
    Reading a version from the registry, checking it and building it, median.
"""

import json
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellray import schema
from cellray.models import checkpoints
from cellray.models.moe_lora import MoELoRAConfig, Plugin
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.plugins.registry import Registry
from cellray.plugins.router import PluginEncoder, scgpt_base
from cellray.plugins.serving import Loaded, TokenCells, label_cells
from cellray.plugins.version import PluginCheckpoint
from cellray.tokenize.cells import Cells

_TISSUES = ("blood", "kidney", "liver", "lung")
_CELLS, _GENES = 20, 200
_CLIENTS = (1, 8, 32)
REQUESTS = 160
_REPEATS = 9
_PORT = 18_438


def serving(work: Path, requests: int = REQUESTS) -> list[dict[str, Any]]:
    """Ask ``requests`` times; a row a number of clients, then one of what is measured in this process."""
    from ray import serve

    from cellray.cluster import ray_session
    from deployments.plugins import Arguments, build_app

    base = scgpt_base(checkpoints.load("mini-scgpt"), "mini-scgpt")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        registry = Registry(folder)
        for tissue in _TISSUES:
            registry.promote(tissue, registry.put(made_up(base, tissue)))
        rows: list[dict[str, Any]] = []
        with ray_session(cpus=3):
            serve.start(http_options={"host": "127.0.0.1", "port": _PORT})
            serve.run(build_app(Arguments(registry=registry.uri)), name="plugins")
            bodies = [json.dumps({"tissue": tissue, "cells": cells_of(base, at)}) for at, tissue in enumerate(_TISSUES)]
            load([body.encode() for body in bodies], 4, 40)  # every plugin is loaded once
            rows += [load([body.encode() for body in bodies], clients, requests) for clients in _CLIENTS]
            serve.shutdown()
        return [*rows, in_process(base, registry)]


def made_up(base: ScGPTCheckpoint, tissue: str) -> PluginCheckpoint:
    """Return a plugin with random weights."""
    torch.manual_seed(_TISSUES.index(tissue))
    config = MoELoRAConfig(base.config.hidden_size, base.config.num_layers)
    labels = [{"name": f"{tissue} type {number}", "term_id": ""} for number in range(12)]
    plugin = Plugin(config, len(labels))
    none = Cells.none()
    thresholds = [0.0] * len(labels)
    names = (base.name, base.digest)
    return PluginCheckpoint("cells", tissue, *names, config, plugin.state_dict(), labels, thresholds, {}, none, none)


def cells_of(base: ScGPTCheckpoint, seed: int) -> list[dict[str, Any]]:
    """Return made-up cells as a request has them."""
    rng = np.random.default_rng(seed)
    symbols = np.array(base.genes[schema.SYMBOL].to_pylist())
    return [
        {
            "genes": rng.choice(symbols, _GENES, replace=False).tolist(),
            "counts": rng.geometric(0.4, _GENES).tolist(),
        }
        for _ in range(_CELLS)
    ]


def load(bodies: list[bytes], clients: int, requests: int) -> dict[str, Any]:
    """Let ``clients`` ask ``requests`` times in all."""
    seconds: list[float] = []
    failed: list[object] = []
    numbers = iter(range(requests))
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            started = time.perf_counter()
            request = urllib.request.Request(
                f"http://127.0.0.1:{_PORT}/v1/label", bodies[number % len(bodies)], {"content-type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                    answer.read()
            except OSError as error:
                failed.append(error)
            seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - started
    shares = {f"p{share}_ms": 1000 * float(np.percentile(seconds, share)) for share in (50, 95, 99)}
    return {"clients": clients, **shares, "cells_per_s": requests * _CELLS / whole, "failed": len(failed)}


def in_process(base: ScGPTCheckpoint, registry: Registry) -> dict[str, Any]:
    """Compare a mixed batch with one of a single plugin, and time a cold switch."""
    encoder = PluginEncoder(base)
    rng = np.random.default_rng(0)
    n = 256
    tokens = np.concatenate([rng.choice(base.genes.num_rows, 128, replace=False) for _ in range(n)]).astype(np.uint16)
    cells = TokenCells(tokens, rng.integers(1, 50, len(tokens)).astype(np.int16), np.arange(n + 1) * 128)
    switches = []
    loaded = []
    for tissue in _TISSUES:
        started = time.perf_counter()
        loaded.append(Loaded.read(registry, base, tissue, str(registry.promoted(tissue)), encoder))
        switches.append(1000 * (time.perf_counter() - started))
    single = [(loaded[0], cells)]
    mixed = [(one, cells.take(np.arange(at, n, len(loaded)))) for at, one in enumerate(loaded)]
    times = {"single": [], "mixed": []}  # type: dict[str, list[float]]
    for _ in range(_REPEATS):
        times["single"].append(clocked(lambda: label_cells(encoder, single)))
        times["mixed"].append(clocked(lambda: label_cells(encoder, mixed)))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "mixed_over_single": medians["single"] / medians["mixed"],
        "cold_switch_ms": statistics.median(switches),
    }


def clocked(work: Callable[[], Any]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
