"""Strict schemas: core objects by kubernetes-validate, Ray's by those derived from KubeRay's CRDs."""

import functools
import json
import os
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest

from tests.conftest import SHARED
from tests.k8s.conftest import CORE_GROUPS, FOREIGN, RAY_KINDS


@functools.cache
def checker(kind):
    """The validator of a Ray kind."""
    folder = Path(os.environ.get("CELLRAY_KUBERAY_SCHEMAS") or SHARED / "kuberay-1.7.0")
    if not folder.is_dir():
        pytest.skip(f"no KubeRay schemas in {folder}; name their folder in CELLRAY_KUBERAY_SCHEMAS")
    return jsonschema.Draft202012Validator(json.loads((folder / f"{kind}_v1.schema.json").read_text()))


def test_every_object_is_of_a_known_kind(objects):
    for one in objects:
        api, kind = one["apiVersion"], one["kind"]
        assert api in CORE_GROUPS or (api == "ray.io/v1" and kind in RAY_KINDS) or kind in FOREIGN, (api, kind)


def test_core_objects(objects):
    for one in objects:
        if one["apiVersion"] in CORE_GROUPS:
            kubernetes_validate.validate(one, "1.32", strict=True)


def test_ray_objects(objects):
    for one in objects:
        if one["kind"] in RAY_KINDS:
            wrong = [f"{error.json_path}: {error.message}" for error in checker(one["kind"]).iter_errors(one)]
            assert not wrong, one["metadata"]["name"]


def test_pod_templates_of_ray_objects_are_pods(objects):
    from tests.k8s.conftest import pods

    for name, _, template in pods(objects):
        metadata = {"name": "pod", **template.get("metadata", {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        try:
            kubernetes_validate.validate(pod, "1.32", strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{name}: {error.message}")


def test_the_checks_find_mistakes(objects):
    broken = json.loads(json.dumps(next((one for one in objects if one["kind"] == "RayJob"), None)))
    broken["spec"]["shutdownAfterJobFinish"] = True
    broken["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert len(list(checker("RayJob").iter_errors(broken))) == 2
    policy = json.loads(json.dumps(next(one for one in objects if one["kind"] == "NetworkPolicy")))
    policy["spec"]["ingres"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(policy, "1.32", strict=True)
