"""The janitor: removes objects that no event names. A duty of the clock, a page of the store at a time.

Bytes go to the store before the event that names them, so whatever dies between the two leaves an object that nobody
will ever ask for. The log itself is asked, never a read model: one that lags, or left out a quarantined stream, would
call an object an orphan whose event it has not read.
"""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, LiteralString
from uuid import UUID

import structlog
from eventsourcing.persistence import MapperDeserialisationError
from msgspec import Struct

from ..adapters import metrics
from ..adapters.event_store.codec import Recorded
from ..adapters.objects.port import ObjectEntry, ObjectStoreError
from ..domain import assets, jobs
from ..domain.kernel import Aggregate
from .attempt import objects_prefix
from .lifecycle import Services

# What this service writes; a bucket may be shared, and whatever lies elsewhere in it is somebody else's.
PREFIXES = ("artifacts/", "assets/")
ROUND_EVERY = timedelta(hours=1)
RETRY_AFTER = timedelta(minutes=1)
TICK_BUDGET_S = 5.0  # a store that hangs must not keep the clock from its other duties for longer, nor often
REMOVED_PER_TICK_MAX = 100
NEVER = datetime.min.replace(tzinfo=UTC)

# Progress names nothing, and is most of a job's events.
STREAMS: LiteralString = (
    "SELECT stream_id, version, topic, data, position, metadata, recorded_at FROM events"
    " WHERE stream_id = ANY (%s) AND topic <> 'job.progressed' ORDER BY stream_id, version"
)
LOG_BEGAN: LiteralString = "SELECT recorded_at FROM events WHERE position = 1"

log = structlog.get_logger(__name__)


class _Round(Struct):
    """One way through the store.

    Attributes:
        since, before: objects written between the two are judged: those of before the log's first event belong to
            another log, and of younger ones the event may be on its way.
        after: the key up to which everything was judged.
    """

    since: datetime
    before: datetime
    prefixes: list[str]
    after: str = ""


class Janitor:
    """One process's; what it has looked at is kept between ticks, and nothing of it matters after a restart."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._round: _Round | None = None
        self._resume_at = NEVER

    @property
    def resting(self) -> bool:
        """Whether the last tick ended a round, or found the store away."""
        return self._round is None

    async def remove_orphans(self, moment: datetime) -> None:
        """Judge the next page of the store, if a round is under way or due at `moment`.

        Raises:
            psycopg.Error: the log cannot be asked; nothing was removed.
        """
        if moment < self._resume_at:
            return
        try:
            async with asyncio.timeout(TICK_BUDGET_S):
                await self._tick(moment)
        except (ObjectStoreError, TimeoutError) as error:
            log.warning("janitor_waits_for_the_store", error=repr(error))
            self._round, self._resume_at = None, moment + RETRY_AFTER

    async def _tick(self, moment: datetime) -> None:
        if self._round is None:
            self._round = await self._begun(moment)
            return
        if not self._round.prefixes:
            self._round, self._resume_at = None, moment + ROUND_EVERY
            return
        prefix, after = self._round.prefixes[0], self._round.after
        page = await self._services.objects.list_page(prefix, after=after)
        if not page:
            self._round.prefixes.pop(0)
            self._round.after = ""
            return
        self._round.after = await self._judge(page, self._round)

    async def _begun(self, moment: datetime) -> _Round:
        before = moment - timedelta(seconds=self._services.settings.objects_orphaned_after_s)
        await self._services.objects.sweep_unfinished(before)
        async with self._services.store.pool.connection() as connection:
            began = await (await connection.execute(LOG_BEGAN)).fetchone()
        # Of an empty log nothing is judged: it may be the wrong one for this store.
        return _Round(began[0], before, list(PREFIXES)) if began else _Round(moment, before, [])

    async def _judge(self, page: Sequence[ObjectEntry], within: _Round) -> str:
        """Remove the page's orphans; the key up to which that is done."""
        old = [entry.key for entry in page if within.since <= entry.modified_at < within.before]
        kept = await self._named(old) if old else set()
        orphans = [key for key in old if key not in kept]
        for key in orphans[:REMOVED_PER_TICK_MAX]:
            try:
                await self._services.objects.delete(key)
            except ObjectStoreError as error:  # those behind it go all the same; it is met again in the next round
                log.warning("orphan_not_removed", key=key, error=repr(error))
                continue
            metrics.OBJECTS_ORPHANED.inc()
            log.info("orphan_removed", key=key)
        return page[-1].key if len(orphans) <= REMOVED_PER_TICK_MAX else orphans[REMOVED_PER_TICK_MAX - 1]

    async def _named(self, keys: Sequence[str]) -> set[str]:
        """Those of `keys` that an event names, or that the attempt which is under way may yet name."""
        owners = {key: owner for key in keys if (owner := _owner(key)) is not None}
        async with self._services.store.pool.connection() as connection:
            cursor = await connection.execute(STREAMS, (list(set(owners.values())),))
            events = [Recorded(*row) for row in await cursor.fetchall()]
        states = {stream: self._state(group) for stream, group in groupby(events, lambda event: event.stream_id)}
        return {key for key, owner in owners.items() if _names(states.get(owner), owner, key)}

    def _state(self, events: Iterable[Recorded]) -> Any:
        """The asset or the job; the error itself where an event cannot be read: then all that it may name is kept."""
        aggregates: dict[str, Aggregate[Any]] = {one.kind: one for one in (assets.AGGREGATE, jobs.AGGREGATE)}
        state: Any = None
        try:
            for recorded in events:
                aggregate = aggregates[recorded.topic.partition(".")[0]]
                state = aggregate.evolve(aggregate.initial if state is None else state, self._event(recorded))
        except (MapperDeserialisationError, KeyError) as error:
            log.warning("stream_unreadable", stream=str(recorded.stream_id), error=repr(error))
            return error
        return state

    def _event(self, recorded: Recorded) -> Any:
        return self._services.store.mapper.event(recorded)


def _owner(key: str) -> UUID | None:
    """The asset's or the job's stream; none for a key that this service does not make."""
    try:
        return UUID(key.split("/")[1])
    except (IndexError, ValueError):
        return None


def _names(state: Any, stream_id: UUID, key: str) -> bool:
    match state:
        case assets.Asset(status=status):
            return status != "deleted" and key == state.object_key
        case jobs.Job(status="deleted"):
            return False
        case jobs.Job(status="processing", attempt=attempt) if key.startswith(objects_prefix(stream_id, attempt)):
            return True
        case jobs.Job(result=result):
            return result is not None and any(output.object_key == key for output in result.outputs)
        case None:
            return False
        case _:
            return True
