"""The API as a process of its own, on parts that the test has started."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct

START_S = 120.0
CODE = "from sightline.adapters import settings; from sightline.http import server; server.serve(settings.read())"


class Running(Struct, frozen=True):
    """Attributes:
    log: what it writes to standard error.
    """

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """What it logged: every line is one JSON object."""
        return [json.loads(line) for line in self.log.read_text().split("\n")[:-1]]

    def requests(self, *request_ids: str) -> dict[str, dict[str, Any]]:
        """The lines of these requests, by their ids; each is told after its answer was sent, so it may yet come."""
        for _ in range(500):
            lines = [line for line in self.lines() if line["event"] == "request"]
            found = {line["request_id"]: line for line in lines if line["request_id"] in request_ids}
            if len(found) == len(request_ids):
                break
            time.sleep(0.01)
        return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def started(directory: Path, *, code: str = CODE, **environ: str) -> Iterator[Running]:
    """A process that answers; killed at the end, if it still runs.

    Args:
        directory: its data directory; its log lies beside.
        code: that it runs.
        environ: settings without their prefix, in lower case.
    """
    port = free_port()
    given = {f"SIGHTLINE_{name.upper()}": value for name, value in environ.items()}
    given |= {"SIGHTLINE_DATA_DIR": str(directory), "SIGHTLINE_PORT": str(port), "PATH": "/usr/bin:/bin"}
    log = directory.with_name(f"{directory.name}-{port}.log")
    with log.open("wb") as written:
        process = subprocess.Popen([sys.executable, "-c", code], env=given, stdout=written, stderr=written)
    try:
        running = Running(process, port, log, "https" if environ.get("tls_cert") else "http")
        _until_alive(running)
        yield running
    finally:
        process.kill()
        process.wait()


def _until_alive(running: Running) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if httpx.get(f"{running.url}/livez", verify=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)  # what is waited for is in another process
    pytest.fail(running.log.read_text())
