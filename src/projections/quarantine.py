"""Streams set aside: an event that cannot be projected stops its own stream, loudly, and no other."""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import psycopg
import structlog
from msgspec import Struct

from ..adapters import metrics
from .folding import Poison

COUNTED_MAX = 1_000  # the gauge goes no further; by then it is not about single streams any more

# Of SQL errors, those about the row and not about the server, by class: data, constraints, limits of a row.
POISON_CLASSES = ("22", "23", "54")

log = structlog.get_logger(__name__)


class QuarantinedStream(Struct, frozen=True):
    """Attributes:
    position: of the first event that is in no read model.
    """

    stream_id: UUID
    position: int
    topic: str
    error: str
    since: datetime


def is_poison(error: psycopg.Error) -> bool:
    """Whether the database refused what was written, rather than failed."""
    return (error.sqlstate or "")[:2] in POISON_CLASSES


async def count(connection: psycopg.AsyncConnection) -> int:
    """How many streams are set aside, at most COUNTED_MAX; also told to the gauge."""
    cursor = await connection.execute(
        "SELECT count(*) FROM (SELECT FROM projection_quarantine LIMIT %s) AS q", (COUNTED_MAX,)
    )
    row = await cursor.fetchone()
    assert row is not None
    metrics.PROJECTION_QUARANTINED.set(row[0])
    return int(row[0])


async def positions(connection: psycopg.AsyncConnection, streams: Iterable[UUID] | None = None) -> dict[UUID, int]:
    """Streams that are set aside, and the position from which on each is skipped; of `streams` if they are given."""
    wanted = None if streams is None else list(streams)
    cursor = await connection.execute(
        "SELECT stream_id, position FROM projection_quarantine WHERE %s::uuid[] IS NULL OR stream_id = ANY (%s)",
        (wanted, wanted),
    )
    return dict(await cursor.fetchall())


async def listed(
    connection: psycopg.AsyncConnection, *, kinds: Iterable[str] | None = None, limit: int
) -> list[QuarantinedStream]:
    """The streams (of these kinds, if any are given) that were set aside first, at most `limit`."""
    wanted = None if kinds is None else list(kinds)
    cursor = await connection.execute(
        "SELECT stream_id, position, topic, error, since FROM projection_quarantine"
        " WHERE %s::text[] IS NULL OR split_part(topic, '.', 1) = ANY (%s) ORDER BY position LIMIT %s",
        (wanted, wanted, limit),
    )
    return [QuarantinedStream(*row) for row in await cursor.fetchall()]


async def set_aside(connection: psycopg.AsyncConnection, poison: Poison) -> None:
    """Skip the stream from now on, and say so aloud. Of one that is set aside already the first position stays."""
    await connection.execute(
        "INSERT INTO projection_quarantine (stream_id, position, topic, error, since)"
        " VALUES (%s, %s, %s, %s, clock_timestamp()) ON CONFLICT (stream_id) DO NOTHING",
        (poison.stream_id, poison.position, poison.topic, poison.error),
    )
    metrics.PROJECTION_QUARANTINED.inc()
    log.error(
        "stream_quarantined",
        stream=str(poison.stream_id),
        position=poison.position,
        topic=poison.topic,
        error=poison.error,
    )
