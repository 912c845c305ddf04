"""Bytes on their way out: nothing that a stranger sent is ever shown, run, or guessed at."""

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.http.door import Door, picture

from sightline.adapters.objects.port import FILENAME_LENGTH_MAX, attachment, safe_filename
from sightline.http.downloads import SERVED_TYPES, UNKNOWN_TYPE, served_type

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def served(door: Door, content: bytes, **changed: Any) -> Any:
    body = {"filename": "a.png", "content_type": "image/png", "size_bytes": len(content)} | changed
    asset = (await door.client.post("/v1/assets", json=body)).json()
    grant = asset["upload"]
    await door.client.request(grant["method"], grant["url"], headers=grant["headers"], content=content)
    answer = await door.client.post(f"/v1/assets/{asset['id']}/complete")
    return await door.get(f"/v1/assets/{asset['id']}/content", answer, follow_redirects=True)


async def test_a_file_goes_out_as_an_attachment_in_a_sandbox(door: Door) -> None:
    answer = await served(door, picture() + b"<script>alert(1)</script>", filename='x".html\u202egnp.png')
    headers = answer.headers
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-Disposition"] == "attachment; filename=\"x_.htmlgnp.png\"; filename*=UTF-8''x_.htmlgnp.png"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in headers["Content-Security-Policy"].split("; ")
    assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "ranges", ["bytes=0-0", "bytes=-1", "bytes=5-2", "bytes=0-,0-,0-", "bytes=" + "0-," * 1000, "lines=1", "bytes=9-"]
)
async def test_a_part_of_a_file_is_the_whole_file(door: Door, ranges: str) -> None:
    content = picture()
    url = str((await served(door, content)).url)
    answer = await door.client.get(url, headers={"Range": ranges})
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["Accept-Ranges"] == "none"
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize("named", ["text/html", "image/svg+xml", "application/pdf", "text/xml", "multipart/mixed", ""])
async def test_types_that_a_browser_would_run_go_out_as_bytes(named: str) -> None:
    assert served_type(named) == UNKNOWN_TYPE


async def test_the_list_holds_nothing_that_is_run() -> None:
    assert not any(word in one for one in SERVED_TYPES for word in ("html", "svg", "xml", "script", "pdf"))
    assert served_type("IMAGE/JPG; charset=x") == "image/jpeg"


# As text may come: any character, separators and controls more often than chance has them.
NAMES = st.text(st.characters() | st.sampled_from('/\\"\r\n\0;%*\u202e. '), max_size=300)


@given(NAMES)
async def test_no_name_leaves_its_header(name: str) -> None:
    header = attachment(name)
    assert header.isascii()
    assert header.isprintable()
    plain, _, extended = header.removeprefix('attachment; filename="').partition("\"; filename*=UTF-8''")
    assert not set(plain) & set('"\\/;%\r\n')
    assert not set(extended) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%")
    assert unquote(extended) == safe_filename(name)


@given(NAMES)
async def test_a_name_is_one_visible_word_of_a_path(name: str) -> None:
    safe = safe_filename(name)
    assert 1 <= len(safe) <= FILENAME_LENGTH_MAX
    assert safe.isprintable()
    assert not set(safe) & set("/\\")
    assert safe.strip(". ") == safe
