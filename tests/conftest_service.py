"""A service on a database of the test's own: in this process, or as processes of the command line, or both."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import pytest_asyncio
import redis
from msgspec.structs import replace
from PIL import Image
from tests.conftest_log import LogDatabase

from sightline.adapters import settings as settings_
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.event_store.codec import Recorded
from sightline.adapters.ids import uuid7
from sightline.adapters.settings import Settings
from sightline.commands import assets, jobs, models, sessions
from sightline.commands.transact import C, Handler, Receipt, S
from sightline.domain.assets import Scan
from sightline.domain.jobs import Job
from sightline.domain.jobs import evolve as evolve_job
from sightline.domain.kernel import Caller
from sightline.domain.upcasts import name_of
from sightline.projections.jobs import JOBS, JobRow
from sightline.workers import lifecycle, projector
from sightline.workers.lifecycle import Services

LEASE_S = 1.5  # short enough to be waited for, long enough for a busy machine to renew it four times
RETRY_BASE_S = 0.05
UNTIL_S = 60.0  # a guard against hanging: nothing that is tested takes as long
STOP_S = 10.0
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
T = TypeVar("T")


def by(actor: str = "ada", **changed: Any) -> Caller:
    """A caller whose command is its own."""
    command_id = uuid7()
    given: dict[str, Any] = {
        "actor": actor,
        "now": lifecycle.now(),
        "command_id": command_id,
        "correlation_id": str(command_id),
        "causation_id": f"command:{command_id}",
    }
    return Caller(**(given | changed))


async def until(found: Callable[[], Awaitable[T | None]], timeout_s: float = UNTIL_S) -> T:
    """What `found` finds, as soon as that is something.

    Raises:
        TimeoutError: it found nothing in time.
    """
    async with asyncio.timeout(timeout_s):
        while not (one := await found()):  # noqa: ASYNC110  # what is waited for is in a database, not in this loop
            await asyncio.sleep(0.01)
        return one


class Service:
    """Commands and queries of a test, on open services."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.settings = services.settings
        self.commands = services.commands
        self.reads = services.reads

    async def run(self, handler: Handler[C, S], command: C, caller: Caller | None = None) -> Receipt[S]:
        return await self.commands.execute(handler, command, caller or by())

    async def submit(self, kind: str = "noop", *, job_id: UUID | None = None, **changed: Any) -> UUID:
        wanted: dict[str, Any] = {"job_id": job_id or uuid7(), "kind": kind, "pending_max": 1_000} | changed
        stream_id = (await self.run(jobs.submit_job, jobs.SubmitJob(**wanted))).stream_id
        if self.services.commands.offers is not None:
            await self.services.commands.offers.close()  # its hint is there when this returns
        return stream_id

    async def session(self, *, duration_s: int = 60) -> UUID:
        create = sessions.CreateSession(session_id=uuid7(), user_id=None, duration_s=duration_s)
        return (await self.run(sessions.create_session, create)).stream_id

    async def picture(self, directory: Path) -> UUID:
        """A small clean photograph, stored."""
        path = directory / "picture.png"
        Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path)
        asset_id = uuid7()
        info = await self.services.objects.put_file(assets.object_key(asset_id), path, content_type="image/png")
        return await self.asset(asset_id, sha256=info.sha256, size_bytes=info.size_bytes)

    async def asset(
        self, asset_id: UUID, *, sha256: str | None = None, size_bytes: int = 1, code: str | None = None
    ) -> UUID:
        """An asset in the log; clean, or quarantined under `code`."""
        register = assets.RegisterAsset(
            asset_id=asset_id,
            filename="picture.png",
            content_type="image/png",
            found_content_type="image/png",
            size_bytes=size_bytes,
            sha256=sha256 or EMPTY_SHA256,
            scan=Scan(engine="test", width_px=96, height_px=64, code=code),
            purpose="image",
        )
        return (await self.run(assets.register_asset, register)).stream_id

    async def install_models(self) -> None:
        await models.install_builtin_models(self.commands, self.services.models, by("system"))

    async def events(self, stream_id: UUID) -> list[Recorded]:
        return await self.services.store.reader.stream(stream_id)

    async def topics(self, stream_id: UUID) -> list[str]:
        """What was said of a stream, progress aside."""
        said = [name_of(one.topic).partition(".")[2] for one in await self.events(stream_id)]
        return [topic for topic in said if topic != "progressed"]

    async def job(self, job_id: UUID) -> Job:
        """As the log tells it now."""
        state = Job()
        for recorded in await self.events(job_id):
            state = evolve_job(state, self.services.store.mapper.event(recorded))
        return state

    async def until_job(self, job_id: UUID, *statuses: str, attempt: int = 0, timeout_s: float = UNTIL_S) -> Job:
        async def found() -> Job | None:
            state = await self.job(job_id)
            return state if state.status in statuses and state.attempt >= attempt else None

        return await until(found, timeout_s)

    async def until_said(self, stream_id: UUID, topic: str, timeout_s: float = UNTIL_S) -> Recorded:
        async def found() -> Recorded | None:
            return next((one for one in await self.events(stream_id) if one.topic == topic), None)

        return await until(found, timeout_s)

    async def caught_up(self) -> int:
        """Return once the read models reflect all that is in the log now."""
        position = (await self.services.store.reader.head()).position
        await self.reads.wait_for(position, timeout_s=UNTIL_S)
        return position

    async def row(self, job_id: UUID) -> JobRow:
        await self.caught_up()
        row, _ = await self.reads.get(JOBS, job_id)
        assert row is not None
        return row


