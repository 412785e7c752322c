"""Loggers: silent in a library, on standard error with --verbose, and no line twice."""

import io
import logging
import subprocess
import sys

import pytest

from cellray import log
from cellray.cluster import ray_log_level
from cellray.errors import SettingError
from cellray.pipeline.progress import Lines, Logged, Silent


@pytest.fixture
def verbose():
    """Logs are shown."""
    log.show(verbose=True)
    yield
    log.show(verbose=False)


def test_a_library_user_sees_nothing_unless_asked_for():
    code = "from cellray.log import logger; logger('pipeline').error('hello')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not ended.stderr
    asked = subprocess.run(
        [sys.executable, "-c", "import logging; logging.basicConfig(level='INFO'); " + code],
        capture_output=True,
        check=True,
        text=True,
    )
    assert asked.stderr == "ERROR:cellray.pipeline:hello\n"


def test_what_a_run_says_is_logged(caplog):
    with caplog.at_level(logging.INFO, "cellray"):
        Logged(Silent()).say("liver: 12 cells")
    assert [(one.name, one.levelname, one.message) for one in caplog.records] == [
        ("cellray.pipeline", "INFO", "liver: 12 cells")
    ]


@pytest.mark.usefixtures("verbose")
def test_verbose_shows_logs_and_no_line_twice(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    progress = Logged(Lines(file))
    progress.say("liver: 12 cells")
    log.logger("pipeline").debug("a detail")
    log.show(verbose=True)
    log.logger("pipeline").debug("another")
    lines = file.getvalue().splitlines()
    assert lines[0] == "liver: 12 cells"
    assert [line.split(" ", 2)[2] for line in lines[1:]] == [
        "DEBUG cellray.pipeline: a detail",
        "DEBUG cellray.pipeline: another",
    ]


def test_rays_own_level_can_be_reached(monkeypatch, request):
    assert ray_log_level() == logging.ERROR
    request.getfixturevalue("verbose")
    assert ray_log_level() == logging.INFO
    monkeypatch.setenv("CELLRAY_RAY_LOG_LEVEL", "warning")
    assert ray_log_level() == logging.WARNING
    monkeypatch.setenv("CELLRAY_RAY_LOG_LEVEL", "loud")
    with pytest.raises(SettingError, match="CELLRAY_RAY_LOG_LEVEL='loud'"):
        ray_log_level()
