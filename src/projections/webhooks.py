"""Webhooks as readers see them: everything but their secrets."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import webhooks
from .projection import Page, ReadModel, ReadModels


class WebhookRow(Struct, frozen=True):
    """Attributes:
    kinds: of jobs; None: all.
    previous_until: when the secret before stops signing.
    """

    webhook_id: UUID
    owner: str
    url: str
    types: list[str]
    kinds: list[str] | None
    status: str
    created_at: datetime
    updated_at: datetime
    version: int
    position: int
    disabled_reason: str | None = None
    previous_until: datetime | None = None


def apply(row: WebhookRow | None, event: Any, at: Recorded) -> WebhookRow:
    if isinstance(event, webhooks.WebhookRegistered):
        return WebhookRow(
            webhook_id=at.stream_id,
            owner=event.owner,
            url=event.url,
            types=list(event.types),
            kinds=None if event.kinds is None else list(event.kinds),
            status="active",
            created_at=event.at,
            updated_at=event.at,
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "a webhook begins with WebhookRegistered"
    return replace(_moved(row, event), updated_at=event.at, version=at.originator_version, position=at.id)


def _moved(row: WebhookRow, event: webhooks.Event) -> WebhookRow:
    match event:
        case webhooks.WebhookChanged(url=url, types=types, kinds=kinds):
            return replace(row, url=url, types=list(types), kinds=None if kinds is None else list(kinds))
        case webhooks.WebhookSecretRotated(previous_until=previous_until):
            return replace(row, previous_until=previous_until)
        case webhooks.WebhookDisabled(reason=reason):
            return replace(row, status="disabled", disabled_reason=reason)
        case webhooks.WebhookEnabled():
            return replace(row, status="active", disabled_reason=None)
        case webhooks.WebhookDeleted():
            return replace(row, status="deleted")
        case _:
            return row


WEBHOOKS = ReadModel("webhooks", 1, frozenset({"webhook"}), WebhookRow, apply)

PAGE = sql.SQL(
    "SELECT to_json(w) FROM webhooks AS w WHERE status <> 'deleted' AND (%(owner)s::text IS NULL OR owner = %(owner)s)"
    " AND (%(after)s::uuid IS NULL OR webhook_id > %(after)s) ORDER BY webhook_id LIMIT %(limit)s"
)


async def page(reads: ReadModels, *, owner: str | None = None, after: UUID | None, limit: int) -> Page[WebhookRow]:
    """Webhooks that are not deleted, in the order of their ids, past `after`; with `owner`, that one's alone."""
    return await reads.fetch(WebhookRow, PAGE, {"owner": owner, "after": after, "limit": limit})
