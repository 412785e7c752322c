"""The plugin app over HTTP on a local Ray: right labels, refusals; reloads and a killed replica that fail nothing."""

import http.client
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import anndata
import psutil
import pyarrow as pa
import pytest
import yaml

from cellray.plugins.registry import TISSUES, Registry
from cellray.plugins.requests import ARROW
from tests.plugins.conftest import version

PORT = 18_437
KEY = "a-key-of-the-test"
pytestmark = [pytest.mark.usefixtures("ray"), pytest.mark.timeout(600)]


def call(path, body=None, *, key=KEY, kind="application/json", accept="application/json"):
    headers = {"content-type": kind, "accept": accept, "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def label(cells, path="/v1/label", **more):
    status, body = call(path, json.dumps({"cells": cells, **more}).encode())
    return status, json.loads(body)


@pytest.fixture(scope="module")
def registry(world, liver, tissues, tmp_path_factory):
    found = Registry(str(tmp_path_factory.mktemp("served") / "registry"))
    for one in (liver, version(world, world.every, tissue="blood", seed=1)):
        found.promote(one.tissue, found.put(one))
    found.promote(TISSUES, found.put(tissues))
    return found


@pytest.fixture(scope="module")
def cells(world):
    data = anndata.read_h5ad(world.known)[:24]
    rows = [data.X[row] for row in range(len(data))]
    return [
        {"id": name, "genes": [data.var_names[at] for at in row.indices], "counts": [float(one) for one in row.data]}
        for name, row in zip(data.obs_names, rows, strict=True)
    ]


@pytest.fixture(scope="module")
def app(ray, world, registry):
    from ray import serve

    from deployments.plugins import Arguments, build_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLRAY_API_KEY", KEY)
        arguments = Arguments(
            base=str(world.base),
            registry=registry.uri,
            replicas={"min_replicas": 2, "max_replicas": 2},
            cpus=0.5,
            poll_s=0.5,
            max_cells=50,
            max_body_bytes=1 << 20,
            health_check_period_s=1,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(build_app(arguments), name="plugins", route_prefix="/")
    yield
    serve.shutdown()


def test_ready_with_what_is_promoted(app, registry):
    assert call("/healthz")[0] == 200
    status, body = call("/readyz")
    assert status == 200
    assert json.loads(body)["tissues"]["liver"] == registry.promoted("liver")
    assert set(json.loads(call("/v1/tissues")[1])["tissues"]) == {"blood", "liver", TISSUES}


def test_cells_are_labelled_by_the_tissue_named_or_found(app, world, registry, cells):
    truth = anndata.read_h5ad(world.known).obs["cell_type"].astype(str).to_dict()
    status, body = label(cells, tissue="Liver")
    assert status == 200
    rows = body["cells"]
    assert [row["id"] for row in rows] == [cell["id"] for cell in cells]
    assert {row["plugin"] for row in rows} == {f"liver@{registry.promoted('liver')[:12]}"}
    assert sum(truth[row["id"]] == row["label"] for row in rows) > 16
    assert all(0 <= row["score"] <= 1 and row["ontology_id"].startswith("CL:") for row in rows)
    status, body = label(cells)
    assert status == 200
    assert {row["tissue"] for row in body["cells"]} == {"blood", "liver"}
    assert all(row["plugin"].startswith(row["tissue"]) for row in body["cells"])
    assert {row["tissue"] for row in label(cells, "/v1/label?tissue=blood", tissue="liver")[1]["cells"]} == {"blood"}


def test_cells_are_counted_for_prometheus_by_plugin(app, registry, cells):
    import ray

    assert label(cells, tissue="liver")[0] == 200
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    wanted = f'plugin="liver@{registry.promoted("liver")[:12]}"'
    deadline, found = time.monotonic() + 60, []
    while not found and time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith("ray_cellray_cells") and wanted in line]
        time.sleep(1)
    assert found
    assert float(found[0].rsplit(" ", 1)[1]) >= len(cells)


def test_arrow_says_the_same(app, cells):
    table = pa.Table.from_pylist(cells).replace_schema_metadata({"tissue": "liver"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    status, body = call("/v1/label", sink.getvalue().to_pybytes(), kind=ARROW, accept=ARROW)
    assert status == 200
    rows = pa.ipc.open_stream(body).read_all().to_pylist()
    assert [row["label"] for row in rows] == [row["label"] for row in label(cells, tissue="liver")[1]["cells"]]


def test_bad_cells_are_rejected_alone(app, cells):
    bad = {"genes": ["GENE1"], "counts": [1]}
    status, body = label([cells[0], bad, cells[1]], tissue="liver")
    assert status == 200
    assert [row["status"] for row in body["cells"]] == ["annotated", "rejected", "annotated"]
    assert body["cells"][1]["reject_code"] == "too_few_genes"


def test_refusals(app, cells):
    status, body = label(cells, tissue="brain")
    assert (status, body["error"]) == (404, "there is no plugin of tissue 'brain' (there is: blood, liver)")
    assert label(cells, tissue="../x")[0] == 404
    assert label(cells * 3)[0] == 413
    assert call("/v1/label", b"{", key=KEY)[0] == 400
    assert call("/v1/label", b"x", kind="text/plain")[0] == 415
    assert call("/v1/label", json.dumps({"cells": cells}).encode(), key="another")[0] == 401
    assert call("/v1/tissues", key="")[0] == 401
    assert call("/nowhere")[0] == 404


def test_a_huge_body_is_refused_before_it_is_sent(app):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    connection.putrequest("POST", "/v1/label")
    for name, value in (
        ("content-length", str(10 << 30)),
        ("content-type", "application/json"),
        ("authorization", f"Bearer {KEY}"),
    ):
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b'{"cells": [')
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()
    status, body = call("/v1/label", b" " * (2 << 20))
    assert status == 413
    assert "1,048,576" in json.loads(body)["error"]


class Load:
    """Clients that ask without a pause; ``failed`` are the answers other than 200."""

    def __init__(self, cells):
        self.stop, self.failed, self.plugins = threading.Event(), [], []
        self.threads = [threading.Thread(target=self.run, args=(cells,)) for _ in range(3)]

    def run(self, cells):
        while not self.stop.is_set():
            try:
                status, body = label(cells, tissue="liver")
            except OSError as error:
                self.failed.append(error)
                continue
            if status != 200:
                self.failed.append(body)
            else:
                self.plugins.append(body["cells"][0]["plugin"])

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_reload_fails_no_request(app, registry, liver, cells):
    before = registry.promoted("liver")
    digest = registry.put(liver.changed(metrics={"reload": 1}))
    with Load(cells[:4]) as load:
        until(lambda: len(load.plugins) > 5)
        registry.promote("liver", digest)
        until(lambda: load.plugins[-1] == f"liver@{digest[:12]}")
    assert not load.failed
    assert load.plugins[0] == f"liver@{before[:12]}"


def test_a_version_that_cannot_be_read_is_not_switched_to(app, registry, liver, cells):
    from cellray import storage

    now = registry.promoted("liver")
    broken = registry.put(liver.changed(metrics={"broken": 1}))
    storage.put(storage.join(registry.uri, "liver", "versions", broken, "labels.json"), b"[]")
    registry.promote("liver", broken)
    until(lambda: "liver" in json.loads(call("/v1/tissues")[1])["broken"])
    status, body = label(cells[:2], tissue="liver")
    assert status == 200
    assert body["cells"][0]["plugin"] == f"liver@{now[:12]}"
    registry.rollback("liver")
    until(lambda: not json.loads(call("/v1/tissues")[1])["broken"])


def test_a_killed_replica_fails_no_request(app, cells):
    def replicas():
        # Processes may be gone, or dead and not yet reaped, while they are looked at; those have no command line here.
        running = psutil.process_iter(["cmdline"])
        return [one.pid for one in running if "ServeReplica:plugins:Labeller" in " ".join(one.info["cmdline"] or ())]

    before = replicas()
    assert len(before) == 2
    with Load(cells[:4]) as load:
        until(lambda: len(load.plugins) > 5)
        os.kill(before[0], signal.SIGKILL)
        done = len(load.plugins)
        until(lambda: len(load.plugins) > done + 20)
    assert not load.failed
    assert before[0] not in replicas()


def test_the_configuration_is_one():
    from ray.serve.schema import ServeDeploySchema

    from deployments import plugins

    text = (Path(plugins.__file__).parent / "plugins.yaml").read_text()
    (app,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert app.import_path == "deployments.plugins:build_app"
    assert plugins.Arguments(**app.args).replicas.max_replicas > 1
