"""A door to knock at: the application over ASGI on a database of its own, with a projector beside it."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from msgspec import Struct
from PIL import Image
from tests.conftest_log import LogDatabase

from sightline.adapters import settings as settings_
from sightline.adapters.ids import uuid7
from sightline.adapters.settings import Settings
from sightline.commands import attempts
from sightline.domain.jobs import Artifact, Provenance
from sightline.domain.kernel import Caller
from sightline.http.app import create_app
from sightline.http.services import Services, open_services
from sightline.workers import projector

BASE_URL = "http://sightline.test"


class Door(Struct, frozen=True):
    """What a test holds: a client, and the parts behind the door."""

    client: httpx.AsyncClient
    services: Services

    async def position(self) -> int:
        """Where the log ends."""
        return (await self.services.store.reader.head()).position

    async def caught_up(self) -> None:
        await self.services.reads.wait_for(await self.position(), timeout_s=60)

    async def get(self, path: str, answer: httpx.Response, **more: Any) -> httpx.Response:
        """GET what `answer`, to a command, has changed: as a careful client asks."""
        headers = {"Min-Position": answer.headers["Event-Position"], "Prefer": "wait=10"}
        return await self.client.get(path, headers=headers, **more)


def settings_for(database: LogDatabase, redis_url: str, directory: Path, **changed: Any) -> Settings:
    return settings_.read(
        {},
        data_dir=directory,
        database_url=database.dsn,
        database_direct_url=database.dsn,
        redis_url=redis_url,
        base_url=BASE_URL,
        **changed,
    )


def client_of(services: Services) -> httpx.AsyncClient:
    """A client of an application over these services."""
    app: Any = create_app(services)  # httpx and Litestar spell ASGI's types differently
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL, timeout=120)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Door]:
    """A door with a projector that runs behind it."""
    stopping = asyncio.Event()
    async with open_services(settings) as services:
        projecting = asyncio.create_task(projector.run(settings, stopping))
        async with client_of(services) as client:
            yield Door(client, services)
        stopping.set()
        with suppress(asyncio.CancelledError):
            await projecting


async def fail(door: Door, job_id: UUID, code: str, message: str) -> None:
    """Claim a waiting job as a worker would, and fail it for good."""
    worker = "worker:test"
    now = datetime.now(UTC)
    start = attempts.StartJob(job_id=job_id, worker=worker, lease_until=now + timedelta(seconds=60))
    await door.services.commands.execute(attempts.start_job, start, _worker(worker))
    failed = attempts.FailJob(
        job_id=job_id, attempt=1, worker=worker, code=code, message=message, retryable=False, retry_delay_s=0
    )
    await door.services.commands.execute(attempts.fail_job, failed, _worker(worker))
    await door.caught_up()


async def complete(door: Door, job_id: UUID, files: Mapping[str, bytes], manifest: dict[str, Any]) -> None:
    """Do a waiting job's work as a worker would: claim it, store the files, bring the result."""
    worker = "worker:test"
    now = datetime.now(UTC)
    start = attempts.StartJob(job_id=job_id, worker=worker, lease_until=now + timedelta(seconds=60))
    await door.services.commands.execute(attempts.start_job, start, _worker(worker))
    outputs = []
    for name, content in files.items():
        key = f"jobs/{job_id}/1/{name}"

        async def chunks(content: bytes = content) -> AsyncIterator[bytes]:
            yield content

        content_type = "image/png" if name.endswith(".png") else "application/json"
        info = await door.services.objects.put(key, chunks(), content_type=content_type, size_bytes_max=len(content))
        assert info.sha256 is not None
        outputs.append(
            Artifact(
                name=name, object_key=key, sha256=info.sha256, size_bytes=info.size_bytes, content_type=content_type
            )
        )
    done = attempts.CompleteJob(
        job_id=job_id,
        attempt=1,
        worker=worker,
        outputs=tuple(outputs),
        manifest=manifest,
        timings={"run": 0.5},
        receipt=Provenance(runtime="onnxruntime 1", provider="CPUExecutionProvider"),
    )
    await door.services.commands.execute(attempts.complete_job, done, _worker(worker))
    await door.caught_up()


def _worker(actor: str) -> Caller:
    command_id = uuid7()
    return Caller(
        actor=actor,
        now=datetime.now(UTC),
        command_id=command_id,
        correlation_id="test",
        causation_id=f"command:{command_id}",
    )


def picture(size: tuple[int, int] = (96, 64), kind: str = "PNG") -> bytes:
    """A small photograph of nothing."""
    written = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(written, kind)
    return written.getvalue()
