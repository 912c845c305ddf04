"""The embedded Valkey: reachable through its socket only, empty at each start, bounded."""

import os
import signal
from pathlib import Path

import pytest
import redis
import redis.asyncio

from sightline.adapters.embedded.part import PartBusy
from sightline.adapters.embedded.valkey import ValkeyServer


async def test_its_url_is_what_the_client_takes(valkey_server: ValkeyServer) -> None:
    async with redis.asyncio.from_url(valkey_server.url) as client:
        assert await client.set("greeting", "hello")
        assert await client.get("greeting") == b"hello"
        await client.delete("greeting")


def test_it_is_bounded_and_has_no_port(valkey_server: ValkeyServer) -> None:
    with redis.from_url(valkey_server.url) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert int(client.config_get("maxmemory")["maxmemory"]) == 256 * 1024 * 1024
    assert valkey_server.run_dir.stat().st_mode & 0o777 == 0o700


def test_a_killed_one_starts_again_empty(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path) as server, redis.from_url(server.url) as client:
        client.set("hint", 1)
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        assert server._process
        server._process.wait()
        assert not server.is_ready()
        server.launch()
        server.wait_ready()
        assert client.get("hint") is None


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path) as server:
        other = ValkeyServer(tmp_path)
        with pytest.raises(PartBusy, match=f"process {os.getpid()}"):
            other.start()
        other.stop()
        assert server.is_ready()
        assert other.is_reachable()
    assert not other.is_reachable()
    with other:
        assert other.is_ready()
