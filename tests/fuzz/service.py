"""The service as operators run it: processes of the command line on a database of the run's own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_urlsafe
from subprocess import Popen
from typing import Any

import httpx
from msgspec import Struct
from tests.conftest_parts import wait_for
from tests.conftest_service import Processes, short_lived
from tests.conftest_up import free_port

from sightline.http.problems import STATUSES

READY_S = 30.0
TROUBLE = frozenset({"request_failed", "part_failed"})
TOLD_MAX = 20


class Running(Struct, frozen=True):
    """Attributes:
    url: of the API.
    api_key: of an administrator, where authentication is on.
    spared: ids of that administrator and of the key, which nobody may take away while the run needs them.
    """

    url: str
    api_key: str | None
    spared: frozenset[str]
    processes: Processes
    serving: "Popen[bytes]"

    def trouble(self) -> list[str]:
        """What the API's log tells of errors of ours and of parts that fail, the first lines."""
        found = []
        for line in self.processes.log(self.serving).splitlines():
            told = json.loads(line)
            if told["event"] in TROUBLE and STATUSES.get(told.get("code", ""), 500) >= 500:
                found.append(line)
        return found[:TOLD_MAX]


@contextmanager
def running(dsn: str, redis_url: str, directory: Path, *, authenticated: bool = True) -> Iterator[Running]:
    """An API with a projector, a clock, a notary and a worker behind it; killed at the end."""
    processes = Processes(short_lived(dsn, redis_url, directory / "data"), directory)
    given: dict[str, Any] = {"port": free_port(), "rate_limits_enabled": False}
    if authenticated:
        given |= {"auth_enabled": True, "secret_key": "fuzz" * 8}
    url = f"http://127.0.0.1:{given['port']}"
    try:
        for command in ("project", "tick", "notarize", "deliver", "work"):
            processes.start(command)
        serving = processes.start("serve", **given)
        with httpx.Client(base_url=url) as client:

            def ready() -> bool:
                assert serving.poll() is None, processes.log(serving)[-4000:]
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            wait_for(ready, READY_S)
            api_key, spared = administrator(client, dsn, directory / "data") if authenticated else (None, frozenset())
        yield Running(url, api_key, spared, processes, serving)
    finally:
        processes.stop()


def administrator(client: httpx.Client, dsn: str, data_dir: Path) -> tuple[str, frozenset[str]]:
    """An API key of somebody who may do everything, since it outlives every logout; and the ids."""
    password = token_urlsafe(24)
    email = "fuzz@sightline.example"
    create = ("users", "create", "--email", email, "--full-name", "Fuzz", "--role", "ADMIN", "--password-stdin")
    subprocess.run(
        [sys.executable, "-m", "sightline", *create],
        env={**os.environ, "SIGHTLINE_DATABASE_URL": dsn, "SIGHTLINE_DATA_DIR": str(data_dir)},
        input=password.encode(),
        check=True,
        capture_output=True,
    )
    login = client.post("/v1/auth/login", json={"email": email, "password": password}).raise_for_status().json()
    issued = client.post("/v1/api-keys", json={"name": "fuzz"}, headers={"Authorization": f"Bearer {login['token']}"})
    key = issued.raise_for_status().json()
    return key["key"], frozenset({login["user"]["id"], key["id"]})
