"""Reading the log: streams, pages of positions, filters, and a subscription that never skips.

Positions are given under the lock of `append_batch`, without a gap and in the order of commits. So whoever has read
up to P takes `position > P ORDER BY position` and has everything; a hole would mean that the log is damaged, and is
raised as such instead of being waited out.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any, LiteralString, Self
from uuid import UUID

import psycopg
import structlog
from msgspec import Struct
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from ...domain.upcasts import generations
from .. import postgres
from .codec import Recorded

CHANNEL = "sightline_log"
PAGE_EVENTS_MAX = 1_000
STREAM_EVENTS_MAX = 100_000
POLL_S = 0.05
RECONNECT_PAUSE_S = 0.5

log = structlog.get_logger(__name__)

_COLUMNS: LiteralString = "stream_id, version, topic, data, position, metadata, recorded_at"

STREAM: LiteralString = (
    "SELECT " + _COLUMNS + " FROM events WHERE stream_id = %s AND version > %s"  # noqa: S608  # literals only
    " AND (%s::bigint IS NULL OR position <= %s) ORDER BY version LIMIT %s"
)
STREAMS: LiteralString = (
    "SELECT " + _COLUMNS + " FROM events WHERE stream_id = ANY (%s) ORDER BY stream_id, version LIMIT %s"  # noqa: S608  # literals only
)
PAGE: LiteralString = "SELECT " + _COLUMNS + " FROM events WHERE position > %s ORDER BY position LIMIT %s"  # noqa: S608  # literals only
FIRST: LiteralString = "SELECT " + _COLUMNS + " FROM events WHERE stream_id = ANY (%s) AND version = 1"  # noqa: S608  # literals only
# One statement, so that epoch, end and events are of one moment.
PAST: LiteralString = (
    "SELECT h.epoch, coalesce((SELECT position FROM events ORDER BY position DESC LIMIT 1), 0), e.*"  # noqa: S608  # literals only
    " FROM log_head AS h LEFT JOIN LATERAL (SELECT " + _COLUMNS + " FROM events WHERE position > %s"
    " ORDER BY position LIMIT %s) AS e ON true ORDER BY e.position"
)
STREAM_PAST: LiteralString = (
    "SELECT h.epoch, coalesce((SELECT position FROM events ORDER BY position DESC LIMIT 1), 0), e.*"  # noqa: S608  # literals only
    " FROM log_head AS h LEFT JOIN LATERAL (SELECT " + _COLUMNS + " FROM events WHERE stream_id = %s AND position > %s"
    " ORDER BY version LIMIT %s) AS e ON true ORDER BY e.position"
)
RECEIPT: LiteralString = (
    "SELECT h.epoch, r.position, r.result FROM log_head AS h LEFT JOIN receipts AS r ON r.command_id = %s"
)

AT: LiteralString = "SELECT " + _COLUMNS + " FROM events WHERE position = ANY (%s) ORDER BY position"  # noqa: S608  # literals only
REACTIONS: LiteralString = (
    "SELECT position, metadata ->> 'causation_id' FROM events WHERE position > %s AND position <= %s"
    " AND metadata ->> 'causation_id' LIKE 'event:%%' ORDER BY position"
)

MOVED: LiteralString = (
    "SELECT h.epoch, ARRAY (SELECT s.stream_id FROM unnest(%s::uuid[], %s::int[]) AS s (stream_id, version)"
    " WHERE EXISTS (SELECT FROM events AS e WHERE e.stream_id = s.stream_id AND e.version = s.version + 1))"
    " FROM log_head AS h"
)


class LogHole(Exception):
    """A position is missing. The log is damaged: nothing may be read past it."""


class LogHead(Struct, frozen=True):
    """The last position, and the epoch that positions belong to."""

    position: int
    epoch: UUID


class Past(Struct, frozen=True):
    """What came after a position, and the log that it was read from, as of one moment.

    Attributes:
        position: where the log ended then.
    """

    epoch: UUID
    position: int
    events: list[Recorded]


class EventFilter(Struct, frozen=True, kw_only=True):
    """What an auditor may ask the log for; everything that is given must hold.

    Attributes:
        topic: a tag, or a prefix that ends in a dot (`job.`); a tag without a generation means all its generations.
        since, until: of recorded_at, since included, until not.
    """

    topic: str | None = None
    stream_id: UUID | None = None
    actor: str | None = None
    correlation_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Reader:
    """Reads of one process, on connections of a pool.

    Args:
        on_epoch: told the epoch of the log, wherever it is read.
    """

    def __init__(self, pool: AsyncConnectionPool, on_epoch: Callable[[UUID], None] = lambda _: None) -> None:
        self._pool = pool
        self._on_epoch = on_epoch

    async def head(self) -> LogHead:
        """Where the log ends now."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT coalesce((SELECT position FROM events ORDER BY position DESC LIMIT 1), 0), epoch FROM log_head"
            )
            row = await cursor.fetchone()
        assert row is not None
        head = LogHead(*row)
        self._on_epoch(head.epoch)
        return head

    async def receipt(self, command_id: UUID) -> tuple[int, bytes | None] | None:
        """Position and result of a command that was appended before."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(RECEIPT, (command_id,))
            row = await cursor.fetchone()
        assert row is not None
        epoch, position, result = row
        self._on_epoch(epoch)
        return None if position is None else (position, result)

    async def stream(
        self, stream_id: UUID, *, after: int = 0, up_to_position: int | None = None, limit: int = STREAM_EVENTS_MAX
    ) -> list[Recorded]:
        """A stream's events with version > `after`, in order; those at or below a position if one is given."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                STREAM,
                (stream_id, after, up_to_position, up_to_position, limit),
                prepare=True,
            )
            return [Recorded(*row) for row in await cursor.fetchall()]

    async def streams(self, stream_ids: Sequence[UUID]) -> list[Recorded]:
        """All events of a few short streams, stream by stream, each in order; at most STREAM_EVENTS_MAX in all."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(STREAMS, (list(stream_ids), STREAM_EVENTS_MAX), prepare=True)
            return [Recorded(*row) for row in await cursor.fetchall()]

    async def moved(self, seen: Sequence[tuple[UUID, int]]) -> set[UUID]:
        """Of streams that were seen at some version, those that have events past it."""
        streams, versions = [stream_id for stream_id, _ in seen], [version for _, version in seen]
        async with self._pool.connection() as connection:
            row = await (await connection.execute(MOVED, (streams, versions), prepare=True)).fetchone()
        assert row is not None, "the log has a head"
        self._on_epoch(row[0])
        return set(row[1])

    async def page(self, *, after: int, limit: int = PAGE_EVENTS_MAX) -> list[Recorded]:
        """Events with position > `after`, in order, at most `limit`.

        Raises:
            LogHole: the positions do not follow one another.
        """
        async with self._pool.connection() as connection:
            return await read_page(connection, after=after, limit=limit)

    async def past(self, *, after: int, stream_id: UUID | None = None, limit: int = PAGE_EVENTS_MAX) -> Past:
        """As page(), or of one stream alone, with the epoch and the end of the log as they were then.

        Raises:
            LogHole: the positions do not follow one another.
        """
        query = PAST if stream_id is None else STREAM_PAST
        values = (after, limit) if stream_id is None else (stream_id, after, limit)
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(query, values, prepare=True)).fetchall()
        epoch, position = rows[0][:2]
        events = [Recorded(*row[2:]) for row in rows if row[2] is not None]
        self._on_epoch(epoch)
        if stream_id is None:
            _require_whole(events, after)
        return Past(epoch, position, events)

    async def first(self, stream_ids: Sequence[UUID]) -> list[Recorded]:
        """The first event of each of these streams, in no order; of those that there are."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(FIRST, (list(stream_ids),), prepare=True)
            return [Recorded(*row) for row in await cursor.fetchall()]

    async def at(self, positions: Sequence[int]) -> list[Recorded]:
        """The events at these positions, in order; those that there are."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(AT, (list(positions),))
            return [Recorded(*row) for row in await cursor.fetchall()]

    async def caused_by_events(self, *, after: int, until: int) -> list[tuple[int, str]]:
        """Positions past `after`, up to `until`, of events that were a reaction to an event, each with its reason."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(REACTIONS, (after, until))
            return await cursor.fetchall()

    async def search(self, wanted: EventFilter, *, after: int, limit: int) -> list[Recorded]:
        """Events past `after` that fit the filter, in order, at most `limit`."""
        conditions, values = _conditions(wanted)
        query = sql.SQL(
            "SELECT {columns} FROM events WHERE position > %s AND {conditions} ORDER BY position LIMIT %s"
        ).format(columns=sql.SQL(_COLUMNS), conditions=sql.SQL(" AND ").join(conditions))
        async with self._pool.connection() as connection:
            cursor = await connection.execute(query, (after, *values, limit))
            return [Recorded(*row) for row in await cursor.fetchall()]

    async def position_at(self, moment: datetime) -> int:
        """The last position recorded at or before `moment`; 0 before the first.

        The clock may have been set back once, so that recorded_at does not rise with position everywhere: the
        highest position that is old enough is what counts.
        """
        async with self._pool.connection() as connection:
            cursor = await connection.execute("SELECT max(position) FROM events WHERE recorded_at <= %s", (moment,))
            row = await cursor.fetchone()
        return int(row[0]) if row and row[0] is not None else 0


