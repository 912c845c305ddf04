"""The log goes back underneath a running service: nothing that it remembers, handed out or lent survives as true.

The database is restored to an earlier position and comes back at the same address, as after a disaster; the API, the
projector and a worker keep running with warm caches all the while.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import httpx
import psycopg
import pytest
import pytest_asyncio
import redis
from msgspec import Struct
from msgspec.structs import replace
from tests.conftest_service import STOP_S, by, short_lived, until
from tests.http.door import client_of

from sightline.adapters import backup, postgres, restore
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.ids import uuid7
from sightline.adapters.settings import Settings
from sightline.commands import attempts, jobs
from sightline.commands.transact import EpochChanged
from sightline.domain.jobs import Provenance
from sightline.http.services import Services, open_services
from sightline.projections.jobs import LIVE_WORKERS
from sightline.workers import lifecycle, projector
from sightline.workers.leases import Lease


class World(Struct):
    """A service on a database that can be restored beneath it."""

    directory: Path
    server: PostgresServer
    settings: Settings
    services: Services
    client: httpx.AsyncClient

    def restore(self, *, position: int, renew: bool = True) -> None:
        """Kill the database, and bring it back at `position` under the same address."""
        os.kill(self.server.pid or 0, signal.SIGKILL)
        self.server.stop()
        new = self.directory / "new"
        timed = restore.Timed(print)
        with restore.restored(self.directory / "base", self.directory / "wal", new, restore.Target(position), timed):
            pass
        shutil.rmtree(self.server.data)
        (new / "postgres" / "data").rename(self.server.data)
        self.server.start()
        if not renew:  # the control: as if the log were the same one
            with psycopg.connect(self.server.superuser_dsn.replace("/postgres?", "/sightline?")) as connection:
                connection.execute("UPDATE log_head SET epoch = %s", (self.epoch,))

    @property
    def epoch(self) -> UUID:
        assert self.services.store.writer.epoch is not None
        return self.services.store.writer.epoch

    def take_base(self) -> None:
        backup.base(self.server, self.directory / "base", say=lambda _: None)

    def keep_wal(self) -> None:
        """All of it as it is now: what was acknowledged is on disk."""
        shutil.copytree(
            self.server.data / "pg_wal",
            self.directory / "wal",
            ignore=lambda _, names: [name for name in names if restore.SEGMENT.fullmatch(name) is None],
        )

    async def submit(self, **headers: str) -> httpx.Response:
        answer = await self.client.post("/v1/jobs", json={"kind": "noop"}, headers=headers)
        assert answer.status_code == 201, answer.text
        return answer

    async def answered(self, path: str, **headers: str) -> httpx.Response:
        """A GET's answer, once the service has its database again."""

        async def found() -> httpx.Response | None:
            answer = await self.client.get(path, headers=headers)
            return None if answer.status_code in (503, 425) else answer

        return await until(found)


@pytest_asyncio.fixture
async def world(valkey_server: ValkeyServer) -> AsyncIterator[World]:
    with redis.Redis.from_url(valkey_server.url) as valkey:
        valkey.flushall()
    with tempfile.TemporaryDirectory(prefix="sightline-epochs-") as name:
        directory = Path(name)
        server = PostgresServer(directory / "old")
        server.start()
        try:
            postgres.migrate(server.dsn)
            settings = short_lived(server.dsn, valkey_server.url, directory / "old")
            async with open_services(settings) as services, client_of(services) as client:
                stopping = asyncio.Event()
                projecting = asyncio.create_task(projector.run(settings, stopping))
                try:
                    yield World(directory, server, settings, services, client)
                finally:
                    stopping.set()
                    await asyncio.wait({projecting}, timeout=STOP_S)
        finally:
            server.stop()


