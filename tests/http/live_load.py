"""How many clients one process really holds, half of them server-sent events and half WebSockets, and what they cost.

    python -m tests.http.live_load --clients 10000

Starts the embedded parts and one API process, opens the clients from processes of their own, submits jobs that all of
them are told of and jobs that each has one listener for, and says: clients held, memory for each of them, seconds until
the last of them was told, and whether any of them missed anything. Clients connect from several addresses of the
loopback network, since one has too few ports.
"""

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from tests.conftest_log import LogDatabase
from tests.http.live_clients import submitted
from tests.http.process import Running, started

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.event_store.store import EventStore, open_event_store
from sightline.domain.events import EVENTS

PROCESSES = 2
CONNECTING_AT_ONCE = 50
ROUNDS = 5
BURST = 100
PHASE_S_MAX = 60.0
MEBIBYTE = 1024 * 1024


class _Client(asyncio.Protocol):
    """Counts frames by their ids; keeps no more of them than the end of what came."""

    def __init__(self, number: int, crowd: "_Crowd") -> None:
        self.is_socket = number % 2 == 1
        self._crowd = crowd
        self._is_open = False
        self._left = b""
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        if self.is_socket:
            key = base64.b64encode(os.urandom(16))
            head = b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            transport.write(head + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % key)  # type: ignore[attr-defined]  # a transport that writes
        else:
            transport.write(b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n\r\n")  # type: ignore[attr-defined]  # as above

    def data_received(self, data: bytes) -> None:
        data = self._left + data
        if not self._is_open:
            if self.is_socket and b" 101 " in data and b"\r\n\r\n" in data and b"subscribed" not in data:
                if not self._left.endswith(b"\r\n\r\n"):
                    self.transport.write(_masked(b'{"subscribe":{}}'))
                self._left = data
                return
            wanted = b'"subscribed"' if self.is_socket else b"retry:"
            if wanted not in data:
                self._left = data
                if b" 503 " in data[:20]:
                    self._crowd.refused += 1
                    self._settle()
                return
            self._is_open = True
            self._left = b""
            self._crowd.opened += 1
            self._settle()
            return
        found = data.count(b'"position":')
        # What may be cut in two begins again with the next piece.
        cut = data.rfind(b'"position":')
        self._left = data[max(cut + 1, len(data) - 16) :]
        if found:
            self._crowd.told += found
            self._crowd.told_s = time.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.lost += 1
        self._settle()

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)


class _Crowd:
    """The clients of one process."""

    def __init__(self) -> None:
        self.opened = self.refused = self.lost = self.told = 0
        self.told_s = 0.0


def _masked(payload: bytes) -> bytes:
    """A text frame of a client's, with a mask that changes nothing."""
    return bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload


def _clients(pipe: Connection, port: int, first: int, count: int) -> None:
    uvloop.run(_crowd(pipe, port, first, count))


async def _crowd(pipe: Connection, port: int, first: int, count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 500)), hard))
    loop, crowd = asyncio.get_running_loop(), _Crowd()
    gate = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def connect(number: int) -> None:
        async with gate:
            source = (f"127.0.0.{2 + first % 200 + number // 5_000}", 0)
            try:
                _, client = await loop.create_connection(
                    lambda: _Client(number, crowd), "127.0.0.1", port, local_addr=source, family=socket.AF_INET
                )
            except OSError:
                crowd.refused += 1
            else:
                await client.settled

    await asyncio.gather(*(connect(number) for number in range(count)))
    while True:
        if pipe.poll():
            if pipe.recv() == "end":
                return
            pipe.send((crowd.opened, crowd.refused, crowd.lost, crowd.told, crowd.told_s))
        await asyncio.sleep(0.02)


