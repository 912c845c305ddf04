"""`sightline up` as a process of its own, and one of them for all tests that only use it."""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest_parts import is_running, wait_for

from sightline.adapters.embedded.processes import RunAs, spawn

UNTIL_S = 120.0  # guards against hanging, as all below: what is tested takes seconds, on a machine of its own
STOP_S = 60.0


class Up:
    """`sightline up` on a directory, as an operator sees it: its processes, its answers, its log."""

    def __init__(
        self, data_dir: Path, port: int, *, run_as: RunAs | None = None, prefix: Sequence[str] = (), **environ: str
    ) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir.with_name(f"{data_dir.name}-{port}.log")
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        command = ["up", "--data-dir", str(data_dir), "--port", str(port)]
        self.process = spawn(
            [*prefix, sys.executable, "-m", "sightline", *command],
            env={**os.environ, **environ},
            cwd=Path("/"),
            log_path=self.log_path,
            run_as=run_as,
        )
        self._started_at = time.monotonic()

    def until_ready(self, timeout_s: float = UNTIL_S) -> float:
        """Seconds from the start to the first /readyz that says 200."""
        wait_for(self.ready, timeout_s)
        return time.monotonic() - self._started_at

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log_path.read_text()[-4000:]
        return self.status("/readyz") == 200

    def status(self, path: str) -> int:
        """Of a GET; 0 where nobody answers."""
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return 0

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(path, params=query)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any, **headers: str) -> Any:
        answer = self.client.post(path, json=body, headers=headers)
        answer.raise_for_status()
        return answer.json()

    def log_of_events(self) -> list[dict[str, Any]]:
        """The whole log, by its pages."""
        found: list[dict[str, Any]] = []
        while items := self.get("/v1/events", after=len(found), limit=100)["items"]:
            found += items
        return found

    def until_job(self, job_id: str, status: str, timeout_s: float = UNTIL_S) -> dict[str, Any]:
        job: dict[str, Any] = {}

        def reached() -> bool:
            answer = self.client.get(f"/v1/jobs/{job_id}")
            if answer.status_code == HTTPStatus.NOT_FOUND:  # not projected yet
                return False
            answer.raise_for_status()
            job.update(answer.json())
            return bool(job["status"] == status)

        wait_for(reached, timeout_s)
        return job

    def pids(self) -> dict[int, str]:
        """Every process under the supervisor, however deep, with its command line; the supervisor too."""
        parents = _parents()
        found = [self.process.pid]
        for pid in found:  # grows while it is walked, generation by generation
            found += [child for child, parent in parents.items() if parent == pid]
        return {pid: _command_line(pid) for pid in found}

    def stop(self) -> None:
        """Kill, and wait until nothing is left."""
        self.client.close()
        if self.process.poll() is not None:
            return
        pids = list(self.pids())
        self.process.kill()
        self.process.wait(STOP_S)
        wait_for(lambda: not any(map(is_running, pids)))


def _parents() -> dict[int, int]:
    """The parent of every process of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                found[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def is_part(line: str, part: str) -> bool:
    """Whether a command line is that of a part's main process."""
    words = line.split(" ")
    if part in ("postgres", "valkey-server"):
        return Path(words[0]).name == part
    return words[1:4] == ["-m", "sightline", part]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def running() -> Iterator[Up]:
    """One `sightline up` for all tests that only use it, or kill what it starts again."""
    with tempfile.TemporaryDirectory(prefix="sightline-up-") as directory:
        up = Up(Path(directory) / "data", free_port(), SIGHTLINE_WORKER_LEASE_S="2")
        try:
            up.until_ready()
            yield up
        finally:
            up.stop()
