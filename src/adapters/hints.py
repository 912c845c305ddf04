"""Which jobs wait, as a hint in Valkey: it wakes workers and saves them a query. Never truth.

One sorted set per kind, in an order in which principals take turns (fair_queue.lua); flushing them costs a second,
until the clock worker fills them again from the read model.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import redis.asyncio as redis
import structlog
from msgspec import Struct

log = structlog.get_logger(__name__)

SCRIPT = Path(__file__).with_name("fair_queue.lua").read_text()
PRIORITY_STEP = 60  # one step of priority is worth so many turns of one's line: whoever waits moves up
OFFERED_MAX = 100_000  # per kind; beyond it the clock's refill is what brings the rest
LINES_MAX = 10_000  # per kind, of principals and their priorities; beyond it all begin a new line
OFFERED_TOGETHER_MAX = 1_000  # Valkey serves nobody else during one call
TAKEN_KEPT_MAX = 10_000  # places of candidates that may come back
BLOCK_S_MIN = 0.01  # to Valkey 0 is for ever


class Candidate(Struct, frozen=True):
    """A job that seems to wait.

    Attributes:
        since: when it could have started; of one principal's jobs that are offered together the eldest goes first.
        owner: the principal whose turn it takes.
    """

    job_id: UUID
    kind: str
    priority: int
    since: datetime
    owner: str


class JobHints:
    """Candidates of every kind. Any method may raise `redis.RedisError`; callers carry on without."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._offer = client.register_script(SCRIPT)
        self._taken: OrderedDict[UUID, tuple[str, bytes, float]] = OrderedDict()
        self._held: dict[str, float] = {}  # kinds, and when each may be taken from again

    async def offer(self, candidates: Iterable[Candidate]) -> None:
        """Tell the workers of these kinds; whoever waits in take() wakes at once."""
        left = iter(sorted(candidates, key=lambda one: one.since))
        while some := list(islice(left, OFFERED_TOGETHER_MAX)):
            numbers = {kind: number for number, kind in enumerate(dict.fromkeys(one.kind for one in some), 1)}
            arguments: list[Any] = [OFFERED_MAX, LINES_MAX, PRIORITY_STEP]
            for one in some:
                arguments += (numbers[one.kind], f"{one.priority}:{one.owner}", _member(one))
            await self._offer(keys=[key for kind in numbers for key in (_key(kind), _lines_key(kind))], args=arguments)

    async def take(self, kinds: Sequence[str], *, count: int, timeout_s: float) -> list[UUID]:
        """Up to `count` candidates of the first kind that has any and is not held, taken out; in `timeout_s`."""
        open_kinds, waits_s = self._open(kinds, timeout_s)
        if not open_kinds:
            await asyncio.sleep(waits_s)
            return []
        keys = [_key(kind) for kind in open_kinds]
        found: Any = await self._client.bzmpop(waits_s, len(keys), keys, min=True, count=count)
        return self._remember(open_kinds[keys.index(found[0].decode())], found[1]) if found else []

    async def take_more(self, kind: str, *, count: int) -> list[UUID]:
        """Up to `count` further candidates of a kind, taken out, if they are there now."""
        found: Any = await self._client.zpopmin(_key(kind), count)
        return self._remember(kind, found)

    async def put_back(self, job_ids: Iterable[UUID], *, hold_s: float = 0.0) -> None:
        """Candidates that were taken here and could not start, at the place that they had. Those whose place is not
        known any more are the clock's to bring. For `hold_s`, or until release(), take() passes their kinds over: where
        one may not start, the next may not either.
        """
        places: dict[str, dict[bytes, float]] = {}
        for job_id in job_ids:
            if (taken := self._taken.pop(job_id, None)) is not None:
                kind, member, score = taken
                places.setdefault(kind, {})[member] = score
                self._held[kind] = time.monotonic() + hold_s
        for kind, members in places.items():
            await self._client.zadd(_key(kind), members, nx=True)

    def release(self, kind: str) -> None:
        """Take of this kind again: something of it ended, or was allowed."""
        self._held.pop(kind, None)

    async def ready(self) -> None:
        """Raises redis.RedisError unless the server answers."""
        await self._client.ping()

    def _open(self, kinds: Sequence[str], timeout_s: float) -> tuple[list[str], float]:
        """Those of the kinds that are not held, and how long to wait for them: until another is not, at most."""
        now = time.monotonic()
        self._held = {kind: until for kind, until in self._held.items() if until > now}
        held = [self._held[kind] - now for kind in kinds if kind in self._held]
        return [kind for kind in kinds if kind not in self._held], max(min([timeout_s, *held]), BLOCK_S_MIN)

    def _remember(self, kind: str, found: Iterable[tuple[bytes, float]]) -> list[UUID]:
        job_ids = []
        for member, score in found:
            job_id = UUID(bytes=member[:16])
            job_ids.append(job_id)
            self._taken[job_id] = kind, member, float(score)
        while len(self._taken) > TAKEN_KEPT_MAX:
            self._taken.popitem(last=False)
        return job_ids


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


def _lines_key(kind: str) -> str:
    return f"sightline:lines:{kind}"


def _member(one: Candidate) -> bytes:
    """Its id and its priority: the script reads that of the front."""
    return one.job_id.bytes + bytes([one.priority])