def _conditions(wanted: EventFilter) -> tuple[Sequence[sql.SQL], list[Any]]:
    conditions: list[sql.SQL] = [sql.SQL("true")]
    values: list[Any] = []
    given: tuple[tuple[LiteralString, Any], ...] = (
        ("stream_id = %s", wanted.stream_id),
        ("metadata ->> 'actor' = %s", wanted.actor),
        ("metadata ->> 'correlation_id' = %s", wanted.correlation_id),
        ("recorded_at >= %s", wanted.since),
        ("recorded_at < %s", wanted.until),
    )
    for condition, value in given:
        if value is not None:
            conditions.append(sql.SQL(condition))
            values.append(value)
    if wanted.topic is not None:
        if wanted.topic.endswith("."):
            conditions.append(sql.SQL("starts_with(topic, %s)"))
            values.append(wanted.topic)
        else:
            conditions.append(sql.SQL("topic = ANY (%s)"))
            values.append(generations(wanted.topic))
    return conditions, values


async def read_page(connection: psycopg.AsyncConnection, *, after: int, limit: int) -> list[Recorded]:
    """As Reader.page, on a connection of the caller's.

    Raises:
        LogHole: the positions do not follow one another.
    """
    cursor = await connection.execute(PAGE, (after, limit), prepare=True)
    events = [Recorded(*row) for row in await cursor.fetchall()]
    _require_whole(events, after)
    return events


