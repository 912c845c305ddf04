from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from tests.spec import given

from sightline.domain import assets
from sightline.domain.assets import (
    AGGREGATE,
    AssetDeleted,
    AssetQuarantined,
    AssetScanned,
    AssetUploaded,
    Empty,
    NotClean,
    Scan,
    TooLarge,
    TypeNotAllowed,
    UploadRequested,
    complete_upload,
    delete,
    display_name,
    normal_type,
    record_scan,
    register,
    request_upload,
    require_clean,
)
from sightline.domain.kernel import Invalid, InvalidState, NotFound

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHA, OTHER_SHA = "a" * 64, "b" * 64
KEY = f"uploads/{uuid4()}"
CLEAN = Scan(engine="decode", width_px=640, height_px=480)
BOMB = Scan(engine="decode", code="too_many_pixels", detail="90000 × 90000")


def photo(**changed: Any) -> dict[str, Any]:
    return {
        "filename": "sea.jpg",
        "content_type": "image/jpeg",
        "size_bytes": 1000,
        "purpose": "image",
        "owner": "ada",
        "object_key": KEY,
    } | changed


def requested(**changed: Any) -> UploadRequested:
    return UploadRequested(at=NOON, **photo(**changed))


def uploaded(**changed: Any) -> AssetUploaded:
    found: dict[str, Any] = {"sha256": SHA, "size_bytes": 1000, "content_type": "image/jpeg"}
    return AssetUploaded(at=NOON, **(found | changed))


SCANNED = AssetScanned(at=NOON, engine="decode", width_px=640, height_px=480)
QUARANTINED = AssetQuarantined(at=NOON, engine="decode", code="too_many_pixels", detail="90000 × 90000")
DELETED = AssetDeleted(at=NOON, by="ada")


def test_an_upload_is_announced_once() -> None:
    asset = given(AGGREGATE).when(request_upload, **photo(), now=NOON).then(requested())
    assert (asset.status, asset.filename, asset.created_at) == ("requested", "sea.jpg", NOON)


@pytest.mark.parametrize("said", ["IMAGE/JPEG", "image/jpg", " image/jpeg ; charset=binary"])
def test_a_type_is_kept_under_its_one_name(said: str) -> None:
    given(AGGREGATE).when(request_upload, **photo(content_type=said), now=NOON).then(requested())


@pytest.mark.parametrize(
    ("changed", "rejection", "code"),
    [
        ({"content_type": "text/html"}, TypeNotAllowed, "unsupported_media_type"),
        ({"content_type": "image/svg+xml"}, TypeNotAllowed, "unsupported_media_type"),
        ({"content_type": "video/mp4"}, TypeNotAllowed, "unsupported_media_type"),
        ({"content_type": ""}, TypeNotAllowed, "unsupported_media_type"),
        ({"size_bytes": 50 * 1024 * 1024 + 1}, TooLarge, "payload_too_large"),
        ({"size_bytes": 1001, "size_bytes_max": 1000}, TooLarge, "payload_too_large"),
        ({"purpose": "video", "content_type": "video/mp4", "size_bytes": 2**31 + 1}, TooLarge, "payload_too_large"),
        ({"size_bytes": 0}, Empty, "empty_file"),
        ({"size_bytes": -1}, Empty, "empty_file"),
        ({"purpose": "ransom"}, Invalid, "rule_violated"),
        ({"filename": ""}, Invalid, "rule_violated"),
        ({"filename": "a" * 256}, Invalid, "rule_violated"),
        ({"filename": "sea\0.jpg"}, Invalid, "rule_violated"),
        ({"filename": "sea\n.jpg"}, Invalid, "rule_violated"),
        ({"filename": "sea\ud800.jpg"}, Invalid, "rule_violated"),
        ({"object_key": ""}, Invalid, "rule_violated"),
        ({"object_key": "k" * 513}, Invalid, "rule_violated"),
    ],
)
def test_an_upload_is_refused(changed: dict[str, Any], rejection: type[Invalid], code: str) -> None:
    refusal = given(AGGREGATE).when(request_upload, **photo(**changed), now=NOON).refused(rejection)
    assert refusal.code == code


