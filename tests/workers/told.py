"""A service whose webhooks are delivered: what its tests ask for, and what they wait for."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from tests.conftest_service import Service, by, open_service, until

from sightline.adapters import postgres
from sightline.adapters.egress import Egress
from sightline.adapters.egress_rules import Rules
from sightline.adapters.ids import uuid7
from sightline.adapters.settings import Settings
from sightline.adapters.standard_webhooks import new_secret
from sightline.commands import attempts, jobs
from sightline.commands import webhooks as commands
from sightline.domain import webhooks as domain
from sightline.domain.jobs import Provenance
from sightline.projections import deliveries
from sightline.projections.deliveries import DeliveryRow
from sightline.workers import lifecycle, webhooks

WORKER = "worker:test"
LOOPBACK = ["127.0.0.0/8"]
FAST = {
    "webhook_networks": LOOPBACK,
    "webhook_plain_http": True,
    "webhook_retry_scale": 0.001,
    "webhook_timeout_s": 1.0,
}


class Told:
    """A service, and a deliverer that can be stopped and started."""

    def __init__(self, service: Service, egress: Egress | None = None) -> None:
        self.service = service
        self._egress = egress
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._stopping = asyncio.Event()
        services = self.service.services
        if self._egress is None:
            run = webhooks.run(services, self._stopping)
        else:
            run = webhooks.deliver(services, self._egress, self._stopping)
        self._task = asyncio.create_task(run)

    async def stop(self) -> None:
        if self._task is not None:
            self._stopping.set()
            await self._task

    async def register(
        self, url: str, *types: str, owner: str = "ada", kinds: Sequence[str] | None = None
    ) -> tuple[UUID, str]:
        secret = new_secret()
        command = commands.RegisterWebhook(
            webhook_id=uuid7(),
            url=url,
            types=types or domain.TYPES,
            kinds=None if kinds is None else tuple(kinds),
            secret=secret,
            rules=Rules.of(self.service.settings),
        )
        return (await self.service.run(commands.register_webhook, command, by(owner))).stream_id, secret

    async def end(self, job_id: UUID, how: str = "completed") -> int:
        """The position of a job's end."""
        run = self.service.run
        start = attempts.StartJob(job_id=job_id, worker=WORKER, lease_until=lifecycle.now() + timedelta(minutes=1))
        attempt = (await run(attempts.start_job, start, by(WORKER))).state.attempt
        if how == "completed":
            done = attempts.CompleteJob(
                job_id=job_id, attempt=attempt, worker=WORKER, outputs=(), manifest={}, timings={}, receipt=Provenance()
            )
            return (await run(attempts.complete_job, done, by(WORKER))).position
        failed = attempts.FailJob(
            job_id=job_id,
            attempt=attempt,
            worker=WORKER,
            code="crashed",
            message="secret words",
            retryable=False,
            retry_delay_s=0,
        )
        return (await run(attempts.fail_job, failed, by(WORKER))).position

    async def done(self, *, owner: str = "ada", **changed: Any) -> tuple[UUID, int]:
        """A job that is over, and where in the log."""
        wanted: dict[str, Any] = {"job_id": uuid7(), "kind": "noop", "pending_max": 1_000} | changed
        job_id = (await self.service.run(jobs.submit_job, jobs.SubmitJob(**wanted), by(owner))).stream_id
        return job_id, await self.end(job_id)

    async def deliveries(self, webhook_id: UUID, status: str | None = None) -> list[DeliveryRow]:
        return await deliveries.page(self.service.services.store.pool, webhook_id, status=status, after=None, limit=200)

    async def until_delivery(self, webhook_id: UUID, *statuses: str, count: int = 1) -> list[DeliveryRow]:
        async def found() -> list[DeliveryRow] | None:
            here = [one for one in await self.deliveries(webhook_id) if one.status in statuses]
            return here if len(here) >= count else None

        return await until(found)

    async def state(self, webhook_id: UUID) -> domain.Webhook:
        return await self.service.commands.today(domain.AGGREGATE, webhook_id)


@asynccontextmanager
async def telling(settings: Settings, egress: Egress | None = None) -> AsyncIterator[Told]:
    async with open_service(settings) as service:
        told = Told(service, egress)
        told.start()
        try:
            yield told
        finally:
            await told.stop()


async def note(settings: Settings) -> None:
    """What the outbox does when nobody delivers: everything in the log is noted."""
    async with await postgres.connect(settings.database_url) as connection:
        outbox = await webhooks.open_outbox(connection, Rules.of(settings))
        while await outbox.step():
            pass