def _require_whole(events: Sequence[Recorded], after: int) -> None:
    """Raises: LogHole: the positions do not follow one another from `after` on."""
    if events and events[-1].id != after + len(events):
        found = next(n for n, event in enumerate(events, after + 1) if event.id != n)
        raise LogHole(f"position {found} is missing from the log")


class Tail:
    """Wakes whoever waits for the log to grow: LISTEN on a connection of its own, and a poll for what it misses.

    Args:
        dsn: without a pooler between, since LISTEN belongs to one session.
        channel: which notifications count.
    """

    def __init__(self, dsn: str, channel: str = CHANNEL) -> None:
        self._dsn = dsn
        self._channel = channel
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen(), name=f"tail-{self._channel}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def wait(self, timeout_s: float = POLL_S) -> None:
        """Return at the next notification, or after `timeout_s`; then read, whichever it was."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    async def _listen(self) -> None:
        while True:
            try:
                async with await postgres.connect(self._dsn, prepare=False) as connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                    self._woken.set()
                    async for _ in connection.notifies():
                        self._woken.set()
            except psycopg.Error as error:
                log.warning("listen_lost", channel=self._channel, error=str(error))
                await asyncio.sleep(RECONNECT_PAUSE_S)


async def subscribe(reader: Reader, tail: Tail, *, after: int) -> AsyncIterator[list[Recorded]]:
    """Every event past `after`, for ever, in pages as they come.

    Raises:
        LogHole: a position is missing.
    """
    position = after
    while True:
        events = await reader.page(after=position)
        if not events:
            await tail.wait()
            continue
        position = events[-1].id
        yield events