@pytest.mark.parametrize(
    "changed",
    [
        {"size_bytes": 50 * 1024 * 1024},
        {"size_bytes": 60 * 1024 * 1024, "size_bytes_max": 64 * 1024 * 1024},
        {"filename": "a" * 255},
        {"filename": "../../etc/passwd"},
        {"purpose": "video", "content_type": "video/x-matroska", "size_bytes": 2**31},
        {"purpose": "artifact", "content_type": "application/json"},
    ],
)
def test_an_upload_at_its_limits_is_taken(changed: dict[str, Any]) -> None:
    kept = {name: value for name, value in changed.items() if name != "size_bytes_max"}
    given(AGGREGATE).when(request_upload, **photo(**changed), now=NOON).then(requested(**kept))


def test_bytes_that_are_what_was_announced_are_taken() -> None:
    said = {"sha256": SHA, "size_bytes": 1000, "content_type": "image/jpg", "now": NOON}
    asset = given(AGGREGATE, requested()).when(complete_upload, **said).then(uploaded())
    assert (asset.status, asset.sha256) == ("uploaded", SHA)


@pytest.mark.parametrize(
    ("found", "code"),
    [({"size_bytes": 999}, "size_mismatch"), ({"content_type": "application/pdf"}, "content_type_mismatch")],
)
def test_other_bytes_than_announced_are_quarantined(found: dict[str, Any], code: str) -> None:
    said: dict[str, Any] = {"sha256": SHA, "size_bytes": 1000, "content_type": "image/jpeg"} | found
    events = complete_upload(AGGREGATE.fold(AGGREGATE.initial, [requested()]), **said, now=NOON)
    assert events[0] == uploaded(**found)
    asset = given(AGGREGATE, requested(), *events).when(complete_upload, **said, now=NOON).then()
    assert (asset.status, asset.quarantine_code) == ("quarantined", code)


def test_an_upload_is_completed_once() -> None:
    said = {"size_bytes": 1000, "content_type": "image/jpeg", "now": NOON}
    given(AGGREGATE, requested(), uploaded(), SCANNED).when(complete_upload, sha256=SHA, **said).then()
    given(AGGREGATE, requested(), uploaded()).when(complete_upload, sha256=OTHER_SHA, **said).refused(InvalidState)
    given(AGGREGATE, requested()).when(complete_upload, sha256="A" * 64, **said).refused(Invalid)
    given(AGGREGATE).when(complete_upload, sha256=SHA, **said).refused(NotFound)
    given(AGGREGATE, requested(), DELETED).when(complete_upload, sha256=SHA, **said).refused(NotFound)


def test_a_scan_clears_or_quarantines() -> None:
    assert (
        given(AGGREGATE, requested(), uploaded()).when(record_scan, scan=CLEAN, now=NOON).then(SCANNED).width_px == 640
    )
    given(AGGREGATE, requested(), uploaded()).when(record_scan, scan=BOMB, now=NOON).then(QUARANTINED)


def test_the_first_verdict_stands() -> None:
    given(AGGREGATE, requested(), uploaded(), SCANNED).when(record_scan, scan=BOMB, now=NOON).then()
    given(AGGREGATE, requested(), uploaded(), QUARANTINED).when(record_scan, scan=CLEAN, now=NOON).then()


def test_nothing_is_scanned_before_it_is_there() -> None:
    given(AGGREGATE, requested()).when(record_scan, scan=CLEAN, now=NOON).refused(InvalidState)
    given(AGGREGATE).when(record_scan, scan=CLEAN, now=NOON).refused(NotFound)


