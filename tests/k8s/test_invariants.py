"""What KubeRay's operator refuses, what a cluster needs to run us, and what must never be in a manifest."""

import importlib
import json
import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.k8s.conftest import K8S, clusters, jobs, pods, written

PROJECT = tomllib.loads((K8S.parent / "pyproject.toml").read_text())["project"]
RAY = next(one.split("==")[1] for one in PROJECT["dependencies"] if one.startswith("ray["))
PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000, "metrics": 8080}


def test_names_leave_room_for_suffixes(objects):
    for one in objects:
        name = one["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name), name


def test_one_version_of_ray(objects):
    assert version("ray") == RAY
    for name, cluster in clusters(objects):
        assert cluster["rayVersion"] == RAY, name
    for name, _, template in pods(objects):
        for container in template["spec"]["containers"]:
            assert re.fullmatch(rf"cellray-(cpu|gpu):{re.escape(RAY)}", container["image"]), name


def test_heads_run_no_tasks(objects):
    for name, cluster in clusters(objects):
        head = cluster["headGroupSpec"]
        assert head["rayStartParams"] == {"num-cpus": "0"}, name
        for group in (head, *cluster["workerGroupSpecs"]):
            given = group["rayStartParams"]
            assert all(isinstance(value, str) for value in given.values())
            assert not {"labels", "resources", "memory", "num-gpus"} & given.keys()


def test_autoscaling(objects):
    for name, cluster in clusters(objects):
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["workerGroupSpecs"], name
        for group in cluster["workerGroupSpecs"]:
            assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], name
            assert not group.get("suspend")
    for name, role, template in pods(objects):
        assert template["spec"]["restartPolicy"] == "Never", name
        names = {entry["name"] for container in template["spec"]["containers"] for entry in container.get("env", [])}
        assert "RAY_enable_autoscaler_v2" not in names
        assert role == "submitter" or template["spec"]["terminationGracePeriodSeconds"] >= 60


def test_jobs(objects):
    found = list(jobs(objects))
    assert found
    for name, job in found:
        assert ("rayClusterSpec" in job) != ("clusterSelector" in job), name
        assert job["shutdownAfterJobFinishes"] is True
        assert job["ttlSecondsAfterFinished"] >= 0
        assert job["activeDeadlineSeconds"] > 0
        assert job["backoffLimit"] >= 1
        assert job["submissionMode"] == "K8sJobMode"
        assert "deletionStrategy" not in job  # not together with shutdownAfterJobFinishes


def test_authentication(objects):
    for name, cluster in clusters(objects):
        assert cluster["authOptions"] == {"mode": "token"}, name


def test_serve_configurations(objects):
    from ray.serve.schema import ServeDeploySchema

    for one in objects:
        if one["kind"] != "RayService":
            continue
        config = ServeDeploySchema.model_validate(yaml.safe_load(one["spec"]["serveConfigV2"]))
        assert len({app.route_prefix for app in config.applications}) == len(config.applications) == 2
        for app in config.applications:
            module, _, builder = app.import_path.partition(":")
            assert module.split(".")[0] == "deployments"
            found = importlib.import_module(module)
            assert callable(getattr(found, builder))
            arguments = found.Arguments(**app.args)
            assert arguments.replicas.min_replicas <= arguments.replicas.max_replicas
            groups = one["spec"]["rayClusterConfig"]["workerGroupSpecs"]
            gpus = sum(
                "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
                for group in groups
            )
            assert bool(arguments.gpus) <= bool(gpus)
        assert one["spec"]["excludeHeadPodFromServeSvc"] is True
        assert config.http_options.port == PORTS["serve"]


def entrypoints(objects):
    for _, job in jobs(objects):
        yield shlex.split(job["entrypoint"])
    for one in objects:
        if one["kind"] == "CronJob":
            (container,) = one["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
            command = container["command"]
            assert command[:3] == ["ray", "job", "submit"]
            assert command[-1] == "--"
            yield container["args"]


def test_entrypoints_are_parsed_by_their_own_parsers(objects):
    found = list(entrypoints(objects))
    assert found
    for words in found:
        assert words[:2] == ["python", "-m"], words
        module = importlib.import_module(words[2])
        assert callable(module.main)
        given = module.parser().parse_args(words[3:])
        assert given.address == "auto"
    for name, role, template in pods(objects):
        for container in template["spec"]["containers"]:
            if "lifecycle" in container:
                command = container["lifecycle"]["preStop"]["exec"]["command"]
                assert command[:2] == ["python", "-m"], name
                limit = importlib.import_module(command[2]).parser().parse_args(command[3:]).timeout_s
                assert limit < template["spec"]["terminationGracePeriodSeconds"]
                assert role == "head"


def test_gpu_groups():
    for name, one in written().items():
        for group in (group for _, cluster in clusters([one]) for group in cluster["workerGroupSpecs"]):
            spec = group["template"]["spec"]
            assert "nodeSelector" not in spec, name
            limits = spec["containers"][0]["resources"]["limits"]
            if "nvidia.com/gpu" in limits:
                assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
                assert spec["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == limits["nvidia.com/gpu"]
                assert spec["containers"][0]["image"].startswith("cellray-gpu:")


def test_resources_and_shared_memory(objects):
    for name, role, template in pods(objects):
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name
            assert "cpu" in resources["requests"]
        if role != "submitter":
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
            mounts = {mount["name"]: mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
            assert mounts == {"config": "/etc/cellray", "models": "/models", "shm": "/dev/shm"}


def test_pods_may_do_little(objects):
    for name, role, template in pods(objects):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 1000
        assert spec["automountServiceAccountToken"] is (role == "head")
        assert spec["serviceAccountName"] == ("cellray-head" if role == "head" else "cellray-worker")
        assert not spec.get("hostNetwork")
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "capabilities": {"drop": ["ALL"]},
            }
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "cellray"


def test_nothing_is_secret_open_or_floating(objects):
    text = json.dumps(objects)
    assert ":latest" not in text
    assert "LoadBalancer" not in text
    assert "NodePort" not in text
    assert not [one for one in objects if one["kind"] == "Secret"]
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|(?i:password|secret_access_key|token)\": \"[^\"]{12,}\"", text)
    for _, _, template in pods(objects):
        for container in template["spec"]["containers"]:
            for entry in container.get("env", []):
                assert "valueFrom" in entry or not re.search("KEY|SECRET|PASSWORD|TOKEN", entry["name"])


def test_network_policies(objects):
    policies = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    selected = policies["ray-pods"]["podSelector"]["matchExpressions"]
    assert {entry["key"] for entry in selected} == {"ray.io/cluster", "ray.io/node-type"}
    for spec in policies.values():
        for rule in spec.get("ingress", []):
            assert rule["from"]
        for rule in spec.get("egress", []):
            for block in (peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer):
                assert "169.254.0.0/16" in block["except"]


def test_ports(objects):
    for name, role, template in pods(objects):
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0].get("ports", [])}
        assert ports.items() <= PORTS.items()
        assert role == "submitter" or "metrics" in ports
        assert role != "head" or {"gcs", "dashboard", "client"} <= ports.keys()
        assert ("serve" in ports) == ("RayService" in name)


