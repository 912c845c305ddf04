"""SIGTERM while clients listen: each is told that it is over, within the grace, and the process ends as it should."""

import asyncio
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest
from tests.conftest_log import LogDatabase
from tests.http.live_clients import Listening, Talking, listening, talking
from tests.http.process import started
from tests.http.test_tls import certificate

from sightline.adapters.embedded.valkey import ValkeyServer

CLIENTS = 20
EXIT_S_MAX = 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_whoever_listens_is_told_that_it_ends(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path, number: signal.Signals
) -> None:
    """Killed, the control, it says nothing to anybody; that one is spoken to by TLS, which makes no difference."""
    given: dict[str, Any] = {"database_url": log_database.dsn, "redis_url": valkey_server.url}
    tls = None
    if number == signal.SIGKILL:
        given["tls_cert"], given["tls_key"] = certificate(tmp_path)
        tls = ssl.create_default_context(cafile=given["tls_cert"])
        tls.check_hostname = False
    with started(tmp_path / "data", **given) as running:
        opened = [listening(running.port, "/v1/stream", tls=tls) for _ in range(CLIENTS)]
        talked = [talking(running.port, tls=tls) for _ in range(CLIENTS)]
        streams: list[Listening] = [await one.__aenter__() for one in opened]
        sockets: list[Talking] = [await one.__aenter__() for one in talked]
        assert {one.status for one in streams} == {200}
        assert {one.status for one in sockets} == {101}
        running.process.send_signal(number)
        said = await asyncio.gather(*(one.rest() for one in streams))
        closed = await asyncio.gather(*(one.ended() for one in sockets))
        status = await asyncio.to_thread(running.process.wait, EXIT_S_MAX)
        for client in [*opened, *talked]:
            await client.__aexit__(None, None, None)
        lines = running.lines()
    told = [[one.data for one in events] for events in said]
    if number == signal.SIGTERM:
        assert told == [[{"reason": "stopping"}]] * CLIENTS
        assert closed == [1001] * CLIENTS
        assert status == 0
        assert [line["event"] for line in lines if line["event"] == "stopped"]
        assert [line for line in lines if line["level"] in {"error", "critical"}] == []
    else:
        assert told == [[]] * CLIENTS
        assert closed == [1006] * CLIENTS
