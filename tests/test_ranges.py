"""Every number of every job and verb has its range; a value outside of it is a usage error with exit code 2."""

import importlib
import re
import typing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cellray.cli.app import app
from cellray.settings import AnnotateSettings
from jobs.numbers import number

ROOT = Path(__file__).parents[1]


def test_no_job_takes_any_number():
    for path in (ROOT / "jobs").rglob("*.py"):
        assert not re.search(r"type=(int|float)\b", path.read_text()), path


def callbacks(one, name="cellray"):
    for command in one.registered_commands:
        yield f"{name} {command.name or command.callback.__name__}", command.callback
    for group in one.registered_groups:
        yield from callbacks(group.typer_instance, f"{name} {group.name}")


def test_no_verb_takes_any_number():
    """Options of ``annotate`` and its like are checked by the settings, under the same name."""
    seen = 0
    for name, callback in callbacks(app):
        for option, hint in typing.get_type_hints(callback, include_extras=True).items():
            kind, *info = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
            if {int, float} & {kind, *typing.get_args(kind)}:
                ranged = any(getattr(one, "min", None) is not None for one in info)
                assert ranged or option in AnnotateSettings.model_fields, f"{name} {option}"
                seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("jobs.train_plugin", ["--data", "x", "--rank", "0"]),
        ("jobs.train_plugin", ["--data", "x", "--hold-out", "1.5"]),
        ("jobs.update_plugin", ["--tissue", "t", "--new", "x", "--label", "l", "--epochs", "-1"]),
        ("jobs.sft", ["--config", "x", "--out", "y", "--workers", "0"]),
        ("jobs.grpo", ["--config", "x", "--out", "y", "--threads", "0"]),
        ("jobs.pretrain", ["--config", "x", "--data", "d", "--out", "y", "--steps", "0"]),
        ("jobs.distill", ["p", "--model", "m", "--out", "o", "--engines", "0"]),
        ("jobs.distill", ["p", "--model", "m", "--out", "o", "--temperature", "nan"]),
    ],
)
def test_jobs_name_the_option_and_the_value(job, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(job).main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert arguments[-2] in said
    assert repr(arguments[-1]) in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["reason", "a.h5ad", "--out", "o", "--model", "m", "--engines", "0"],
        ["reason", "a.h5ad", "--out", "o", "--model", "m", "--limit", "0"],
        ["puzzles", "solve", "p", "--out", "o", "--rollouts", "65"],
        ["puzzles", "build", "a.h5ad", "--out", "o", "--min-cells", "1"],
    ],
)
def test_verbs_name_the_option_and_the_value(arguments):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert arguments[-2] in done.output


def test_number():
    assert number(int, 1)("3") == 3
    assert number(float, 0, above=True)("1e-3") == 1e-3
    for kind, text in ((int, "1.5"), (int, "x"), (float, "inf"), (float, "nan"), (float, "-0.1")):
        with pytest.raises(Exception, match=re.escape(repr(text))):
            number(kind, 0)(text)
