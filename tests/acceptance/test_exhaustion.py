"""What runs out or breaks is said, clearly and in time; nothing is acknowledged that is not so; it mends by itself."""

import asyncio
import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psycopg
import pytest
from msgspec import Struct, field
from tests.conftest_log import assert_whole, command
from tests.conftest_parts import wait_for
from tests.conftest_up import Up, free_port, is_part

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.event_store.writer import Appended, Repeat, StoreBusy, StoreUnavailable, Writer

HERE = Path(__file__).parent
DISK_BYTES = 128 * 1024 * 1024
UNAVAILABLE = 503


class Ledger(Struct):
    """Jobs that were acknowledged, by their keys, and what else was answered."""

    jobs: dict[str, str] = field(default_factory=dict)
    refusals: list[httpx.Response] = field(default_factory=list)
    refused_keys: list[str] = field(default_factory=list)

    def submit(self, client: httpx.Client, *, key: str | None = None) -> httpx.Response | None:
        """One noop; None where no answer came."""
        key = key or str(uuid.uuid4())
        body = {"kind": "noop"}
        try:
            answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            self.refused_keys.append(key)
            return None
        if answer.is_success:
            self.jobs[key] = answer.json()["id"]
        else:
            self.refusals.append(answer)
            self.refused_keys.append(key)
        return answer

    def hold(self, up: Up) -> None:
        """Against the log: what was acknowledged is there, once; and the log is whole."""
        events = up.log_of_events()
        assert_whole([(one["position"], uuid.UUID(one["stream_id"]), one["version"]) for one in events])
        submitted = [one["stream_id"] for one in events if one["type"] == "job.submitted"]
        assert len(set(submitted)) == len(submitted)
        assert set(self.jobs.values()) <= set(submitted)
        for answer in self.refusals:
            assert answer.status_code == UNAVAILABLE, answer.text
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["code"] in ("store_unavailable", "queue_full", "part_unavailable")


class SmallDisk:
    """`sightline up` on a disk of DISK_BYTES."""

    def __init__(self, directory: Path) -> None:
        prefix = [sys.executable, str(HERE / "small_disk.py"), str(directory), str(DISK_BYTES)]
        self.up = Up(directory, free_port(), prefix=prefix)
        self._directory = directory

    @property
    def _ballast(self) -> Path:
        return Path(f"/proc/{self.up.process.pid}/root{self._directory}/ballast")

    def fill(self, *, but_bytes: int = 0) -> None:
        """To the last page but these."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            found = os.statvfs(self._ballast)
            file.write(bytes(max(0, found.f_bavail * found.f_frsize - but_bytes)))
            while not but_bytes:
                file.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    with tempfile.TemporaryDirectory(prefix="sightline-disk-") as name:
        directory = Path(name) / "disk"
        directory.mkdir()
        disk = SmallDisk(directory)
        try:
            disk.up.until_ready()
            yield disk
        finally:
            disk.up.stop()


def announce(up: Up, content: bytes) -> tuple[str, httpx.Response]:
    """An asset, and the answer to its upload."""
    body = {"filename": "a.png", "content_type": "image/png", "size_bytes": len(content)}
    asset = up.post("/v1/assets", body)
    upload = asset["upload"]
    answer = up.client.request(upload["method"], upload["url"], headers=upload["headers"], content=content)
    return asset["id"], answer


def test_a_full_disk(small_disk: SmallDisk) -> None:
    up, ledger = small_disk.up, Ledger()
    for _ in range(20):
        ledger.submit(up.client)
    # The object store first: an upload that finds no room is refused, and the next one is taken.
    content = os.urandom(4 * 1024 * 1024)
    small_disk.fill(but_bytes=1024 * 1024)
    _, refused = announce(up, content)
    assert refused.status_code == UNAVAILABLE, refused.text
    assert refused.headers["Retry-After"]
    small_disk.free()
    _, taken = announce(up, content)
    assert taken.status_code == 201, taken.text

    # Then the database, while somebody keeps on asking.
    small_disk.fill()
    deadline = time.monotonic() + 300
    while len(ledger.refusals) < 3:
        small_disk.fill()  # what a worker or a log gave back
        ledger.submit(up.client)
        assert time.monotonic() < deadline
    assert up.status("/readyz") in (UNAVAILABLE, 0)
    small_disk.free()
    wait_for(up.ready)
    for key in ledger.refused_keys[-5:]:
        answer = ledger.submit(up.client, key=key)
        assert answer is not None
        assert answer.status_code == 201, answer.text
    ledger.hold(up)


def test_the_ledger_finds_what_was_acknowledged_and_is_not_there(running: Up) -> None:
    """The control of every test here."""
    wait_for(running.ready)
    ledger = Ledger()
    ledger.submit(running.client)
    ledger.hold(running)
    ledger.jobs["lost"] = str(uuid.uuid4())
    with pytest.raises(AssertionError):
        ledger.hold(running)


def serving(up: Up) -> int:
    return min(pid for pid, line in up.pids().items() if is_part(line, "serve"))


def first_free(pid: int) -> int:
    """The lowest descriptor that a process does not have open: with this as its limit it can open none."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def test_no_descriptors_are_left(running: Up) -> None:
    wait_for(running.ready)
    ledger = Ledger()
    content = b"x" * 1000
    announce(running, content)  # from here on the client's connection is open
    pid = serving(running)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free(pid), before[1]))
    try:
        _, refused = announce(running, content)
        assert refused.status_code == UNAVAILABLE, refused.text
        assert refused.headers["Retry-After"]
        assert running.status("/readyz") == UNAVAILABLE
        for _ in range(10):
            ledger.submit(running.client)
        with httpx.Client(base_url=running.client.base_url, timeout=2) as stranger:
            assert ledger.submit(stranger) is None, "a new connection gets no answer, rather than a wrong one"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    wait_for(running.ready)
    _, taken = announce(running, content)
    assert taken.status_code == 201
    for key in ledger.refused_keys:
        answer = ledger.submit(running.client, key=key)
        assert answer is not None
        assert answer.is_success
    ledger.hold(running)
    assert serving(running) == pid, "it went on, rather than being started again"


