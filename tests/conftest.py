"""The real parts that tests run against. Each starts when the first test asks for it."""

import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from sightline.adapters import logs

pytest_plugins = [
    "tests.conftest_parts",
    "tests.conftest_objects",
    "tests.conftest_log",
    "tests.conftest_library",
    "tests.conftest_service",
    "tests.conftest_analysts",
    "tests.conftest_up",
    "tests.conftest_models",
]


@pytest.fixture(scope="session", autouse=True)
def curl_on_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The examples in the documents call curl; a machine without it gets a stand-in, so that no test is skipped."""
    if shutil.which("curl") is None:
        directory = tmp_path_factory.mktemp("bin")
        script = directory / "curl"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("curl.py")}" "$@"\n')
        script.chmod(0o755)
        os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"


def _plain_stacks() -> None:
    """structlog's own default draws each stack with all of its variables, which takes longer than most tests."""
    structlog.reset_defaults()
    *processors, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*processors, plain])


_plain_stacks()


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command that is called in this process configures the logs of all of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quiet = {name: logging.getLogger(name).level for name in logs.QUIET}
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(capture=False)
    _plain_stacks()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)
