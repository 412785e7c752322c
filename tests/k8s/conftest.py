"""Every object of ``k8s/`` as written, and as kustomize builds each overlay where kubectl is on the path."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
KUBECTL = shutil.which("kubectl")
RAY_KINDS = {"RayCluster", "RayJob", "RayService", "RayCronJob"}
CORE_GROUPS = {"v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1"}
FOREIGN = {"PodMonitor", "PrometheusRule", "ResourceFlavor", "ClusterQueue", "LocalQueue"}
"""Kinds of other operators, for which there is no schema here."""

Object = dict[str, Any]


def written() -> dict[str, Object]:
    """Objects of the base and the components, by file, kind and name; patches and kustomizations are none."""
    found = {}
    for path in sorted([*(K8S / "base").glob("*.yaml"), *(K8S / "components").rglob("*.yaml")]):
        for one in yaml.safe_load_all(path.read_text()):
            if isinstance(one, dict) and one["kind"] not in ("Kustomization", "Component"):
                found[f"{path.relative_to(K8S)}:{one['kind']}/{one['metadata']['name']}"] = one
    return found


def built(folder: Path) -> list[Object]:
    """Objects that kustomize makes of a folder."""
    if KUBECTL is None:
        pytest.skip("kubectl is not on the path; the objects are checked as written only")
    command = [KUBECTL, "kustomize", str(folder), "--load-restrictor", "LoadRestrictionsNone"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@pytest.fixture(scope="session", params=["as written", *OVERLAYS])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """All objects of one way to apply them."""
    return list(written().values()) if request.param == "as written" else built(K8S / "overlays" / request.param)


def clusters(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every RayCluster spec with what it is of."""
    for one in objects:
        spec, name = one.get("spec", {}), f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "RayCluster":
            yield name, spec
        elif one["kind"] == "RayJob":
            yield name, spec["rayClusterSpec"]
        elif one["kind"] == "RayService":
            yield name, spec["rayClusterConfig"]
        elif one["kind"] == "RayCronJob":
            yield name, spec["jobTemplate"]["rayClusterSpec"]


def jobs(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every RayJob spec."""
    for one in objects:
        if one["kind"] in ("RayJob", "RayCronJob"):
            yield one["metadata"]["name"], one["spec"] if one["kind"] == "RayJob" else one["spec"]["jobTemplate"]


def pods(objects: list[Object]) -> Iterator[tuple[str, str, Object]]:
    """Every pod template: what it is of, its role (head, worker, submitter), the template."""
    for name, cluster in clusters(objects):
        yield name, "head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name}/{group['groupName']}", "worker", group["template"]
    for name, job in jobs(objects):
        yield name, "submitter", job["submitterPodTemplate"]
    for one in objects:
        if one["kind"] == "CronJob":
            yield one["metadata"]["name"], "submitter", one["spec"]["jobTemplate"]["spec"]["template"]