@pytest.fixture
def service_settings(log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path) -> Settings:
    """Short leases and retries; an empty Valkey."""
    with redis.Redis.from_url(valkey_server.url) as valkey:
        valkey.flushall()
    return short_lived(log_database.dsn, valkey_server.url, tmp_path / "service")


def short_lived(dsn: str, redis_url: str, data_dir: Path) -> Settings:
    return settings_.read(
        {},
        data_dir=data_dir,
        database_url=dsn,
        database_direct_url=dsn,
        redis_url=redis_url,
        worker_lease_s=LEASE_S,
        job_retry_base_s=RETRY_BASE_S,
    )


@pytest_asyncio.fixture
async def bare_service(service_settings: Settings) -> AsyncIterator[Service]:
    """Commands and queries; nobody projects, works or ticks."""
    async with lifecycle.open_services(service_settings) as services:
        yield Service(services)


@pytest_asyncio.fixture
async def service(service_settings: Settings) -> AsyncIterator[Service]:
    async with open_service(service_settings) as opened:
        yield opened


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """Commands and queries, with a projector."""
    async with lifecycle.open_services(settings) as services:
        stopping = asyncio.Event()
        projecting = asyncio.create_task(projector.run(settings, stopping))
        watching = asyncio.create_task(services.reads.watch())
        try:
            yield Service(services)
        finally:
            stopping.set()
            watching.cancel()
            await asyncio.wait({watching, projecting})
            projecting.result()


class Processes:
    """Processes of the command line; whatever runs at the end is killed."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: str, **changed: Any) -> "subprocess.Popen[bytes]":
        """`sightline <command>` with these settings; its log is `log()`."""
        given = replace(self._settings, **changed)
        names = ("data_dir", "database_url", "database_direct_url", "redis_url", "worker_lease_s", "job_retry_base_s")
        environ = {f"SIGHTLINE_{name.upper()}": str(getattr(given, name)) for name in (*names, *changed)}
        with self._log_path(len(self._started)).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sightline", command],
                env={**os.environ, **environ, "SIGHTLINE_LOG_LEVEL": "debug"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process

    def log(self, process: "subprocess.Popen[bytes]") -> str:
        return self._log_path(self._started.index(process)).read_text()

    def stop(self) -> None:
        for process in self._started:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.wait(STOP_S)

    def _log_path(self, number: int) -> Path:
        return self._directory / f"process-{number}.log"


@pytest.fixture
def processes(service_settings: Settings, tmp_path: Path) -> Iterator[Processes]:
    started = Processes(service_settings, tmp_path)
    yield started
    started.stop()


async def ended(process: "subprocess.Popen[bytes]", timeout_s: float = STOP_S) -> int:
    """Its exit status."""

    async def found() -> tuple[int] | None:
        status = process.poll()
        return None if status is None else (status,)

    return (await until(found, timeout_s))[0]
