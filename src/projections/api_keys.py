"""API keys as readers see them: everything but the digest of the secret."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import api_keys
from .projection import Page, ReadModel, ReadModels


class ApiKeyRow(Struct, frozen=True):
    key_id: UUID
    name: str
    owner: UUID
    role: str
    scopes: list[str] | None
    prefix: str
    created_at: datetime
    expires_at: datetime
    version: int
    position: int
    revoked_at: datetime | None = None


def apply(row: ApiKeyRow | None, event: Any, at: Recorded) -> ApiKeyRow:
    if isinstance(event, api_keys.ApiKeyIssued):
        return ApiKeyRow(
            key_id=at.stream_id,
            name=event.name,
            owner=event.owner,
            role=event.role.value,
            scopes=event.scopes,
            prefix=event.prefix,
            created_at=event.at,
            expires_at=event.expires_at,
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "a key begins with ApiKeyIssued"
    return replace(row, revoked_at=event.at, version=at.originator_version, position=at.id)


API_KEYS = ReadModel("api_keys", 1, frozenset({"api_key"}), ApiKeyRow, apply)

PAGE = sql.SQL(
    "SELECT to_json(k) FROM api_keys AS k WHERE (%(owner)s::text IS NULL OR 'user:' || owner = %(owner)s)"
    " AND (%(after)s::uuid IS NULL OR key_id > %(after)s) ORDER BY key_id LIMIT %(limit)s"
)


async def page(reads: ReadModels, *, owner: str | None = None, after: UUID | None, limit: int) -> Page[ApiKeyRow]:
    """Keys in the order of their ids, past `after`; at most `limit` rows; with `owner` (`user:<id>`), his alone."""
    return await reads.fetch(ApiKeyRow, PAGE, {"owner": owner, "after": after, "limit": limit})
