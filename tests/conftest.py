"""The real parts that tests run against. Each starts when the first test asks for it."""

import os
import shutil
import sys
from pathlib import Path

import pytest

pytest_plugins = [
    "tests.conftest_parts",
    "tests.conftest_objects",
    "tests.conftest_log",
    "tests.conftest_library",
    "tests.conftest_service",
    "tests.conftest_up",
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
