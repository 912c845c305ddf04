"""Commands on assets. The bytes themselves go to the object store first; an event names only what is there."""

from uuid import UUID

from msgspec import Struct

from ..domain import assets
from ..domain.assets import Asset, Scan
from . import quotas
from .transaction import Loaded, Transaction


def object_key(asset_id: UUID) -> str:
    """Where an asset's bytes lie. Nothing of the caller's is in it."""
    return f"assets/{asset_id}"


class RequestUpload(Struct, frozen=True, kw_only=True):
    asset_id: UUID
    filename: str
    content_type: str
    size_bytes: int
    purpose: str
    size_bytes_max: int | None = None


class CompleteUpload(Struct, frozen=True, kw_only=True):
    """The bytes were counted, hashed, sniffed and scanned; `scan` is the verdict."""

    asset_id: UUID
    sha256: str
    size_bytes: int
    content_type: str
    scan: Scan


class RegisterAsset(Struct, frozen=True, kw_only=True):
    """An upload that came whole in one request, already stored and scanned."""

    asset_id: UUID
    filename: str
    content_type: str
    found_content_type: str
    size_bytes: int
    sha256: str
    scan: Scan
    purpose: str
    size_bytes_max: int | None = None


class DeleteAsset(Struct, frozen=True, kw_only=True):
    asset_id: UUID


async def request_upload(tx: Transaction, command: RequestUpload) -> Loaded[Asset]:
    asset = await tx.create(assets.AGGREGATE, command.asset_id)
    events = assets.request_upload(
        asset.state,
        filename=command.filename,
        content_type=command.content_type,
        size_bytes=command.size_bytes,
        purpose=command.purpose,
        owner=tx.caller.actor,
        object_key=object_key(command.asset_id),
        now=tx.caller.now,
        size_bytes_max=command.size_bytes_max,
    )
    if events:
        await quotas.reserve_upload(tx, command.asset_id, command.size_bytes)
    return tx.say(asset, events)


async def complete_upload(tx: Transaction, command: CompleteUpload) -> Loaded[Asset]:
    asset = await tx.load(assets.AGGREGATE, command.asset_id)
    tx.say(
        asset,
        assets.complete_upload(
            asset.state,
            sha256=command.sha256,
            size_bytes=command.size_bytes,
            content_type=command.content_type,
            now=tx.caller.now,
        ),
    )
    return tx.say(asset, assets.record_scan(asset.state, scan=command.scan, now=tx.caller.now))


async def register_asset(tx: Transaction, command: RegisterAsset) -> Loaded[Asset]:
    asset = await tx.create(assets.AGGREGATE, command.asset_id)
    events = assets.register(
        asset.state,
        filename=command.filename,
        content_type=command.content_type,
        found_content_type=command.found_content_type,
        sha256=command.sha256,
        size_bytes=command.size_bytes,
        scan=command.scan,
        purpose=command.purpose,
        owner=tx.caller.actor,
        object_key=object_key(command.asset_id),
        now=tx.caller.now,
        size_bytes_max=command.size_bytes_max,
    )
    if events:
        await quotas.reserve_upload(tx, command.asset_id, command.size_bytes)
    return tx.say(asset, events)


async def delete_asset(tx: Transaction, command: DeleteAsset) -> Loaded[Asset]:
    asset = await tx.load(assets.AGGREGATE, command.asset_id)
    return tx.say(asset, assets.delete(asset.state, by=tx.caller.actor, now=tx.caller.now))
