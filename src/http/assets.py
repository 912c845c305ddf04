"""Assets at the door: announce, send the bytes to the signed URL, complete."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from litestar import Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody
from litestar.response import Redirect
from msgspec import Meta, Struct

from ..adapters.ids import uuid7
from ..adapters.objects.port import ObjectMismatch, ObjectMissing
from ..commands import assets as commands
from ..commands.transact import Receipt
from ..domain import assets
from ..domain.assets import Asset
from ..domain.kernel import Aggregate, InvalidState, NotFound
from ..projections import assets as projection
from ..projections.assets import AssetRow
from . import downloads, intake
from .auth import takes
from .manners import (
    PAGE_ROWS_DEFAULT,
    After,
    Asks,
    At,
    Limit,
    Listing,
    Owner,
    Parts,
    Reads,
    Versions,
    decided,
    found,
    gone,
    listed,
    shown,
)
from .nouns import NounController, as_of
from .problems import Verdict
from .services import Services


class NotUploaded(InvalidState):
    """The bytes are not there yet."""

    code = "asset_not_uploaded"


class UploadAnnounced(Struct, frozen=True, forbid_unknown_fields=True):
    """A file that is to come.

    Attributes:
        content_type: what it is; its own signature must say the same.
        size_bytes: exactly; the signed URL takes no other length.
    """

    filename: Annotated[str, Meta(min_length=1, max_length=assets.FILENAME_CHARS_MAX)]
    content_type: Annotated[str, Meta(min_length=1, max_length=255)]
    size_bytes: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    purpose: Literal["image", "video"] = "image"


class UploadClaimed(Struct, frozen=True, forbid_unknown_fields=True):
    """What the uploader knows of the bytes; where it is given, it must be what came."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    size_bytes: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None


class UploadGrant(Struct, frozen=True):
    """One request that brings the bytes: send exactly these headers to that URL, before it expires."""

    method: str
    url: str
    headers: dict[str, str]
    expires_in_seconds: int


class AssetView(Struct, frozen=True, kw_only=True):
    """Bytes that somebody gave us.

    Attributes:
        status: only a clean one feeds a job.
        filename: as it was sent.
        content_type: as announced; a clean asset's bytes say the same.
        sha256: of the bytes, once they are here.
        upload: where to send them, in the answer to their announcement alone.
    """

    id: UUID
    status: Literal["requested", "uploaded", "clean", "quarantined", "deleted"]
    owner: str
    purpose: str
    filename: str
    content_type: str
    size_bytes: int
    sha256: str | None
    width_px: int | None
    height_px: int | None
    quarantine_code: str | None
    quarantine_detail: str | None
    created_at: datetime
    updated_at: datetime
    version: int
    upload: UploadGrant | None = None


def _view(receipt: Receipt[Asset], upload: UploadGrant | None = None) -> AssetView:
    return _view_of(receipt.stream_id, receipt.state, receipt.version, upload)


def _view_of(asset_id: UUID, asset: Asset | AssetRow, version: int, upload: UploadGrant | None = None) -> AssetView:
    detail = asset.quarantine_detail or None
    return shown(AssetView, asset, id=asset_id, version=version, quarantine_detail=detail, upload=upload)


