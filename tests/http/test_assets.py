"""Announce, upload, complete: what is clean, what is quarantined, what is served."""

import hashlib
from typing import Any

import httpx
import pytest
from tests.http.door import Door, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _announce(door: Door, content: bytes, **changed: Any) -> dict[str, Any]:
    body = {"filename": "photo.png", "content_type": "image/png", "size_bytes": len(content)} | changed
    answer = await door.client.post("/v1/assets", json=body)
    assert answer.status_code == 201, answer.text
    asset: dict[str, Any] = answer.json()
    return asset


async def _send(door: Door, asset: dict[str, Any], content: bytes) -> httpx.Response:
    upload = asset["upload"]
    return await door.client.request(upload["method"], upload["url"], headers=upload["headers"], content=content)


async def _completed(door: Door, content: bytes, **changed: Any) -> httpx.Response:
    asset = await _announce(door, content, **changed)
    assert (await _send(door, asset, content)).status_code == 201
    return await door.client.post(f"/v1/assets/{asset['id']}/complete")


async def _types(door: Door, asset_id: str) -> list[str]:
    history = await door.client.get(f"/v1/assets/{asset_id}/history")
    return [one["type"] for one in history.json()["items"]]


async def test_a_picture_becomes_clean_and_is_served(door: Door) -> None:
    content = picture()
    answer = await _completed(door, content)
    asset = answer.json()
    assert answer.status_code == 200
    assert (asset["status"], asset["width_px"], asset["height_px"]) == ("clean", 96, 64)
    assert answer.headers["ETag"] == '"3"'

    shown = await door.get(f"/v1/assets/{asset['id']}", answer)
    assert shown.json() == asset
    redirected = await door.get(f"/v1/assets/{asset['id']}/content", answer)
    assert redirected.status_code == 302
    served = await door.client.get(redirected.headers["Location"])
    assert served.content == content
    assert served.headers["Content-Disposition"].startswith("attachment")
    assert served.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (picture(kind="JPEG"), "content_type_mismatch"),
        (b"hello, world", "content_type_mismatch"),
        (picture((300, 300))[:400], "image_truncated"),
    ],
)
async def test_a_bad_file_is_quarantined_and_said_so(door: Door, content: bytes, code: str) -> None:
    asset = await _announce(door, content)
    await _send(door, asset, content)
    for _ in range(2):  # The first verdict stands.
        answer = await door.client.post(f"/v1/assets/{asset['id']}/complete")
        assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert (await _types(door, asset["id"]))[-1] == "asset.quarantined"
    await door.caught_up()
    shown = (await door.client.get(f"/v1/assets/{asset['id']}")).json()
    assert (shown["status"], shown["quarantine_code"]) == ("quarantined", code)
    content_answer = await door.client.get(f"/v1/assets/{asset['id']}/content")
    assert (content_answer.status_code, content_answer.json()["code"]) == (409, "asset_not_clean")


async def test_completing_twice_says_nothing_new(door: Door) -> None:
    first = await _completed(door, picture())
    again = await door.client.post(f"/v1/assets/{first.json()['id']}/complete")
    assert again.json() == first.json()
    assert len(await _types(door, first.json()["id"])) == 3


async def test_other_bytes_than_the_uploader_claims(door: Door) -> None:
    content = picture()
    asset = await _announce(door, content)
    await _send(door, asset, content)
    path = f"/v1/assets/{asset['id']}/complete"
    for claimed in ({"sha256": "0" * 64}, {"size_bytes": 1}):
        answer = await door.client.post(path, json=claimed)
        assert (answer.status_code, answer.json()["code"]) == (422, "object_mismatch")
    assert await _types(door, asset["id"]) == ["asset.upload_requested"]
    true = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    assert (await door.client.post(path, json=true)).status_code == 200


async def test_nothing_is_completed_before_it_is_there(door: Door) -> None:
    asset = await _announce(door, picture())
    answer = await door.client.post(f"/v1/assets/{asset['id']}/complete")
    assert (answer.status_code, answer.json()["code"]) == (409, "asset_not_uploaded")
    assert await _types(door, asset["id"]) == ["asset.upload_requested"]


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"content_type": "application/x-sh"}, 415, "unsupported_media_type"),
        ({"size_bytes": 51 * 1024 * 1024}, 413, "payload_too_large"),
        ({"size_bytes": 0}, 422, "empty_file"),
        ({"purpose": "weapon"}, 422, "validation_failed"),
        ({"filename": "a\nb"}, 422, "rule_violated"),
    ],
)
async def test_announcements_that_are_refused(door: Door, changed: dict[str, Any], status: int, code: str) -> None:
    body = {"filename": "a.png", "content_type": "image/png", "size_bytes": 9} | changed
    before = await door.position()
    answer = await door.client.post("/v1/assets", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await door.position() == before


async def test_a_signed_url_does_one_thing(door: Door) -> None:
    content = picture()
    asset = await _announce(door, content)
    upload = asset["upload"]
    assert (await door.client.get(upload["url"])).json()["code"] == "signature_invalid"
    assert (await _send(door, {**asset, "upload": upload | {"url": upload["url"] + "0"}}, content)).status_code == 403
    lying = upload | {"headers": upload["headers"] | {"Content-Type": "text/html"}}
    assert (await _send(door, {**asset, "upload": lying}, content)).status_code == 403
    assert (await _send(door, asset, content[:-1])).json()["code"] == "object_mismatch"
    assert (await _send(door, asset, content + b"x")).json()["code"] == "object_too_large"
    assert (await _send(door, asset, content)).status_code == 201
    assert (await _send(door, asset, content)).json()["code"] == "object_exists"


async def test_deleting_takes_the_bytes_away(door: Door) -> None:
    asset = (await _completed(door, picture())).json()
    answer = await door.client.delete(f"/v1/assets/{asset['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await door.get(f"/v1/assets/{asset['id']}", answer)).status_code == 404
    assert (await door.get(f"/v1/assets/{asset['id']}/content", answer)).status_code == 404
    assert await door.services.objects.stat(f"assets/{asset['id']}") is None
    assert (await door.client.post(f"/v1/assets/{asset['id']}/complete")).status_code == 404


async def test_assets_are_paged(door: Door) -> None:
    made = [(await _announce(door, picture()))["id"] for _ in range(5)]
    await door.caught_up()
    seen: list[str] = []
    url: str | None = "/v1/assets?limit=2"
    while url:
        answer = await door.client.get(url)
        seen += [one["id"] for one in answer.json()["items"]]
        url = answer.links["next"]["url"] if "next" in answer.links else None
        assert (answer.json()["next"] is None) == (url is None)
    assert seen == sorted(seen)
    assert set(made) <= set(seen)