class _Crowds:
    """All clients."""

    def __init__(self, port: int, clients: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self._processes = [], []
        each = clients // PROCESSES
        for number in range(PROCESSES):
            ours, theirs = context.Pipe()
            process = context.Process(target=_clients, args=(theirs, port, number * 50, each), daemon=True)
            process.start()
            self.pipes.append(ours)
            self._processes.append(process)

    def ask(self) -> tuple[int, int, int, int, float]:
        """Opened, refused, lost, told, and when the last was told."""
        for pipe in self.pipes:
            pipe.send("how many")
        answers = [pipe.recv() for pipe in self.pipes]
        opened, refused, lost, told = (sum(one[n] for one in answers) for n in range(4))
        return opened, refused, lost, told, max(one[4] for one in answers)

    def end(self) -> None:
        for pipe, process in zip(self.pipes, self._processes, strict=True):
            pipe.send("end")
            process.join(10)


def _memory_bytes(pid: int, name: str = "VmRSS") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


async def _settled(crowds: _Crowds, wanted: int, field: int) -> tuple[int, int, int, int, float]:
    """What the clients say, once a field is as wanted or the time is over."""
    deadline = time.monotonic() + PHASE_S_MAX
    seen = crowds.ask()
    while seen[field] < wanted and time.monotonic() < deadline:
        if field == 0 and seen[0] + seen[1] + seen[2] >= wanted:
            break
        await asyncio.sleep(0.1)
        seen = crowds.ask()
    return seen


async def _measured(running: Running, store: EventStore, clients: int) -> dict[str, Any]:
    pid = running.process.pid
    services: Any = type("Services", (), {"store": store})()
    before = _memory_bytes(pid)
    began_s = time.monotonic()
    crowds = _Crowds(running.port, clients)
    try:
        opened, refused, _, _, _ = await _settled(crowds, clients // PROCESSES * PROCESSES, 0)
        connect_s = time.monotonic() - began_s
        idle = _memory_bytes(pid)
        seconds, told = [], 0
        for _ in range(ROUNDS):
            sent_s = time.time()
            await submitted(services, 1)
            told += opened
            seen = await _settled(crowds, told, 3)
            seconds.append(seen[4] - sent_s)
        sent_s = time.time()
        await submitted(services, BURST)
        told += opened * BURST
        seen = await _settled(crowds, told, 3)
        burst_s = seen[4] - sent_s
        return {
            "clients": clients,
            "held": opened,
            "refused": refused,
            "lost": seen[2],
            "connect_s": round(connect_s, 1),
            "memory_before_mib": round(before / MEBIBYTE, 1),
            "memory_held_mib": round(idle / MEBIBYTE, 1),
            "memory_after_mib": round(_memory_bytes(pid) / MEBIBYTE, 1),
            "memory_peak_mib": round(_memory_bytes(pid, "VmHWM") / MEBIBYTE, 1),
            "kib_each": round((idle - before) / max(1, opened) / 1024, 1),
            "one_event_to_all_s": [round(one, 3) for one in seconds],
            "burst_frames": opened * BURST,
            "burst_frames_per_s": round(opened * BURST / burst_s),
            "missing": told - seen[3],
        }
    finally:
        crowds.end()


def main() -> int:
    parser = argparse.ArgumentParser(description="How many clients one process holds, and what they cost.")
    parser.add_argument("--clients", type=int, default=10_000)
    clients: int = parser.parse_args().clients
    with tempfile.TemporaryDirectory(prefix="sightline-live-") as name:
        directory = Path(name)
        with PostgresServer(directory) as database, ValkeyServer(directory) as valkey:
            log = LogDatabase(database.dsn, database.superuser_dsn)
            postgres.migrate(log.dsn)
            given: dict[str, Any] = {"database_url": log.dsn, "redis_url": valkey.url}
            with started(directory / "data", live_streams_max=str(clients), **given) as running:

                async def measure() -> dict[str, Any]:
                    async with open_event_store(log.dsn, EVENTS) as store:
                        return await _measured(running, store, clients)

                found = asyncio.run(measure())
                errors = [line for line in running.lines() if line["level"] in {"error", "critical"}]
    print(json.dumps(found, indent=1))
    for line in errors[:5]:
        print(line, file=sys.stderr)
    return 0 if found["missing"] == found["lost"] == found["refused"] == 0 and not errors else 1


if __name__ == "__main__":
    sys.exit(main())
