"""Whoever looks on: a reader at the log's end, and an impostor who brings the results of attempts that are over."""

import asyncio
import hashlib
import struct
from uuid import UUID

import msgspec
import psycopg
import structlog
from msgspec import Struct
from tests.conftest_service import by

from sightline.adapters import postgres
from sightline.adapters.event_store.codec import Recorded
from sightline.adapters.event_store.reader import PAGE, PAGE_EVENTS_MAX
from sightline.adapters.event_store.writer import StoreBusy, StoreUnavailable
from sightline.commands import attempts
from sightline.commands.transact import Commands, Contended, Handler
from sightline.domain.jobs import Job, JobCompleted, JobRetryScheduled, JobStarted, Provenance

POLL_S = 0.02
RETRY_S = 0.1
IMPOSTORS_AT_ONCE_MAX = 1_000

log = structlog.get_logger(__name__)


class Chain:
    """A digest of (position, stream, version) in the order in which they were seen."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.events = 0

    def add(self, position: int, stream_id: UUID, version: int) -> None:
        self._hash.update(struct.pack(">q16sq", position, stream_id.bytes, version))
        self.events += 1

    def hex(self) -> str:
        return self._hash.hexdigest()


class Reader:
    """Follows the log as every reader does, `position > last ORDER BY position`, and writes down what it saw."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.position = 0
        self.seen = Chain()
        self.holes = 0
        self.reconnects = 0
        self.over: asyncio.Queue[tuple[UUID, int, str]] = asyncio.Queue(IMPOSTORS_AT_ONCE_MAX)
        self._holders: dict[tuple[UUID, int], str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with await postgres.connect(self._dsn) as connection:
                    while True:
                        if not await self.step(connection):
                            await asyncio.sleep(POLL_S)
            except psycopg.Error:
                self.reconnects += 1
                await asyncio.sleep(RETRY_S)

    async def step(self, connection: psycopg.AsyncConnection) -> int:
        cursor = await connection.execute(PAGE, (self.position, PAGE_EVENTS_MAX), prepare=True)
        rows = [Recorded(*row) for row in await cursor.fetchall()]
        for one in rows:
            self.holes += one.position - self.position - 1
            self.position = one.position
            self.seen.add(one.position, one.stream_id, one.originator_version)
            self._note(one)
        return len(rows)

    def _note(self, one: Recorded) -> None:
        """Remember who held an attempt, and say when it is over by another's word."""
        if one.topic == "job.started":
            started = msgspec.json.decode(one.state, type=JobStarted)
            self._holders[one.stream_id, started.attempt] = started.worker
        elif one.topic == "job.retry_scheduled":
            retried = msgspec.json.decode(one.state, type=JobRetryScheduled)
            worker = self._holders.pop((one.stream_id, retried.attempt), None)
            if worker is not None and not self.over.full():
                self.over.put_nowait((one.stream_id, retried.attempt, worker))


class Tokens(Struct):
    """What became of stale fencing tokens."""

    tried: int = 0
    refused: int = 0


async def impersonate(
    commands: Commands,
    reader: Reader,
    tokens: Tokens,
    complete: Handler[attempts.CompleteJob, Job] = attempts.complete_job,
) -> None:
    """Until cancelled: whenever an attempt was given up, bring its result all the same, as its worker would."""
    while True:
        job_id, attempt, worker = await reader.over.get()
        done = attempts.CompleteJob(
            job_id=job_id, attempt=attempt, worker=worker, outputs=(), manifest={}, timings={}, receipt=Provenance()
        )
        caller = by(worker)
        while True:
            try:
                receipt = await commands.execute(complete, done, caller)
                break
            except (StoreUnavailable, StoreBusy, Contended, psycopg.Error) as error:
                log.debug("impostor_waits", error=repr(error))
                await asyncio.sleep(RETRY_S)
        tokens.tried += 1
        tokens.refused += not any(isinstance(event, JobCompleted) for event in receipt.events)
