"""A read model folded anew from position 0, beside the live one, and then put in its place while readers read on.

Pages are folded and written as the projector does it, into tables of the same shape; so memory is bounded by a page
and by the rows that a PageWriter keeps. When little is left, the checkpoint is locked, which holds the projector for
one page: the rest is folded, and view and tables change places in the same transaction. That needs all readers away
for an instant. If one stays longer than the lock timeout, nothing happened, the others go on, and it is tried again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import structlog
from msgspec import Struct
from psycopg import errors, sql

from ..adapters import postgres
from ..adapters.event_store.codec import EventMapper, Recorded
from ..adapters.event_store.reader import LogHole
from ..domain.kernel import Rejection
from . import quarantine, shadow, upkeep
from .folding import Poison
from .projection import CHECKPOINT, AnyModel, ReadModel, checkpoint
from .tables import Target
from .writing import PageWriter, collecting_rarely

PAGE_EVENTS = 10_000
PAGE_BYTES_MAX = 32 * 1024 * 1024
FOLLOW_ROUNDS_MAX = 100
SWITCH_ATTEMPTS_MAX = 60
LOCK_TIMEOUTS_MS = (100, 100, 200, 400, 800)  # while we wait for the view, its readers wait behind us
VACUUM_TIMEOUT_MS = 5_000  # autovacuum gives way after a second; nobody waits behind us meanwhile
SWITCH_PAUSE_S = 0.25

Progress = Callable[[int, int], None]  # the position reached, and the one to reach

PAGE: LiteralString = (
    "SELECT stream_id, version, topic, data, position, metadata, recorded_at FROM events"
    " WHERE position > %(after)s AND position <= %(until)s"
    " AND (%(kinds)s::text[] IS NULL OR split_part(topic, '.', 1) = ANY (%(kinds)s)) ORDER BY position LIMIT %(limit)s"
)

log = structlog.get_logger(__name__)


class CannotFold(Rejection):
    """An event of a stream that is not set aside cannot be folded."""

    code = "event_not_foldable"


class SwitchRefused(Rejection):
    """Somebody kept a lock on the view for longer than all attempts took."""

    code = "projection_locked"


class Rebuilt(Struct, frozen=True):
    """Attributes:
    position: that the new table reflected when it took its place.
    """

    name: str
    position: int
    rows: int
    attempts: int


class Filler:
    """Folds one model from the log into tables other than the live ones."""

    def __init__(
        self,
        mapper: EventMapper,
        model: AnyModel,
        target: Target,
        connection: psycopg.AsyncConnection,
        reader: psycopg.AsyncConnection,
    ) -> None:
        self._mapper = mapper
        self._model = model
        self._target = target
        self._connection = connection
        self._reader = reader
        self._pages = PageWriter(mapper, [model], {model.name: target})
        self._aside: Mapping[UUID, int] = {}
        self.position = 0

    async def fill(self, until: int, aside: Mapping[UUID, int], progress: Progress | None = None) -> None:
        """Fold on up to `until`. A stream whose quarantine is another one than before is folded again.

        Raises:
            CannotFold: an event that the live tables have cannot be folded.
        """
        for stream_id in self._aside.keys() | aside.keys():
            if self.position and self._aside.get(stream_id) != aside.get(stream_id):
                await self._again(stream_id, aside)
        self._aside = aside
        async with aclosing(_pages(self._reader, self._model, self.position, until)) as pages:
            async for events in pages:
                wanted = [one for one in events if one.id < aside.get(one.stream_id, one.id + 1)]
                async with self._connection.transaction():
                    _require_whole(await self._pages.write(self._connection, wanted))
                    await upkeep.progressed(self._connection, self._model.name, events[-1].id)
                self.position = events[-1].id
                if progress is not None:
                    progress(self.position, until)
        self.position = max(self.position, until)

    async def _again(self, stream_id: UUID, aside: Mapping[UUID, int]) -> None:
        until = min(self.position, aside.get(stream_id, self.position + 1) - 1)
        events = await stream_events(self._reader, stream_id, until)
        self.forget()
        async with self._connection.transaction():
            await refold(self._connection, self._mapper, self._model, self._target, stream_id, events)

    def forget(self, position: int | None = None) -> None:
        """What was written was rolled back, to `position` if it is given."""
        self._pages.forget()
        self.position = self.position if position is None else position


async def rebuild(
    dsn: str,
    name: str,
    mapper: EventMapper,
    *,
    progress: Progress = lambda _, __: None,
    on_claim: Callable[[], None] = lambda: None,
) -> Rebuilt:
    """Fill new tables for a read model and its history, and put them in the place of the live ones.

    `dsn` is without a pooler between, since locks belong to one session.

    Raises:
        NotFound, ProjectionBusy, TableInUse: it cannot be begun.
        CannotFold, SwitchRefused: it was begun, and the live tables are as they were.
    """
    model = upkeep.model_named(name)
    views = [(name, model.table)]
    if isinstance(model, ReadModel) and model.history:
        views.append((f"{name}_history", model.history_table))
    async with (
        await postgres.connect(dsn) as connection,
        await postgres.connect(dsn) as reader,
        upkeep.claimed(connection, name, "rebuild"),
    ):
        for view, table in views:
            await shadow.require_free(connection, view, table)
        on_claim()
        async with connection.transaction():
            made = [await shadow.create(connection, table) for _, table in views]
        filler = Filler(mapper, model, Target(made[0], *made[1:]), connection, reader)
        try:
            with collecting_rarely():
                await _follow(connection, filler, progress)
            attempts = await _switch(connection, filler, name, views)
        except Exception:
            if not connection.closed:
                for _, table in views:
                    await shadow.discard(connection, table)
            raise
        rows = await shadow.count(connection, model.table)
    log.info("projection_rebuilt", projection=name, position=filler.position, rows=rows, attempts=attempts)
    return Rebuilt(name, filler.position, rows, attempts)


async def _follow(connection: psycopg.AsyncConnection, filler: Filler, progress: Progress) -> None:
    """Fill up to the checkpoint, until that is nearly where it was; it moves meanwhile."""
    for _ in range(FOLLOW_ROUNDS_MAX):
        until = await checkpoint(connection)
        if until - filler.position <= PAGE_EVENTS and filler.position:
            return
        await filler.fill(until, await quarantine.positions(connection), progress)


async def _switch(connection: psycopg.AsyncConnection, filler: Filler, name: str, views: list[tuple[str, str]]) -> int:
    """Catch up and take the place; how many attempts that took.

    Raises:
        SwitchRefused: more than SWITCH_ATTEMPTS_MAX.
    """
    for attempt in range(1, SWITCH_ATTEMPTS_MAX + 1):
        before = filler.position
        timeout_ms = LOCK_TIMEOUTS_MS[min(attempt, len(LOCK_TIMEOUTS_MS)) - 1]
        try:
            async with connection.transaction():
                await _keep_vacuum_away(connection, [table for _, table in views])
                await connection.execute(f"SET LOCAL lock_timeout = {timeout_ms}".encode())
                cursor = await connection.execute(
                    "SELECT position FROM projection_checkpoints WHERE name = %s FOR UPDATE", (CHECKPOINT,)
                )
                row = await cursor.fetchone()
                assert row is not None
                await filler.fill(row[0], await quarantine.positions(connection))
                await shadow.take_place(connection, views)
                await connection.execute(
                    "UPDATE projections SET generation = generation + 1, rebuilt_at = clock_timestamp(),"
                    " rebuilt_position = %s WHERE name = %s",
                    (row[0], name),
                )
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            filler.forget(before)
            log.info("projection_switch_waits", projection=name, attempt=attempt)
            await asyncio.sleep(SWITCH_PAUSE_S)
        else:
            return attempt
    raise SwitchRefused(f"readers of {name} left no instant in {SWITCH_ATTEMPTS_MAX} attempts; nothing was changed")


async def _keep_vacuum_away(connection: psycopg.AsyncConnection, tables: list[str]) -> None:
    """From the old tables and the new ones: both are renamed or dropped, which vacuum would hold up."""
    await connection.execute(f"SET LOCAL lock_timeout = {VACUUM_TIMEOUT_MS}".encode())
    for table in [*tables, *(table + shadow.SUFFIX for table in tables)]:
        await connection.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(sql.Identifier(table)))


async def refold(
    connection: psycopg.AsyncConnection,
    mapper: EventMapper,
    model: AnyModel,
    target: Target,
    stream_id: UUID,
    events: list[Recorded],
) -> None:
    """Write what one stream's events come to, in the place of what there is of it.

    Raises:
        CannotFold: they cannot be folded.
    """
    if isinstance(model, ReadModel):
        await shadow.delete(connection, target.table, model.columns[0], stream_id)
        if target.history is not None:
            await shadow.delete(connection, target.history, model.columns[0], stream_id)
    if events:
        _require_whole(await PageWriter(mapper, [model], {model.name: target}).write(connection, events))


async def stream_events(connection: psycopg.AsyncConnection, stream_id: UUID, until: int) -> list[Recorded]:
    """All events of one stream up to a position."""
    cursor = await connection.execute(
        "SELECT stream_id, version, topic, data, position, metadata, recorded_at FROM events"
        " WHERE stream_id = %s AND position <= %s ORDER BY version",
        (stream_id, until),
    )
    return [Recorded(*row) for row in await cursor.fetchall()]


async def _pages(
    reader: psycopg.AsyncConnection, model: AnyModel, after: int, until: int
) -> AsyncGenerator[list[Recorded], None]:
    """The events that the model folds, in pages; the next one is read while one is used."""
    kinds = sorted(model.kinds) if isinstance(model, ReadModel) else None
    limit = PAGE_EVENTS
    values: dict[str, Any] = {"after": after, "until": until, "kinds": kinds, "limit": limit}
    task = asyncio.create_task(_page(reader, values))
    try:
        while events := await task:
            size_bytes = sum(len(one.state) for one in events) // len(events) + 1
            limit = max(1, min(PAGE_EVENTS, PAGE_BYTES_MAX // size_bytes))
            values = values | {"after": events[-1].id, "limit": limit}
            task = asyncio.create_task(_page(reader, values))
            yield events
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _page(reader: psycopg.AsyncConnection, values: Mapping[str, Any]) -> list[Recorded]:
    cursor = await reader.execute(PAGE, values, prepare=True)
    events = [Recorded(*row) for row in await cursor.fetchall()]
    if values["kinds"] is None and events and events[-1].id != values["after"] + len(events):
        raise LogHole(f"a position between {values['after']} and {events[-1].id} is missing from the log")
    return events


def _require_whole(poisons: list[Poison]) -> None:
    if poisons:
        raise CannotFold(str(poisons[0]))
