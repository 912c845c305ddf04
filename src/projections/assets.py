"""Assets as readers see them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import assets
from .projection import Page, ReadModel, ReadModels


class AssetRow(Struct, frozen=True):
    asset_id: UUID
    owner: str
    purpose: str
    filename: str
    content_type: str
    size_bytes: int
    object_key: str
    status: str
    created_at: datetime
    updated_at: datetime
    version: int
    position: int
    sha256: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    quarantine_code: str | None = None
    quarantine_detail: str | None = None


def apply(row: AssetRow | None, event: Any, at: Recorded) -> AssetRow:
    if isinstance(event, assets.UploadRequested):
        return AssetRow(
            asset_id=at.stream_id,
            owner=event.owner,
            purpose=event.purpose,
            filename=event.filename,
            content_type=event.content_type,
            size_bytes=event.size_bytes,
            object_key=event.object_key,
            status="requested",
            created_at=event.at,
            updated_at=event.at,
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "an asset begins with UploadRequested"
    return replace(_moved(row, event), updated_at=event.at, version=at.originator_version, position=at.id)


def _moved(row: AssetRow, event: assets.Event) -> AssetRow:
    match event:
        case assets.AssetUploaded(sha256=sha256, size_bytes=size_bytes):
            return replace(row, status="uploaded", sha256=sha256, size_bytes=size_bytes)
        case assets.AssetScanned(width_px=width_px, height_px=height_px):
            return replace(row, status="clean", width_px=width_px, height_px=height_px)
        case assets.AssetQuarantined(code=code, detail=detail):
            return replace(row, status="quarantined", quarantine_code=code, quarantine_detail=detail)
        case assets.AssetDeleted():
            return replace(row, status="deleted")
        case _:
            return row


ASSETS = ReadModel("assets", 1, frozenset({"asset"}), AssetRow, apply)

PAGE = sql.SQL(
    "SELECT to_json(a) FROM assets AS a WHERE status <> 'deleted'"
    " AND (%(owner)s::text IS NULL OR owner = %(owner)s) AND (%(after)s::uuid IS NULL OR asset_id > %(after)s)"
    " ORDER BY asset_id LIMIT %(limit)s"
)
BY_IDS = sql.SQL("SELECT to_json(a) FROM assets AS a WHERE asset_id = ANY (%(ids)s)")


async def page(reads: ReadModels, *, owner: str | None = None, after: UUID | None, limit: int) -> Page[AssetRow]:
    """Assets that are not deleted, oldest id first, past `after`; at most `limit` rows."""
    return await reads.fetch(AssetRow, PAGE, {"owner": owner, "after": after, "limit": limit})


async def by_ids(reads: ReadModels, ids: list[UUID]) -> dict[UUID, AssetRow]:
    """Those of `ids` that exist, deleted ones too."""
    found = await reads.fetch(AssetRow, BY_IDS, {"ids": ids})
    return {row.asset_id: row for row in found.rows}
