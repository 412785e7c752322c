"""The house rules that a machine can hold: who imports whom, what is never used, how light an import is."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"schema", "errors", "storage", "settings", "manifest", "scratch"}
MAY_IMPORT = {
    "schema": set(),
    "errors": set(),
    "scratch": set(),
    "log": set(),
    "storage": {"errors", "scratch"},
    "settings": {"errors", "schema"},
    "manifest": {"schema", "storage"},
    "lock": {"schema", "storage", "errors"},
    "pointer": {"storage", "errors"},
    "cluster": {"errors", "settings", "log"},
    "targets": BASE | {"ingest"},
    "api": {"errors", "settings", "pipeline"},
    "ingest": BASE,
    "tokenize": BASE,
    "models": BASE | {"targets"},
    "labels": BASE,
    "refine": BASE,
    "write": BASE,
    "encode": BASE | {"models", "tokenize", "labels"},
    "puzzles": BASE | {"ingest", "labels"},
    "reasoner": BASE | {"ingest", "tokenize", "labels", "puzzles"},
    "train": BASE | {"models", "tokenize", "labels", "ingest", "puzzles", "reasoner", "refine"},
    "report": BASE | {"labels", "targets"},
    "plugins": BASE | {"pointer", "ingest", "tokenize", "models", "labels", "encode", "train"},
    # Above the pipeline: it says what is annotated, and the pipeline does it.
    "catalog": BASE | {"pointer", "lock", "ingest", "labels", "models", "plugins", "puzzles", "cluster", "pipeline"},
}
MAY_USE_RAY = {"pipeline", "cluster", "train"}


def modules():
    for path in sorted((ROOT / "cellray").rglob("*.py")):
        room = path.relative_to(ROOT / "cellray").parts[0].removesuffix(".py")
        yield path, room, ast.parse(path.read_text())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            if node.module == "cellray":
                yield from (f"cellray.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_rooms_import_only_what_they_may():
    wrong = []
    for path, room, tree in modules():
        for name in imported(tree):
            parts = name.split(".")
            if parts[0] in ("jobs", "deployments", "tests"):
                wrong.append(f"{path.name}: {name}")
            if parts[0] == "ray" and room not in MAY_USE_RAY:
                wrong.append(f"{path.name}: ray")
            ours = parts[0] == "cellray" and len(parts) > 1 and room in MAY_IMPORT and not parts[1].startswith("__")
            if ours and parts[1] not in MAY_IMPORT[room] | {room}:
                wrong.append(f"{room}/{path.name}: {name}")
    assert not wrong


def test_every_room_has_a_rule():
    rooms = {room for _, room, _ in modules()}
    assert rooms == MAY_IMPORT.keys() | {"__init__", "cli", "pipeline"}


def test_modules_say_what_they_are_and_stay_short():
    for path, _, tree in modules():
        assert ast.get_docstring(tree), path
        assert path.read_text().count("\n") <= 500, path


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bpickle\.loads?\(",
        r"(?<![\w.])eval\(",
        r"shell\s*=\s*True",
        r"trust_remote_code",
        r"\bshared/",
        r"os\.environ\[",
    ],
)
def test_never(pattern):
    for folder in ("cellray", "deployments", "jobs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(pattern, path.read_text()), path


def test_torch_load_is_weights_only_and_in_one_place():
    users = [path for path, _, _ in modules() if "torch.load(" in path.read_text()]
    assert [path.name for path in users] == ["official.py"]
    assert all("weights_only=True" in line for line in users[0].read_text().splitlines() if "torch.load(" in line)


def best_of_three(command):
    """CPU seconds of a command, so that waiting for a core on a busy machine does not count."""
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(times)


def test_import_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import cellray; "
        "assert not {'torch', 'ray', 'scanpy', 'pandas'} & sys.modules.keys()"
    )
    assert best_of_three([sys.executable, "-c", code]) < 0.5


def test_help_is_quick():
    assert best_of_three([sys.executable, "-m", "cellray.cli", "--help"]) < 1.0


def test_public_names_resolve():
    import cellray

    for name in cellray.__all__:
        assert getattr(cellray, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = cellray.nothing
