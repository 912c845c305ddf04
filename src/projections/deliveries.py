"""Deliveries as readers see them: what was sent where, how often, and what came back.

They are written by the delivery worker and not folded from the log: an attempt is an encounter with somebody else's
server, not a fact about a material. What is to be delivered is decided by the log alone; see workers/webhooks.py.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import LiteralString
from uuid import UUID

import msgspec
from msgspec import Struct
from psycopg import sql
from psycopg_pool import AsyncConnectionPool


class AttemptRow(Struct, frozen=True):
    """Attributes:
    status_code: None where there was no answer; then `error` says why.
    answer: the beginning of what was answered.
    """

    number: int
    started_at: datetime
    duration_ms: int
    status_code: int | None
    error: str | None
    answer: str


class DeliveryRow(Struct, frozen=True):
    """One message to one receiver.

    Attributes:
        message_id: what the receiver is told as `webhook-id`, in every attempt.
        status: `pending`, `delivered`, `failed` (the last attempt did), `abandoned` (the webhook was disabled or
            deleted, or its owner is out).
        event_position: of what is told.
        next_attempt_at: while it is pending.
        attempts: the newest last.
    """

    delivery_id: UUID
    message_id: str
    type: str
    status: str
    event_position: int
    attempts_made: int
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    attempts: list[AttemptRow]


_ROW: LiteralString = (
    "SELECT to_json(r) FROM (SELECT d.delivery_id, d.message_id, d.type, d.status, d.event_position, d.attempts_made,"
    " CASE WHEN d.status = 'pending' THEN d.next_attempt_at END AS next_attempt_at, d.created_at, d.finished_at,"
    " (SELECT coalesce(json_agg(json_build_object('number', a.number, 'started_at', a.started_at, 'duration_ms',"
    " a.duration_ms, 'status_code', a.status_code, 'error', a.error, 'answer', a.answer) ORDER BY a.number), '[]')"
    " FROM webhook_attempts AS a WHERE a.delivery_id = d.delivery_id) AS attempts"
    " FROM webhook_deliveries AS d"
)
OF_WEBHOOK = sql.SQL(
    _ROW  # noqa: S608  # literals only
    + " WHERE d.webhook_id = %(webhook_id)s AND (%(status)s::text IS NULL OR d.status = %(status)s)"
    " AND (%(after)s::uuid IS NULL OR d.event_position <"
    " (SELECT p.event_position FROM webhook_deliveries AS p WHERE p.delivery_id = %(after)s))"
    " ORDER BY d.event_position DESC LIMIT %(limit)s) AS r"
)
OF_JOB = sql.SQL(_ROW + " WHERE d.job_id = %(job_id)s ORDER BY d.event_position DESC LIMIT %(limit)s) AS r")
ONE = sql.SQL(_ROW + " WHERE d.webhook_id = %(webhook_id)s AND d.delivery_id = %(delivery_id)s) AS r")


async def page(
    pool: AsyncConnectionPool, webhook_id: UUID, *, status: str | None, after: UUID | None, limit: int
) -> list[DeliveryRow]:
    """A webhook's deliveries, newest first, past `after`; at most `limit`."""
    values = {"webhook_id": webhook_id, "status": status, "after": after, "limit": limit}
    return await _fetch(pool, OF_WEBHOOK, values)


async def of_job(pool: AsyncConnectionPool, job_id: UUID, *, limit: int) -> list[DeliveryRow]:
    """What was sent to a job's `callback_url`, newest first; at most `limit`."""
    return await _fetch(pool, OF_JOB, {"job_id": job_id, "limit": limit})


async def one(pool: AsyncConnectionPool, webhook_id: UUID, delivery_id: UUID) -> DeliveryRow | None:
    found = await _fetch(pool, ONE, {"webhook_id": webhook_id, "delivery_id": delivery_id})
    return found[0] if found else None


async def _fetch(pool: AsyncConnectionPool, query: sql.SQL, values: Mapping[str, object]) -> list[DeliveryRow]:
    async with pool.connection() as connection:
        cursor = await connection.execute(query, values)
        return [msgspec.json.decode(row, type=DeliveryRow) for (row,) in await cursor.fetchall()]
