"""The projector's transaction: the checkpoint moves, and with it all read models.

It is moved first and by compare-and-set, so that of two projectors one abandons its page; without it both counted.
An event that cannot be folded sets its stream aside in the same transaction, and the others go on.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from msgspec import Struct

from ..adapters import metrics
from ..adapters.event_store.codec import EventMapper, Recorded
from . import quarantine
from .folding import Poison
from .projection import CHANNEL, CHECKPOINT, EdgeModel, ReadModel
from .writing import PageWriter


class Overtaken(Exception):
    """Another projector moved the checkpoint meanwhile; nothing of this page was written."""


class Mark(Struct, frozen=True):
    """What rows in memory are good for: a page on this connection that begins just after this position.

    Attributes:
        generation: of the tables; another one when a rebuild put others in their place.
    """

    connection: int
    generation: int
    position: int


class Projector:
    """Folds pages of the log into the live read models."""

    def __init__(
        self, mapper: EventMapper, models: Sequence[ReadModel[Any]], edge_models: Sequence[EdgeModel[Any]]
    ) -> None:
        self._pages = PageWriter(mapper, [*models, *edge_models])
        self._mark: Mark | None = None

    async def project(self, connection: psycopg.AsyncConnection, events: Sequence[Recorded]) -> None:
        """One page into all read models, in one transaction on `connection`.

        Raises:
            Overtaken: the checkpoint is not just before the page.
            psycopg.Error: the database refuses what the page comes to, or fails; nothing was written.
        """
        mark, self._mark = self._mark, None
        before, after = events[0].id - 1, events[-1].id
        async with connection.transaction():
            await self._move_checkpoint(connection, before, after)
            generation, skipped = await _look(connection, events)
            if mark != Mark(id(connection), generation, before):
                self._pages.forget()
            poisons = await self._pages.write(connection, events, skipped)
            await self._say(connection, after, poisons)
        self._mark = Mark(id(connection), generation, after)

    async def set_aside(self, connection: psycopg.AsyncConnection, recorded: Recorded, error: Exception) -> None:
        """Pass one event that the database refuses, and quarantine its stream.

        Raises:
            Overtaken: the checkpoint is not just before the event.
        """
        self._mark = None
        async with connection.transaction():
            await self._move_checkpoint(connection, recorded.id - 1, recorded.id)
            await self._say(connection, recorded.id, [Poison(recorded, error)])

    async def _say(self, connection: psycopg.AsyncConnection, position: int, poisons: Sequence[Poison]) -> None:
        for poison in poisons:
            await quarantine.set_aside(connection, poison)
        await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(position)))
        metrics.PROJECTED_POSITION.set(position)

    async def _move_checkpoint(self, connection: psycopg.AsyncConnection, before: int, after: int) -> None:
        cursor = await connection.execute(
            "UPDATE projection_checkpoints SET position = %s, moved_at = clock_timestamp()"
            " WHERE name = %s AND position = %s",
            (after, CHECKPOINT, before),
        )
        if cursor.rowcount != 1:
            raise Overtaken(f"the checkpoint is not at {before}")


async def _look(connection: psycopg.AsyncConnection, events: Sequence[Recorded]) -> tuple[int, dict[UUID, int]]:
    """Which tables these are, and streams of the page that are set aside. Asked after the checkpoint is locked, so that
    whoever holds that lock can change both.
    """
    cursor = await connection.execute("SELECT coalesce(sum(generation), 0)::bigint FROM projections")
    row = await cursor.fetchone()
    assert row is not None
    if not await quarantine.count(connection):
        return int(row[0]), {}
    return int(row[0]), await quarantine.positions(connection, {recorded.stream_id for recorded in events})
