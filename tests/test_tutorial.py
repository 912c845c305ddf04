"""The tutorial and the README, as a reader would follow them: every line of shell, against a whole service."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest_parts import wait_for

TUTORIAL = (Path(__file__).parents[1] / "docs" / "tutorial" / "first-job.md").read_text()
README = (Path(__file__).parents[1] / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", TUTORIAL, re.DOTALL))
READY_S = 60.0
STOP_S = 60.0
RUN_S = 60.0


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a whole service on a fresh data directory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    directory = tmp_path_factory.mktemp("tutorial")
    command = [sys.executable, "-m", "sightline", "up", "--data-dir", str(directory / "data"), "--port", str(free)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("SIGHTLINE_")}
    with (directory / "up.log").open("wb") as log:
        service = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=own)
    try:
        wait_for(lambda: service.poll() is not None or is_ready(free), READY_S)
        assert service.poll() is None, (directory / "up.log").read_text()
        yield free
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(STOP_S) == 0


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def run(shell: str, port: int, directory: Path) -> "subprocess.CompletedProcess[str]":
    """What a reader types, on another port and with this interpreter's environment for `.venv`."""
    script = shell.replace("localhost:8000", f"localhost:{port}").replace(".venv/", f"{sys.prefix}/")
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=RUN_S, check=False)


def test_the_tutorial_does_what_it_says(port: int, tmp_path: Path) -> None:
    done = run(SHELL, port, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "completed" in lines
    assert "404" in "".join(lines)
    told = re.findall(r"^\d+ \d+ (job\.\w+) ", done.stdout, re.MULTILINE)
    assert (told[0], told[1], told[-1]) == ("job.submitted", "job.started", "job.completed")
    assert json.JSONDecoder().raw_decode(lines[-1], lines[-1].rindex('{"id"'))[0]["status"] == "completed"
    manifest = json.loads((tmp_path / "layer_manifest.json").read_text())
    files = [layer["file"] for layer in manifest["layers"]] + ["composite.png", "depth_map.png"]
    assert [name for name in files if not (tmp_path / name).read_bytes().startswith(b"\x89PNG")] == []


def test_a_tutorial_that_fails_is_noticed(port: int, tmp_path: Path) -> None:
    assert "num_layers=4" in SHELL
    assert run(SHELL.replace("num_layers=4", "num_layers=40"), port, tmp_path).returncode != 0


def test_the_example_of_the_readme_works(port: int, tmp_path: Path) -> None:
    """Names in it stand for ids, which only the answers tell."""
    [example] = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    upload, create, status, download, history = example.split("\n\n")
    [copy] = re.findall(r"^cp .*photo\.jpg$", SHELL, re.MULTILINE)
    assert run(copy.replace("photo.jpg", "image.jpg"), port, tmp_path).returncode == 0
    filename = json.loads(run(upload, port, tmp_path).stdout)["filename"]
    job_id = json.loads(run(create.replace("uuid.jpg", filename), port, tmp_path).stdout)["id"]

    def answer(shell: str) -> str:
        return run(shell.replace("job-uuid", job_id), port, tmp_path).stdout

    wait_for(lambda: json.loads(answer(status))["status"] == "completed", RUN_S)
    answer(download)
    assert (tmp_path / "Layer_1_background.png").read_bytes().startswith(b"\x89PNG")
    assert [one["type"] for one in json.loads(answer(history))["items"]][-1] == "job.completed"