def test_settings_in_the_config_map_are_settings(objects, tmp_path):
    from cellray.catalog.catalogue import read_catalogue
    from jobs.annotate import read_settings

    (data,) = [one["data"] for one in objects if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "cellray"]
    for name in ("cellray.yaml", "catalog.yaml"):
        (tmp_path / name).write_text(data[name])
    assert read_settings(str(tmp_path / "cellray.yaml"), "auto").address == "auto"
    catalogue = read_catalogue(str(tmp_path / "catalog.yaml"))
    assert catalogue.annotating(catalogue.datasets[0], "work", None)


def references(value):
    """Names of ConfigMaps, Secrets and claims that a value refers to, and whether they must be there."""
    if isinstance(value, list):
        for one in value:
            yield from references(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key in ("configMap", "configMapKeyRef", "configMapRef") and isinstance(one, dict):
                yield "ConfigMap", one["name"], one.get("optional", False)
            elif key in ("secretKeyRef", "secretRef"):
                yield "Secret", one["name"], one.get("optional", False)
            elif key == "persistentVolumeClaim":
                yield "PersistentVolumeClaim", one["claimName"], False
            elif key in ("serviceAccountName",):
                yield "ServiceAccount", one, False
            else:
                yield from references(one)


def test_what_is_referred_to_is_there(objects):
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    assert len(there) == len(objects), "two objects of one kind and name"
    # The operator makes the cluster's token; Redis is a person's own.
    elsewhere = {("Secret", "cellray-dev"), ("Secret", "cellray-redis")}
    for one in objects:
        for kind, name, optional in references(one):
            assert optional or (kind, name) in there | elsewhere, (one["metadata"]["name"], kind, name)


def test_disruption_budgets_select_pods_that_there_are(objects):
    labels = [{**template["metadata"]["labels"], "ray.io/node-type": role} for _, role, template in pods(objects)]
    budgets = [one for one in objects if one["kind"] == "PodDisruptionBudget"]
    assert budgets
    for one in budgets:
        wanted = one["spec"]["selector"]["matchLabels"].items()
        assert any(wanted <= had.items() for had in labels), one["metadata"]["name"]


def test_schedules(objects):
    for one in objects:
        if one["kind"] == "CronJob":
            assert one["spec"]["concurrencyPolicy"] == "Forbid"
            assert one["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 0
    assert "RayCronJob" in (K8S / "components/schedule-raycronjob/kustomization.yaml").read_text()
    assert "alpha" in (K8S / "components/schedule-raycronjob/raycronjob.yaml").read_text()


def test_metrics_of_dashboard_and_alerts_exist():
    import ray.dashboard.modules.metrics.dashboards as known

    rays = "\n".join(path.read_text() for path in Path(known.__file__).parent.glob("*.py"))
    ours = "\n".join(
        path.read_text() for folder in ("cellray", "deployments") for path in (K8S.parent / folder).rglob("*.py")
    )
    dashboard = json.loads((K8S / "components/monitoring/cellray.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    (rule,) = [one for one in written().values() if one["kind"] == "PrometheusRule"]
    expressions += [alert["expr"] for group in rule["spec"]["groups"] for alert in group["rules"]]
    names = set(re.findall(r"\bray_\w+(?=[{\[) ]|$)", " ".join(expressions))) - {"ray_io_cluster"}
    assert len(names) > 10
    for name in names:
        own = name.removeprefix("ray_").removesuffix("_total").removesuffix("_bucket")
        assert name in rays or f'"{own}"' in ours, name


@pytest.mark.parametrize("folder", sorted(path.name for path in (K8S / "components").iterdir()))
def test_every_component_builds_on_the_base(folder, tmp_path):
    import os

    from tests.k8s.conftest import built

    base, component = (os.path.relpath(K8S / one, tmp_path) for one in ("base", f"components/{folder}"))
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [base],
                "components": [component],
                "images": [{"name": f"cellray-{kind}", "digest": f"sha256:{'0' * 64}"} for kind in ("cpu", "gpu")],
            }
        )
    )
    found = built(tmp_path)
    images = [container["image"] for _, _, pod in pods(found) for container in pod["spec"]["containers"]]
    assert images
    assert all("@sha256:" in image for image in images), images