def test_what_a_scanner_says_is_made_fit_for_the_log() -> None:
    noisy = Scan(engine="decode", code="broken", detail="bad\0byte\ud800" + "x" * 900)
    events = record_scan(AGGREGATE.fold(AGGREGATE.initial, [requested(), uploaded()]), scan=noisy, now=NOON)
    assert isinstance(events[0], AssetQuarantined)
    assert events[0].detail == "bad byte " + "x" * 491


def test_one_request_registers_all_of_it() -> None:
    said = photo() | {"found_content_type": "image/jpeg", "sha256": SHA, "now": NOON}
    given(AGGREGATE).when(register, **said, scan=CLEAN).then(requested(), uploaded(), SCANNED)
    given(AGGREGATE).when(register, **said, scan=BOMB).then(requested(), uploaded(), QUARANTINED)


def test_a_request_is_registered_once() -> None:
    said = photo() | {"found_content_type": "image/jpeg", "sha256": OTHER_SHA, "scan": CLEAN, "now": NOON}
    given(AGGREGATE, requested(), uploaded(), SCANNED).when(register, **said).then()


def test_a_lie_in_one_request_is_told_once() -> None:
    said = photo() | {"found_content_type": "image/png", "sha256": SHA, "scan": CLEAN, "now": NOON}
    lie = AssetQuarantined(
        at=NOON, engine="upload", code="content_type_mismatch", detail="image/jpeg was announced, image/png came"
    )
    given(AGGREGATE).when(register, **said).then(requested(), uploaded(content_type="image/png"), lie)


def test_one_request_is_refused_as_a_whole() -> None:
    said = photo(size_bytes=0) | {"found_content_type": "image/jpeg", "sha256": SHA, "scan": CLEAN, "now": NOON}
    given(AGGREGATE).when(register, **said).refused(Empty)


@pytest.mark.parametrize("before", [[], [uploaded()], [uploaded(), SCANNED], [uploaded(), QUARANTINED]])
def test_an_asset_can_be_deleted_at_any_time(before: list[assets.Event]) -> None:
    assert given(AGGREGATE, requested(), *before).when(delete, by="ada", now=NOON).then(DELETED).status == "deleted"


def test_what_never_was_cannot_be_deleted() -> None:
    given(AGGREGATE).when(delete, by="ada", now=NOON).refused(NotFound)


@pytest.mark.parametrize(
    ("events", "rejection"),
    [
        ([], NotFound),
        ([requested()], NotClean),
        ([requested(), uploaded()], NotClean),
        ([requested(), uploaded(), QUARANTINED], NotClean),
        ([requested(), uploaded(), SCANNED, DELETED], NotFound),
    ],
)
def test_only_clean_assets_feed_a_process(events: list[assets.Event], rejection: type[Exception]) -> None:
    with pytest.raises(rejection):
        require_clean(AGGREGATE.fold(AGGREGATE.initial, events))
    require_clean(AGGREGATE.fold(AGGREGATE.initial, [requested(), uploaded(), SCANNED]))


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("sea.jpg", "sea.jpg"),
        ("../../etc/passwd", "passwd"),
        (r"C:\photos\my sea.jpg", "my_sea.jpg"),
        ("gnp.\u202egpj.exe", "gnp.gpj.exe"),
        ("..", "file"),
        ("/", "file"),
        (".htaccess", "htaccess"),
        ("Überfahrt – 海.png", "Überfahrt_–_海.png"),
        ('a"b<c>.png', "a_b_c_.png"),
    ],
)
def test_a_filename_is_shown_without_its_tricks(sent: str, shown: str) -> None:
    assert display_name(sent) == shown


def test_aliases_lead_to_types_that_some_purpose_takes() -> None:
    taken = set[str]().union(*(purpose.content_types for purpose in assets.PURPOSES.values()))
    assert set(assets.TYPE_ALIASES.values()) <= taken
    assert all(normal_type(name) == name for name in taken)
