"""An asset: bytes that somebody gave us, whose contents nobody trusts before they were scanned.

requested → uploaded → clean | quarantined; any of them → deleted
"""

import re
import unicodedata
from datetime import datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from .kernel import Aggregate, Invalid, InvalidState, NotFound, Rejection, require_sha256, require_within, storable

FILENAME_CHARS_MAX = 255
OBJECT_KEY_CHARS_MAX = 512
DETAIL_CHARS_MAX = 500

MEBIBYTE_BYTES = 1024 * 1024
IMAGE_TYPES = frozenset(f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff"))
VIDEO_TYPES = frozenset({"video/mp4", "video/quicktime", "video/x-matroska"})
# What browsers and older tools call the same bytes.
TYPE_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-ms-bmp": "image/bmp",
    "image/x-bmp": "image/bmp",
    "image/tif": "image/tiff",
    "video/matroska": "video/x-matroska",
}


class Purpose(Struct, frozen=True):
    """What an asset may be for, and so what it may be."""

    content_types: frozenset[str]
    size_bytes_max: int


PURPOSES = {
    "image": Purpose(IMAGE_TYPES, 50 * MEBIBYTE_BYTES),
    "video": Purpose(VIDEO_TYPES, 2048 * MEBIBYTE_BYTES),
    "artifact": Purpose(
        IMAGE_TYPES | VIDEO_TYPES | {"application/json", "application/octet-stream", "application/zip", "text/plain"},
        2048 * MEBIBYTE_BYTES,
    ),
}


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class UploadRequested(Struct, frozen=True, kw_only=True, tag="asset.upload_requested"):
    at: datetime
    owner: str
    purpose: str
    filename: str  # as it was sent; never a path of ours, see display_name()
    content_type: str
    size_bytes: int  # as announced
    object_key: str


class AssetUploaded(Struct, frozen=True, kw_only=True, tag="asset.uploaded"):
    at: datetime
    sha256: str
    size_bytes: int  # as counted
    content_type: str  # as found


class AssetScanned(Struct, frozen=True, kw_only=True, tag="asset.scanned"):
    """Scanned and found clean; a bad verdict is AssetQuarantined."""

    at: datetime
    engine: str
    width_px: int | None = None
    height_px: int | None = None


class AssetQuarantined(Struct, frozen=True, kw_only=True, tag="asset.quarantined"):
    at: datetime
    engine: str
    code: str
    detail: str


class AssetDeleted(Struct, frozen=True, kw_only=True, tag="asset.deleted"):
    at: datetime
    by: str


Event = UploadRequested | AssetUploaded | AssetScanned | AssetQuarantined | AssetDeleted


# State


class Asset(Struct, frozen=True):
    """An asset as its events tell it; `status` is None before anything was said."""

    status: Literal["requested", "uploaded", "clean", "quarantined", "deleted"] | None = None
    owner: str = ""
    purpose: str = ""
    filename: str = ""
    content_type: str = ""
    size_bytes: int = 0
    object_key: str = ""
    sha256: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    quarantine_code: str | None = None
    quarantine_detail: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Scan(Struct, frozen=True, kw_only=True):
    """One engine's verdict.

    Attributes:
        code: why the bytes are refused; none means clean.
    """

    engine: str
    code: str | None = None
    detail: str = ""
    width_px: int | None = None
    height_px: int | None = None


# Rejections


class TypeNotAllowed(Rejection):
    code = "unsupported_media_type"


class TooLarge(Rejection):
    code = "payload_too_large"


class Empty(Rejection):
    code = "empty_file"


class NotClean(InvalidState):
    """Not scanned yet, or scanned and refused."""

    code = "asset_not_clean"


def evolve(asset: Asset, event: Event) -> Asset:
    match event:
        case UploadRequested():
            return Asset(
                status="requested",
                owner=event.owner,
                purpose=event.purpose,
                filename=event.filename,
                content_type=event.content_type,
                size_bytes=event.size_bytes,
                object_key=event.object_key,
                created_at=event.at,
                updated_at=event.at,
            )
        case AssetUploaded(at=at, sha256=sha256, size_bytes=size_bytes):
            return replace(asset, status="uploaded", sha256=sha256, size_bytes=size_bytes, updated_at=at)
        case AssetScanned(at=at, width_px=width_px, height_px=height_px):
            return replace(asset, status="clean", width_px=width_px, height_px=height_px, updated_at=at)
        case AssetQuarantined(at=at, code=code, detail=detail):
            return replace(asset, status="quarantined", quarantine_code=code, quarantine_detail=detail, updated_at=at)
        case AssetDeleted(at=at):
            return replace(asset, status="deleted", updated_at=at)


AGGREGATE = Aggregate("asset", Asset(), evolve, owner=lambda asset: asset.owner)


# Decisions


