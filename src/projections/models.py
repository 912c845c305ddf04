"""Model versions as readers see them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import models
from .projection import Page, ReadModel, ReadModels


class ModelRow(Struct, frozen=True):
    model_id: UUID
    owner: str
    name: str
    framework: str
    task: str
    hf_repo: str | None
    hf_revision: str | None
    uri: str | None
    status: str
    created_at: datetime
    updated_at: datetime
    version: int
    position: int
    sha256: str | None = None
    path: str | None = None
    size_bytes: int | None = None
    origin: str | None = None
    synced_at: datetime | None = None
    last_sync_error: str | None = None


def apply(row: ModelRow | None, event: Any, at: Recorded) -> ModelRow:
    if isinstance(event, models.ModelRegistered):
        return ModelRow(
            model_id=at.stream_id,
            owner=event.owner,
            name=event.name,
            framework=event.framework,
            task=event.task,
            hf_repo=event.hf_repo,
            hf_revision=event.hf_revision,
            uri=event.uri,
            status="registered",
            created_at=event.at,
            updated_at=event.at,
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "a model begins with ModelRegistered"
    return replace(_moved(row, event), updated_at=event.at, version=at.originator_version, position=at.id)


def _moved(row: ModelRow, event: models.Event) -> ModelRow:
    match event:
        case models.ModelSyncStarted():
            return replace(row, status="syncing")
        case models.ModelSynced(at=at, sha256=sha256, path=path, size_bytes=size_bytes, origin=origin):
            return replace(
                row,
                status="synced",
                sha256=sha256,
                path=path,
                size_bytes=size_bytes,
                origin=origin,
                synced_at=at,
                last_sync_error=None,
            )
        case models.ModelSyncFailed(error=error):
            return replace(row, status="failed", last_sync_error=error)
        case models.ModelArchived():
            return replace(row, status="archived")
        case _:
            return row


MODELS = ReadModel("models", 1, frozenset({"model"}), ModelRow, apply, history=True)

PAGE = sql.SQL(
    "SELECT to_json(m) FROM models AS m WHERE (%(task)s::text IS NULL OR task = %(task)s)"
    " AND (%(after)s::uuid IS NULL OR model_id > %(after)s) ORDER BY model_id LIMIT %(limit)s"
)


async def page(reads: ReadModels, *, task: str | None = None, after: UUID | None, limit: int) -> Page[ModelRow]:
    """Model versions, oldest id first, past `after`; at most `limit` rows."""
    return await reads.fetch(ModelRow, PAGE, {"task": task, "after": after, "limit": limit})
