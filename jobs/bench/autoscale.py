"""Whether served replicas follow the load, and whether an update fails a request: ``python -m jobs.bench.autoscale``.

The plugin app with a random plugin on the bundled base, on a Ray of this machine. Clients ask without a pause, until
they are told to stop. Printed as JSON:

``upscale_s``, ``running_s``
    From the start of the load until another replica was started, and until it took requests. Ray Serve decides when
    the mean load of ``look_back_s`` was too high for ``upscale_delay_s``.
``downscale_s``
    From when clients no longer asked until there were as few replicas as before the load. Their last answers may come
    later: a replica that has just started takes seconds for its first.
``update_s``, ``requests_during_update``
    A change of the app's arguments, which replaces every replica, under load.
``failed``
    Answers other than 200, of all requests. Goal: 0.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from cellray.cluster import ray_session
from cellray.models import checkpoints
from cellray.plugins.registry import Registry
from cellray.plugins.router import scgpt_base
from jobs.bench.serving import cells_of, made_up
from jobs.numbers import amount, count, port, positive

_APP, _DEPLOYMENT = "autoscale", "Labeller"
_EVERY_S = 0.1
_INTERVAL = "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"
"""How often Serve learns of the load: 10 s by default, which would be most of what is measured. A cluster that is
joined must have been started with it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if a request failed or replicas did not follow."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.autoscale", description=__doc__)
    parser.add_argument("--clients", type=count, default=12)
    parser.add_argument("--max-replicas", type=count, default=3)
    parser.add_argument("--upscale-delay-s", type=amount, default=5)
    parser.add_argument("--downscale-delay-s", type=amount, default=10)
    parser.add_argument("--look-back-s", type=positive, default=11)
    parser.add_argument("--limit-s", type=positive, default=180, help="how long each step may take")
    parser.add_argument("--address", default=None, help="Ray cluster to join; default: Ray on this machine")
    parser.add_argument("--port", type=port, default=18_440)
    given = parser.parse_args(arguments)
    os.environ.setdefault(_INTERVAL, "0.5")
    found = measure(given)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 1 if found["failed"] or found["replicas_after"] != found["replicas_before"] else 0


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Serve, load, stop, update; returns what to print."""
    from ray import serve

    from deployments.plugins import Arguments, build_app

    base = scgpt_base(checkpoints.load("mini-scgpt"), "mini-scgpt")
    body = json.dumps({"tissue": "liver", "cells": cells_of(base, 0)}).encode()
    with tempfile.TemporaryDirectory() as folder, ray_session(given.address, cpus=4):
        registry = Registry(folder)
        registry.promote("liver", registry.put(made_up(base, "liver")))
        app = Arguments.model_validate(
            {
                "registry": registry.uri,
                "cpus": 0.25,
                "replicas": {
                    "max_replicas": given.max_replicas,
                    "target_ongoing_requests": 2,
                    "upscale_delay_s": given.upscale_delay_s,
                    "downscale_delay_s": given.downscale_delay_s,
                    "look_back_period_s": given.look_back_s,
                },
            }
        )
        serve.start(http_options={"host": "127.0.0.1", "port": given.port})
        try:
            serve.run(build_app(app), name=_APP, route_prefix="/")
            before = replicas("RUNNING")
            url = f"http://127.0.0.1:{given.port}/v1/label"
            with Load(url, body, given.clients) as load:
                upscale = clocked(lambda: replicas() > before, given.limit_s)
                running = upscale + clocked(lambda: replicas("RUNNING") > before, given.limit_s)
                most = replicas("RUNNING")
                load.stop()
                downscale = clocked(lambda: replicas() == before, given.limit_s)
            after = replicas("RUNNING")
            changed = build_app(app.model_copy(update={"min_genes": 6}))
            with Load(url, body, given.clients) as updated:
                clocked(lambda: updated.answered > given.clients, given.limit_s)
                answered = updated.answered
                update = clocked(lambda: bool(serve.run(changed, name=_APP)), given.limit_s)
                during = updated.answered - answered
            return {
                "clients": given.clients,
                "replicas_before": before,
                "replicas_under_load": most,
                "replicas_after": after,
                "upscale_delay_s": given.upscale_delay_s,
                "look_back_s": given.look_back_s,
                "upscale_s": round(upscale, 1),
                "running_s": round(running, 1),
                "downscale_delay_s": given.downscale_delay_s,
                "downscale_s": round(downscale, 1),
                "update_s": round(update, 1),
                "requests_during_update": during,
                "requests": load.answered + updated.answered,
                "failed": len(load.failed) + len(updated.failed),
            }
        finally:
            serve.shutdown()


class Load:
    """Clients that ask without a pause while inside; ``answered`` counts, ``failed`` says what went wrong."""

    def __init__(self, url: str, body: bytes, clients: int) -> None:
        self._url, self._body, self._stop = url, body, threading.Event()
        self.answered, self.failed, self._lock = 0, list[str](), threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            request = urllib.request.Request(  # noqa: S310
                self._url, self._body, {"content-type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                    answer.read()
                with self._lock:
                    self.answered += 1
            except OSError as error:
                self.failed.append(str(error))

    def __enter__(self) -> "Load":
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Let no client ask again."""
        self._stop.set()

    def __exit__(self, *_: object) -> None:
        """Stop, once every client has its answer."""
        self.stop()
        for thread in self._threads:
            thread.join()


def replicas(*states: str) -> int:
    """Return how many replicas are in the states, by default starting or running."""
    from ray import serve

    found = serve.status().applications[_APP].deployments[_DEPLOYMENT].replica_states
    wanted = states or ("STARTING", "UPDATING", "RUNNING")
    return sum(count for state, count in found.items() if str(getattr(state, "value", state)) in wanted)


def clocked(condition: Callable[[], bool], limit_s: float) -> float:
    """Return the seconds until a condition holds."""
    started = time.perf_counter()
    while not condition():
        if time.perf_counter() - started > limit_s:
            msg = f"not within {limit_s:g} s"
            raise TimeoutError(msg)
        time.sleep(_EVERY_S)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