def request_upload(
    asset: Asset,
    *,
    filename: str,
    content_type: str,
    size_bytes: int,
    purpose: str,
    owner: str,
    object_key: str,
    now: datetime,
    size_bytes_max: int | None = None,
) -> list[Event]:
    """Announce bytes. `size_bytes_max` is the operator's own limit for this purpose; none means the table's.

    Raises:
        Invalid: unknown purpose, or a filename or key that cannot be kept.
        TypeNotAllowed, TooLarge, Empty: never for this purpose.
    """
    if asset.status is not None:
        return []  # A retried request is not a second asset.
    allowed = PURPOSES.get(purpose)
    if allowed is None:
        raise Invalid(f"purpose {purpose!r} is not one of {', '.join(sorted(PURPOSES))}")
    require_within("the length of a filename", len(filename), 1, FILENAME_CHARS_MAX)
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in filename):
        raise Invalid("a filename has no control characters")
    require_within("the length of an object key", len(object_key), 1, OBJECT_KEY_CHARS_MAX)
    named = normal_type(content_type)
    if named not in allowed.content_types:
        raise TypeNotAllowed(f"{named or 'no type'} is not one of {', '.join(sorted(allowed.content_types))}")
    limit = allowed.size_bytes_max if size_bytes_max is None else size_bytes_max
    if size_bytes > limit:
        raise TooLarge(f"{size_bytes} bytes are more than {limit}", size_bytes_max=limit)
    if size_bytes <= 0:
        raise Empty("the file has no bytes")
    return [
        UploadRequested(
            at=now,
            owner=owner,
            purpose=purpose,
            filename=filename,
            content_type=named,
            size_bytes=size_bytes,
            object_key=object_key,
        )
    ]


def complete_upload(asset: Asset, *, sha256: str, size_bytes: int, content_type: str, now: datetime) -> list[Event]:
    """The bytes are here; `size_bytes` and `content_type` are what was found, not what was announced.

    Bytes that are not what was announced are kept, named and quarantined: somebody may want to know why.
    """
    _require_existing(asset)
    if asset.status != "requested":
        if asset.sha256 == sha256:
            return []
        raise InvalidState("other bytes were uploaded for this asset before")
    found = normal_type(content_type)
    uploaded = AssetUploaded(at=now, sha256=require_sha256(sha256), size_bytes=size_bytes, content_type=found)
    if size_bytes != asset.size_bytes:
        detail = f"{asset.size_bytes} bytes were announced, {size_bytes} came"
        return [uploaded, AssetQuarantined(at=now, engine="upload", code="size_mismatch", detail=detail)]
    if found != asset.content_type:
        detail = storable(f"{asset.content_type} was announced, {found or 'no known type'} came", DETAIL_CHARS_MAX)
        return [uploaded, AssetQuarantined(at=now, engine="upload", code="content_type_mismatch", detail=detail)]
    return [uploaded]


def record_scan(asset: Asset, *, scan: Scan, now: datetime) -> list[Event]:
    """The first verdict stands: an attempt repeated after a crash may not turn it."""
    _require_existing(asset)
    if asset.status == "requested":
        raise InvalidState("nothing was uploaded yet")
    if asset.status != "uploaded":
        return []
    if scan.code is not None:
        detail = storable(scan.detail, DETAIL_CHARS_MAX)
        return [AssetQuarantined(at=now, engine=scan.engine, code=scan.code, detail=detail)]
    return [AssetScanned(at=now, engine=scan.engine, width_px=scan.width_px, height_px=scan.height_px)]


def register(
    asset: Asset,
    *,
    filename: str,
    content_type: str,
    found_content_type: str,
    sha256: str,
    size_bytes: int,
    scan: Scan,
    purpose: str,
    owner: str,
    object_key: str,
    now: datetime,
    size_bytes_max: int | None = None,
) -> list[Event]:
    """An upload whose announcement, bytes and verdict came in one request: all of it or nothing.

    Raises:
        Invalid, TypeNotAllowed, TooLarge, Empty: as request_upload().
    """
    if asset.status is not None:
        return []
    events = request_upload(
        asset,
        filename=filename,
        content_type=content_type,
        size_bytes=size_bytes,
        purpose=purpose,
        owner=owner,
        object_key=object_key,
        now=now,
        size_bytes_max=size_bytes_max,
    )
    asset = AGGREGATE.fold(asset, events)
    found = complete_upload(asset, sha256=sha256, size_bytes=size_bytes, content_type=found_content_type, now=now)
    asset = AGGREGATE.fold(asset, found)
    return [*events, *found, *record_scan(asset, scan=scan, now=now)]


def delete(asset: Asset, *, by: str, now: datetime) -> list[Event]:
    if asset.status is None:
        raise NotFound("no such asset")
    if asset.status == "deleted":
        return []
    return [AssetDeleted(at=now, by=by)]


# Questions


def require_clean(asset: Asset) -> None:
    """Only clean assets feed a process.

    Raises:
        NotFound: never requested, or deleted.
        NotClean: not uploaded, not scanned yet, or quarantined.
    """
    _require_existing(asset)
    if asset.status != "clean":
        raise NotClean(f"the asset is {asset.status}", quarantine_code=asset.quarantine_code)


def normal_type(content_type: str) -> str:
    """A media type as the table spells it: lower case, without parameters, under one name."""
    bare = content_type.partition(";")[0].strip().lower()
    return TYPE_ALIASES.get(bare, bare)


def display_name(filename: str) -> str:
    """A filename that is safe to show and to offer for download: no directories, no invisible characters."""
    last = re.split(r"[/\\]", filename)[-1]
    shown = "".join(c for c in last if unicodedata.category(c)[0] != "C")
    return re.sub(r'[<>:"|?*\s]+', "_", shown).strip("._") or "file"


def _require_existing(asset: Asset) -> None:
    if asset.status in {None, "deleted"}:
        raise NotFound("no such asset")
