"""Users as readers see them. Email and name stay sealed, and the hash of the password stays in the log alone."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import users
from ..domain.sealed import Sealed
from .projection import Page, ReadModel, ReadModels


class UserRow(Struct, frozen=True):
    user_id: UUID
    email: Sealed
    full_name: Sealed
    role: str
    status: str
    created_at: datetime
    updated_at: datetime
    version: int
    position: int
    last_login_at: datetime | None = None


def apply(row: UserRow | None, event: Any, at: Recorded) -> UserRow:
    if isinstance(event, users.UserRegistered):
        return UserRow(
            user_id=at.stream_id,
            email=event.email,
            full_name=event.full_name,
            role=event.role.value,
            status="active",
            created_at=event.at,
            updated_at=event.at,
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "a user begins with UserRegistered"
    return replace(_moved(row, event), updated_at=event.at, version=at.originator_version, position=at.id)


def _moved(row: UserRow, event: users.Event) -> UserRow:
    match event:
        case users.RoleChanged(role=role):
            return replace(row, role=role.value)
        case users.LoginRecorded(at=at):
            return replace(row, last_login_at=at)
        case users.UserDeactivated():
            return replace(row, status="deactivated")
        case _:
            return row


USERS = ReadModel("users", 1, frozenset({"user"}), UserRow, apply)

PAGE = sql.SQL(
    "SELECT to_json(u) FROM users AS u WHERE (%(after)s::uuid IS NULL OR user_id > %(after)s)"
    " ORDER BY user_id LIMIT %(limit)s"
)


async def page(reads: ReadModels, *, after: UUID | None, limit: int) -> Page[UserRow]:
    """Users, oldest id first, past `after`; at most `limit` rows."""
    return await reads.fetch(UserRow, PAGE, {"after": after, "limit": limit})
