"""Which jobs wait, as a hint in Valkey: it wakes workers and saves them a query. Never truth.

One sorted set per kind, by when a job should run; flushing them costs a second, until the clock worker fills them
again from the read model.
"""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import redis.asyncio as redis
import structlog
from msgspec import Struct

log = structlog.get_logger(__name__)

PRIORITY_WEIGHT_MS = 60_000  # one step of priority is worth a minute of waiting, so that whoever waits moves up
OFFERED_MAX = 100_000  # per kind; beyond it the clock's refill is what brings the rest


class Candidate(Struct, frozen=True):
    """A job that seems to wait."""

    job_id: UUID
    kind: str
    priority: int
    since: datetime

    @property
    def score(self) -> float:
        """Smaller runs earlier. Milliseconds since 1970 stay far below 2^53, so that a double is exact."""
        return self.since.timestamp() * 1000 // 1 + self.priority * PRIORITY_WEIGHT_MS


class JobHints:
    """Candidates of every kind. Any method may raise `redis.RedisError`; callers carry on without."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client

    async def offer(self, candidates: Iterable[Candidate]) -> None:
        """Tell the workers of these kinds; whoever waits in take() wakes at once."""
        by_kind: dict[str, dict[bytes, float]] = {}
        for one in candidates:
            by_kind.setdefault(one.kind, {})[one.job_id.bytes] = one.score
        pipeline = self._client.pipeline(transaction=False)
        for kind, members in by_kind.items():
            pipeline.zadd(_key(kind), members)
            pipeline.zremrangebyrank(_key(kind), OFFERED_MAX, -1)
        await pipeline.execute()

    async def take(self, kinds: Sequence[str], *, count: int, timeout_s: float) -> list[UUID]:
        """Up to `count` candidates of the first kind that has any, taken out; none after `timeout_s`."""
        keys = [_key(kind) for kind in kinds]
        found: Any = await self._client.bzmpop(timeout_s, len(keys), keys, min=True, count=count)
        return [UUID(bytes=member) for member, _ in found[1]] if found else []

    async def ready(self) -> None:
        """Raises redis.RedisError unless the server answers."""
        await self._client.ping()


class Offers:
    """Offers on the way: nobody waits for them, and one call to Valkey at a time takes all that have come by then."""

    def __init__(self, hints: JobHints) -> None:
        self._hints = hints
        self._waiting: list[Candidate] = []
        self._sending: asyncio.Task[None] | None = None

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Offer these soon. What Valkey does not take is the clock worker's to bring, within a second."""
        self._waiting += candidates
        if self._waiting and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                await self._hints.offer(taken)
            except redis.RedisError as error:
                log.warning("hints_lost", count=len(taken), error=repr(error))

    async def close(self) -> None:
        """Wait until all are sent."""
        if self._sending is not None:
            await self._sending


def _key(kind: str) -> str:
    return f"sightline:waiting:{kind}"
