"""The Dockerfile, parsed: what it copies is there, what it pins is what pyproject pins, what it runs can be run."""

import json
import re
import tomllib
from importlib.util import find_spec

import pytest
from dockerfile_parse import DockerfileParser

from tests.k8s.conftest import K8S

ROOT = K8S.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def stages():
    """Instructions of each target."""
    found = {}
    parser = DockerfileParser(fileobj=(K8S / "images" / "Dockerfile").open("rb"))
    for line in parser.structure:
        if line["instruction"] == "FROM":
            stage = found.setdefault(line["value"].split(" AS ")[1], [])
        if found:
            stage.append((line["instruction"], line["value"]))
    return found


def test_targets(stages):
    assert list(stages) == ["cpu", "gpu"]


def test_copied_files_are_there_and_not_ignored(stages):
    kept = (K8S / "images" / "Dockerfile.dockerignore").read_text().split()
    for instructions in stages.values():
        copied = [value for name, value in instructions if name in ("COPY", "ADD")]
        sources = [word for value in copied for word in value.split()[1:-1]]
        assert all(value.startswith("--chown=1000:100 ") for value in copied)
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in kept
        packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        assert {*packages, "pyproject.toml", "README.md", *PROJECT["project"]["license-files"]} <= set(sources)


def test_pins_are_those_of_the_project():
    text = (K8S / "images" / "Dockerfile").read_text()
    (ray,) = [one.split("==")[1] for one in PROJECT["project"]["dependencies"] if one.startswith("ray[")]
    assert re.findall(r"^ARG RAY_VERSION=(.*)$", text, re.M) == [ray]
    bases = dict(re.findall(r"^ARG (CPU|GPU)_BASE=(.*)$", text, re.M))
    assert bases.keys() == {"CPU", "GPU"}
    for base in bases.values():
        name, tag = base.split(":")
        assert name.startswith("rayproject/ray")
        assert tag.startswith("${RAY_VERSION}-py312-")
    assert set(re.findall(r":(\d+\.\d+\.\d+) \.$", text, re.M)) == {ray}


def test_installed_extras_and_bytecode(stages):
    for target, instructions in stages.items():
        (command,) = [value for name, value in instructions if name == "RUN"]
        assert re.findall(r"'\.\[(\w+)\]'", command) == [target]
        assert target in PROJECT["project"]["optional-dependencies"]
        assert "--compile-bytecode" in command


def test_nobody_is_root(stages):
    for instructions in stages.values():
        assert [value for name, value in instructions if name == "USER"] == ["1000:100"]
        assert instructions[1][0] == "USER"


def test_entrypoints_can_be_imported(stages):
    for instructions in stages.values():
        (entry,) = [json.loads(value) for name, value in instructions if name == "ENTRYPOINT"]
        assert entry[:2] == ["python", "-m"]
        assert find_spec(entry[2]) is not None
        assert find_spec(f"{entry[2]}.__main__") is not None
