"""Sessions as readers see them. What depends on the time of asking (expired, remaining seconds) is not stored."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import sessions
from ..domain.sealed import Sealed
from .projection import Page, ReadModel, ReadModels


class SessionRow(Struct, frozen=True):
    session_id: UUID
    owner: str
    user_id: Sealed | None
    status: str
    created_at: datetime
    expires_at: datetime
    last_activity_at: datetime
    asset_ids: list[UUID]
    version: int
    position: int


def apply(row: SessionRow | None, event: Any, at: Recorded) -> SessionRow:
    if isinstance(event, sessions.SessionCreated):
        return SessionRow(
            session_id=at.stream_id,
            owner=event.owner,
            user_id=event.user_id,
            status="active",
            created_at=event.at,
            expires_at=event.expires_at,
            last_activity_at=event.at,
            asset_ids=[],
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "a session begins with SessionCreated"
    return replace(_moved(row, event), version=at.originator_version, position=at.id)


def _moved(row: SessionRow, event: sessions.Event) -> SessionRow:
    match event:
        case sessions.AssetAttached(at=at, asset_id=asset_id):
            return replace(row, asset_ids=[*row.asset_ids, asset_id], last_activity_at=at)
        case sessions.SessionExpired():
            return replace(row, status="expired")
        case sessions.SessionClosed(at=at):
            return replace(row, status="closed", last_activity_at=at)
        case _:
            return row


SESSIONS = ReadModel("sessions", 2, frozenset({"session"}), SessionRow, apply, history=True)

PAGE = sql.SQL(
    "SELECT to_json(s) FROM sessions AS s WHERE (%(owner)s::text IS NULL OR owner = %(owner)s)"
    " AND (%(after)s::uuid IS NULL OR session_id > %(after)s) ORDER BY session_id LIMIT %(limit)s"
)
DUE = sql.SQL(
    "SELECT to_json(s) FROM sessions AS s WHERE status = 'active' AND expires_at <= %(now)s"
    " ORDER BY expires_at LIMIT %(limit)s"
)


async def page(reads: ReadModels, *, owner: str | None = None, after: UUID | None, limit: int) -> Page[SessionRow]:
    """Sessions, oldest id first, past `after`; at most `limit` rows."""
    return await reads.fetch(SessionRow, PAGE, {"owner": owner, "after": after, "limit": limit})


async def due(reads: ReadModels, *, now: datetime, limit: int) -> list[SessionRow]:
    """Sessions whose time is over and of which nobody has said so, longest over first."""
    return (await reads.fetch(SessionRow, DUE, {"now": now, "limit": limit})).rows