def test_valkey_is_killed_again_and_again(running: Up) -> None:
    """It gives hints: without it nothing is refused, and each job is done all the same."""
    wait_for(running.ready)
    ledger = Ledger()
    for _ in range(3):
        for pid in [pid for pid, line in running.pids().items() if is_part(line, "valkey-server")]:
            os.kill(pid, signal.SIGKILL)
        for _ in range(5):
            answer = ledger.submit(running.client)
            assert answer is not None
            assert answer.is_success
    for job_id in ledger.jobs.values():
        running.until_job(job_id, "completed")
    ledger.hold(running)


# A disk that cannot flush

ASK, ANSWER = 0xC0502100, 0xC0182101  # ioctl: SECCOMP_IOCTL_NOTIF_RECV and _SEND
ASK_BYTES, CONTINUE, EIO = 80, 1, 5


class SyncFaults:
    """Answers for the kernel, each time that a PostgreSQL wants to flush: go on, or EIO for the next `failures`."""

    def __init__(self, directory: Path) -> None:
        self.failures = 0
        self.failed = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(directory / "faults"))
        self._socket.listen()
        self.prefix = [sys.executable, str(HERE / "faulty_sync.py"), str(directory / "faults")]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    _, (listener,), _, _ = socket.recv_fds(connection, 1, 1)
                    threading.Thread(target=self._answer, args=(listener,), daemon=True).start()
                    connection.send(b"x")

    def _answer(self, listener: int) -> None:
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        with os.fdopen(listener):
            while not any(happened & select.POLLHUP for _, happened in waiting.poll()):  # until that server is gone
                with suppress(FileNotFoundError):  # whoever asked was killed meanwhile
                    asked = bytearray(ASK_BYTES)
                    fcntl.ioctl(listener, ASK, asked)
                    (number,) = struct.unpack_from("Q", asked)
                    fails = self.failures > 0
                    self.failures -= fails
                    self.failed += fails
                    answer = struct.pack("QqiI", number, 0, -EIO if fails else 0, 0 if fails else CONTINUE)
                    fcntl.ioctl(listener, ANSWER, bytearray(answer))


class Faulty(Struct):
    server: PostgresServer
    faults: SyncFaults
    ledger: list[tuple[int, uuid.UUID]] = field(default_factory=list)

    async def append_until(self, writer: Writer, condition: Callable[[], bool]) -> None:
        """Under load; a server that gave up is started again, as its supervisor would."""

        async def append_for_ever() -> None:
            while True:
                stream = uuid.uuid4()
                try:
                    outcome = await writer.append(command((stream, 0)))
                except (StoreUnavailable, StoreBusy):
                    continue  # not acknowledged
                assert isinstance(outcome, Appended | Repeat)  # a repeat: the answer to the first time was lost
                self.ledger.append((outcome.position, stream))

        load = [asyncio.create_task(append_for_ever()) for _ in range(8)]
        try:
            async with asyncio.timeout(300):
                while not condition():
                    if self.server.poll() is not None:
                        self.server.launch()
                    await asyncio.sleep(0.01)
        finally:
            for task in load:
                task.cancel()
            await asyncio.wait(load)

    def lost(self) -> list[int]:
        with psycopg.connect(self.server.dsn) as connection:
            rows = connection.execute("SELECT position, stream_id, version FROM events ORDER BY position").fetchall()
        assert_whole(rows)
        found = {position: stream for position, stream, _ in rows}
        return [position for position, stream in self.ledger if found.get(position) != stream]


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    assert ctypes.sizeof(ctypes.c_void_p) == 8, "the layout of the kernel's questions is that of 64 bits"
    with tempfile.TemporaryDirectory(prefix="sightline-sync-") as name:
        faults = SyncFaults(Path(name))
        server = PostgresServer(Path(name) / "data", prefix=faults.prefix)
        try:
            server.start()
            postgres.migrate(server.dsn)
            yield Faulty(server, faults)
        finally:
            faults.failures = 0
            server.stop()
            faults.close()


@pytest.mark.parametrize("honest", [True, False], ids=["as configured", "control"])
async def test_a_disk_that_does_not_flush(faulty: Faulty, *, honest: bool) -> None:
    """PostgreSQL gives up on the first flush that fails, and replays. The control acknowledges before the flush."""
    if not honest:
        with psycopg.connect(faulty.server.superuser_dsn, autocommit=True) as connection:
            connection.execute("ALTER DATABASE sightline SET synchronous_commit = off")
    writer = Writer(faulty.server.dsn)
    await writer.start()
    # The last time not even the replay can flush: the server ends, and is started again until it can.
    for failures in (1, 1, 1_000):
        enough = len(faulty.ledger) + 100
        await faulty.append_until(writer, lambda enough=enough: len(faulty.ledger) > enough)  # type: ignore[misc]  # bound per round
        failed = faulty.faults.failed
        faulty.faults.failures = failures
        await faulty.append_until(writer, lambda failed=failed: faulty.faults.failed > failed)  # type: ignore[misc]  # as above
    enough = len(faulty.ledger) + 100
    await faulty.append_until(writer, lambda: len(faulty.ledger) > enough)
    await writer.close()
    assert bool(faulty.lost()) is not honest
