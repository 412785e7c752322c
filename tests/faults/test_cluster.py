"""What the manifests say, run: on several nodes with a token, one of them killed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from cellray.models import checkpoints
from cellray.plugins.registry import Registry
from cellray.plugins.router import scgpt_base
from jobs.bench.serving import cells_of, made_up
from tests.clustered import Running, cluster
from tests.faults.conftest import N_SHARDS, SHARD, settings_of
from tests.k8s.conftest import K8S

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A registry with a plugin."""
    folder = tmp_path_factory.mktemp("clustered")
    registry, base = Registry(str(folder / "registry")), scgpt_base(checkpoints.load("mini-scgpt"), "mini-scgpt")
    registry.promote("liver", registry.put(made_up(base, "liver")))
    return folder


@pytest.fixture(scope="module")
def running(world):
    quick = {
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "20000",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    }
    with cluster(
        2, 2, CELLRAY_REGISTRY=str(world / "registry"), CELLRAY_CONFIG=str(world / "cellray.yaml"), **quick
    ) as up:
        yield up


def until(condition, limit_s=240, every_s=0.05):
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "took too long"
        time.sleep(every_s)
    return found


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:8000{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_job_without_the_token_is_refused(running: Running):
    job = running.submit("python", "-c", "print('never')", RAY_AUTH_TOKEN="another-token-altogether")
    out, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "token" in out


def test_replicas_follow_the_load_and_an_update_fails_no_request(running: Running):
    bench = ["python", "-m", "jobs.bench.autoscale", "--address", "auto", "--clients", "8", "--max-replicas", "2"]
    job = running.submit(*bench, "--upscale-delay-s", "2", "--downscale-delay-s", "2", "--look-back-s", "3")
    out, _ = job.communicate(timeout=400)
    assert job.returncode == 0, out[-3000:]
    found = json.loads(out[out.index('{\n "clients"') : out.rindex("}") + 1])
    assert (found["replicas_before"], found["replicas_under_load"], found["replicas_after"]) == (1, 2, 1)
    assert found["upscale_s"] >= found["upscale_delay_s"]
    assert found["downscale_s"] >= found["downscale_delay_s"]
    assert found["requests_during_update"] > 0
    assert found["failed"] == 0


def test_the_serve_configuration_of_the_dev_overlay_answers(running: Running):
    patches = yaml.safe_load((K8S / "overlays" / "dev" / "serve.yaml").read_text())
    (config,) = [patch["value"] for patch in patches if patch["path"] == "/spec/serveConfigV2"]
    running.ask("/api/serve/applications/", yaml.safe_load(config), "PUT")

    def states():
        found = running.ask("/api/serve/applications/")["applications"]
        assert "DEPLOY_FAILED" not in {app["status"] for app in found.values()}, found
        return {name: app["status"] for name, app in found.items()}

    until(lambda: states() == {"cell-o1": "RUNNING", "plugins": "RUNNING"}, every_s=0.5)
    assert call("/readyz") == (200, {"max_length": 2048})
    status, ready = call("/plugins/readyz")
    assert status == 200
    assert list(ready["tissues"]) == ["liver"]
    cells = [{"genes": ["CD3D", "IL7R"]}, {"genes": ["MS4A1", "CD79A"]}]
    asked = {"cells": cells, "candidates": ["B cell", "T cell"], "context": "blood", "settings": {"thoughts": 8}}
    status, answer = call("/v1/puzzles/solve", asked)
    assert status == 200
    assert sorted(json.dumps(answer).count(name) > 0 for name in ("B cell", "T cell")) == [True, True]
    base = scgpt_base(checkpoints.load("mini-scgpt"), "mini-scgpt")
    status, answer = call("/plugins/v1/label", {"tissue": "liver", "cells": cells_of(base, 0)})
    assert status == 200
    assert {row["status"] for row in answer["cells"]} == {"annotated"}
    running.ask("/api/serve/applications/", method="DELETE")


def test_the_entrypoint_of_the_job_drained_and_then_robbed_of_a_node(
    running: Running, world: Path, many, tiny_model, undisturbed
):
    settings = {**settings_of(many, tiny_model), "out": str(world / "out"), "encoders": 2}
    (world / "cellray.yaml").write_text(yaml.safe_dump(settings))
    entrypoint = shlex.split(yaml.safe_load((K8S / "base" / "annotate-rayjob.yaml").read_text())["spec"]["entrypoint"])
    scores = world / "out" / "datasets" / "many" / "scores"

    def parts():
        return {path.name: path.stat().st_mtime_ns for path in scores.glob("part-*")} if scores.is_dir() else {}

    # A head goes in order: its hook (imported beforehand here, as a short job would else be over) asks the job to stop.
    hook = (
        f"import sys, jobs.drain; sys.stdin.readline(); sys.exit(jobs.drain.main(['--address', '{running.dashboard}']))"
    )
    drain = subprocess.Popen([sys.executable, "-c", hook], env=running.environment, stdin=subprocess.PIPE, text=True)
    job = running.submit(*entrypoint)
    until(lambda: parts() or job.poll() is not None)
    started = time.monotonic()
    drain.communicate("now\n", timeout=120)
    assert drain.returncode == 0
    assert time.monotonic() - started < 60
    out, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "stopped by SIGTERM" in out, out[-3000:]  # failed and not stopped: KubeRay tries it again
    drained = parts()
    assert 0 < len(drained) < N_SHARDS
    assert not (world / "out" / "_stop").exists()
    assert not list(scores.glob(".tmp-*"))

    # It is tried again, and a node is lost without a word.
    job = running.submit(*entrypoint)
    until(lambda: len(parts()) >= len(drained) + 2 or job.poll() is not None)
    kept = parts()
    os.kill(running.raylets[0], signal.SIGKILL)
    assert len(kept) < N_SHARDS
    out, _ = job.communicate(timeout=400)
    assert job.returncode == 0, out[-3000:]
    assert (world / "out" / "datasets" / "many" / "annotations.parquet").read_bytes() == undisturbed
    after = parts()
    assert len(after) == N_SHARDS
    # Of what was published before the kill at most the last shard of each of the two encoders is written again.
    assert sum(after[name] != when for name, when in kept.items()) <= 2
    assert all(after[name] == when for name, when in drained.items())
    assert json.loads(out[out.index('{\n  "out"') : out.rindex("}") + 1])["n_cells"] == SHARD * N_SHARDS