class AssetController(NounController):
    path = "/v1/assets"
    opt = takes("assets:read", owned=assets.AGGREGATE)
    tags = ("assets",)
    aggregate: ClassVar[Aggregate[Any]] = assets.AGGREGATE

    @post("/", summary="Announce an upload", access="assets:write", limit="upload-url")
    async def announce(self, services: Parts, caller: Asks, data: JSONBody[UploadAnnounced]) -> Response[AssetView]:
        command = commands.RequestUpload(
            asset_id=uuid7(),
            filename=data.filename,
            content_type=data.content_type,
            size_bytes=data.size_bytes,
            purpose=data.purpose,
            size_bytes_max=services.settings.upload_size_bytes_max if data.purpose == "image" else None,
        )
        receipt = await services.commands.execute(commands.request_upload, command, caller)
        asset = receipt.state
        expires_s = services.settings.upload_url_expires_s
        signed = await services.objects.presign_put(
            asset.object_key, content_type=asset.content_type, size_bytes=asset.size_bytes, expires_s=expires_s
        )
        grant = UploadGrant(signed.method, signed.url, signed.headers, expires_s)
        return decided(receipt, _view(receipt, grant), status_code=201)

    @post("/{asset_id:uuid}/complete", status_code=200, summary="Have uploaded bytes looked at", access="assets:write")
    async def complete(
        self,
        services: Parts,
        caller: Asks,
        versions: Versions,
        asset_id: FromPath[UUID],
        data: JSONBody[UploadClaimed | None] = None,
    ) -> Response[AssetView]:
        """Hashes and scans them. A bad file is quarantined, and the answer is 422 with the verdict's code."""
        state, _, _ = await services.commands.state(assets.AGGREGATE, asset_id, read_tail=True)
        examined = await _examined(services, state)
        _require_claimed(examined, data or UploadClaimed())
        command = commands.CompleteUpload(
            asset_id=asset_id,
            sha256=examined.sha256,
            size_bytes=examined.size_bytes,
            content_type=examined.content_type,
            scan=examined.scan,
        )
        receipt = await services.commands.execute(commands.complete_upload, command, caller, versions=versions)
        require_not_quarantined(receipt.state)
        return decided(receipt, _view(receipt))

    @get("/", summary="Assets, oldest first")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[AssetView]]:
        page = await projection.page(reads, owner=owner, after=after, limit=limit)
        items = [_view_of(row.asset_id, row, row.version) for row in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/{asset_id:uuid}", summary="One asset, now or then")
    async def one(self, services: Parts, reads: Reads, asset_id: FromPath[UUID], at: At = None) -> Response[AssetView]:
        if at is not None:
            then = await as_of(services, assets.AGGREGATE, asset_id, at)
            return found(_view_of(asset_id, then.state, then.version), then.position, version=then.version)
        row, position = await reads.get(projection.ASSETS, asset_id)
        if row is None or row.status == "deleted":
            raise NotFound("no such asset")
        return found(_view_of(asset_id, row, row.version), position, version=row.version)

    @get("/{asset_id:uuid}/content", status_code=302, summary="The bytes, from a signed URL", refuses=(409,))
    async def content(self, services: Parts, reads: Reads, asset_id: FromPath[UUID]) -> Redirect:
        row, _ = await reads.get(projection.ASSETS, asset_id)
        if row is None or row.status == "deleted":
            raise NotFound("no such asset")
        if row.status != "clean":
            raise assets.NotClean(f"the asset is {row.status}")
        return await downloads.redirect(
            services, row.object_key, filename=assets.display_name(row.filename), content_type=row.content_type
        )

    @delete("/{asset_id:uuid}", status_code=204, summary="Delete an asset and its bytes", access="assets:write")
    async def remove(
        self, services: Parts, caller: Asks, versions: Versions, asset_id: FromPath[UUID]
    ) -> Response[None]:
        command = commands.DeleteAsset(asset_id=asset_id)
        receipt = await services.commands.execute(commands.delete_asset, command, caller, versions=versions)
        await downloads.discard(services, [receipt.state.object_key])
        return gone(receipt)


async def _examined(services: Services, asset: Asset) -> intake.Examined:
    if asset.status in {None, "deleted"}:
        raise NotFound("no such asset")
    if asset.status != "requested" and asset.sha256 is not None:
        # Looked at before: the same words again, and the log has nothing new to say.
        scan = assets.Scan(engine=intake.IMAGE_ENGINE, code=asset.quarantine_code)
        return intake.Examined(asset.sha256, asset.size_bytes, asset.content_type, scan)
    try:
        return await intake.examine_object(
            services,
            asset.object_key,
            size_bytes=asset.size_bytes,
            declared_type=asset.content_type,
            purpose=asset.purpose,
        )
    except ObjectMissing as error:
        raise NotUploaded("nothing was uploaded yet") from error


def _require_claimed(examined: intake.Examined, claimed: UploadClaimed) -> None:
    if claimed.sha256 not in {None, examined.sha256} or claimed.size_bytes not in {None, examined.size_bytes}:
        raise ObjectMismatch(f"{examined.size_bytes} bytes of SHA-256 {examined.sha256} came")


def require_not_quarantined(asset: Asset) -> None:
    """Raises: Verdict: the bytes were refused; they are kept apart, and the log says why."""
    if asset.status == "quarantined":
        raise Verdict(asset.quarantine_code or "rejected", asset.quarantine_detail)