async def prepared(world: World) -> tuple[httpx.Response, httpx.Response, int]:
    """A job that is in the backup as pending, one that is not; the former cancelled since, in the cache as well."""
    world.take_base()
    kept = await world.submit()
    position = int(kept.headers["Event-Position"])
    cancelled = await world.client.post(f"/v1/jobs/{kept.json()['id']}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    lost = await world.submit()
    reached = {"Min-Position": lost.headers["Event-Position"], "Prefer": "wait=10"}
    assert (await world.client.get(f"/v1/jobs/{lost.json()['id']}", headers=reached)).status_code == 200
    world.keep_wal()
    return kept, lost, position


async def test_nothing_of_the_epoch_before_counts(world: World) -> None:
    page = (await world.client.get("/v1/events?limit=1")).json()["next"]
    kept, lost, position = await prepared(world)
    epoch = world.epoch
    world.restore(position=position)

    # A read finds the epoch, before anything is appended: caches go, cursors are refused.
    again = await world.answered("/v1/events?limit=1")
    assert again.headers["Log-Epoch"] == world.epoch.hex[:8] != epoch.hex[:8] == kept.headers["Log-Epoch"]
    refused = await world.client.get(f"/v1/events?after={page}")
    assert (refused.status_code, refused.json()["code"]) == (409, "epoch_changed")
    old = f"{lost.headers['Event-Position']}@{lost.headers['Log-Epoch']}"
    answer = await world.client.get(f"/v1/jobs/{kept.json()['id']}", headers={"Min-Position": old, "Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["code"]) == (409, "epoch_changed")
    history = await world.client.get(f"/v1/jobs/{kept.json()['id']}/history?at={old}")
    assert (history.status_code, history.json()["code"]) == (409, "epoch_changed")
    # The read models do not claim what they reflected once.
    plain = {"Min-Position": lost.headers["Event-Position"]}
    assert (await world.client.get(f"/v1/jobs/{kept.json()['id']}", headers=plain)).status_code == 425
    assert (await world.answered(f"/v1/jobs/{lost.json()['id']}")).status_code == 404
    # And a cursor of today works.
    today = f"{position}@{again.headers['Log-Epoch']}"
    fresh = await world.client.get("/v1/events", params={"after": today})
    assert fresh.json() == {"items": [], "next": None}
    assert (await world.submit()).headers["Event-Position"] == str(position + 1)


async def test_a_decision_does_not_rest_on_a_state_of_the_epoch_before(world: World) -> None:
    """In the cache the job is cancelled, in the log it is pending: cancelling it again must be said, not skipped."""
    kept, _, position = await prepared(world)
    world.restore(position=position)
    again = await world.client.post(f"/v1/jobs/{kept.json()['id']}/cancel")
    assert again.json()["status"] == "cancelled"
    assert again.headers["Event-Position"] == str(position + 1)


async def test_a_refusal_does_not_rest_on_a_state_of_the_epoch_before(world: World) -> None:
    """In the cache the job has ended, so nobody may start it; in the log it waits."""
    kept, _, position = await prepared(world)
    job_id = UUID(kept.json()["id"])
    world.restore(position=position)
    start = attempts.StartJob(job_id=job_id, worker="w9", lease_until=lifecycle.now())

    async def started() -> str | None:
        with suppress(psycopg.OperationalError):
            receipt = await world.services.commands.execute(attempts.start_job, start, by("w9"))
            return receipt.state.status
        return None

    assert await until(started) == "processing"


async def test_without_a_new_epoch_the_old_one_is_believed(world: World) -> None:
    """The control."""
    page = (await world.client.get("/v1/events?limit=1")).json()["next"]
    _, lost, position = await prepared(world)
    world.restore(position=position, renew=False)
    assert (await world.answered(f"/v1/events?after={page}")).status_code == 200
    plain = {"Min-Position": lost.headers["Event-Position"]}
    assert (await world.client.get("/v1/jobs", headers=plain)).status_code == 200, "it claims to reflect what is gone"


async def test_a_lease_and_a_result_of_the_epoch_before_are_refused(world: World) -> None:
    settings = replace(world.settings, worker_lease_s=1.0)
    lease = Lease(settings, "w1")
    lease.start()
    try:
        world.take_base()
        job_id = uuid7()
        submit = jobs.SubmitJob(job_id=job_id, kind="noop", pending_max=10)
        commands = world.services.commands
        await commands.execute(jobs.submit_job, submit, by())
        start = attempts.StartJob(job_id=job_id, worker="w1", lease_until=lifecycle.now())
        started = await commands.execute(attempts.start_job, start, by("w1"), epoch=lease.epoch)
        await world.submit()
        world.keep_wal()
        world.restore(position=started.position)
        assert (await world.answered("/v1/events?limit=1")).status_code == 200
        # The attempt stands in the log that was restored; its worker may still not end it: the clock has given the
        # job to others, since no lease of the epoch before counts.
        done = attempts.CompleteJob(
            job_id=job_id, attempt=1, worker="w1", outputs=(), manifest={}, timings={}, receipt=Provenance()
        )
        with pytest.raises(EpochChanged):
            await commands.execute(attempts.complete_job, done, by("w1"), epoch=lease.epoch)

        async def over() -> bool:
            return lease.over

        assert await until(over)
        assert lease.lost
        with psycopg.connect(world.server.dsn) as connection:
            assert connection.execute(LIVE_WORKERS).fetchall() == []
        # The control: whoever does not say in which epoch it began is believed.
        ended = await commands.execute(attempts.complete_job, done, by("w1"))
        assert ended.state.status == "completed"
    finally:
        await asyncio.to_thread(lease.stop)
