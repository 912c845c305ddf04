"""One suite for both object stores: a directory, and S3 as a real Swift serves it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from litestar import Litestar, Request, Response, get, put
from litestar.params import FromPath
from litestar.response import Stream

from sightline.adapters.objects import open_object_store
from sightline.adapters.objects.directory import DirectoryStore
from sightline.adapters.objects.port import (
    InvalidKey,
    ObjectExists,
    ObjectMismatch,
    ObjectMissing,
    ObjectStore,
    ObjectStoreError,
    ObjectTooLarge,
    SignedRequest,
    attachment,
    checked_content_type,
    checked_key,
    checked_prefix,
)
from sightline.adapters.objects.s3 import PART_BYTES, S3Store
from sightline.adapters.objects.signing import SignatureRefused
from sightline.adapters.settings import Settings

MEBIBYTE = 1024 * 1024
LARGE = Random(7).randbytes(12 * MEBIBYTE)
PICTURE = Random(8).randbytes(70_001)
FUTURE = datetime.now(UTC) + timedelta(days=1)
PAST = FUTURE - timedelta(days=2)

SIZES = {"nothing": b"", "one byte": b"x", "small": PICTURE, "exactly one part": LARGE[:PART_BYTES], "12 MiB": LARGE}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["directory", "swift"])
async def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ObjectStore]:
    """The store as a process opens it, once: making an S3 client takes a fifth of a second."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), base_url="http://door.test")
    if request.param == "swift":
        swift = request.getfixturevalue("swift_s3")
        settings = Settings(
            s3_endpoint_url=swift.endpoint_url,
            s3_access_key_id=swift.access_key_id,
            s3_secret_access_key=swift.secret_access_key,
        )
    store = await open_object_store(settings)
    yield store
    await store.close()


@pytest.fixture
def store(opened: ObjectStore, tmp_path: Path) -> ObjectStore:
    """The same, on a place of its own that does not exist yet."""
    if isinstance(opened, DirectoryStore):
        return DirectoryStore(tmp_path / "objects", opened.signer)
    assert isinstance(opened, S3Store)
    return S3Store(opened._client, AsyncExitStack(), bucket=f"test-{uuid4().hex}", region="us-east-1")


@pytest_asyncio.fixture(loop_scope="module")
async def door(store: ObjectStore) -> AsyncIterator[httpx.AsyncClient]:
    """Takes signed URLs: Swift itself, or a few routes before the directory store."""
    app: Any = _app(store) if isinstance(store, DirectoryStore) else None  # Any: httpx types ASGI its own way.
    transport = httpx.ASGITransport(app=app) if app else None
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        yield client


def _app(store: DirectoryStore) -> Litestar:
    def grant(request: Request[Any, Any, Any], key: str) -> Any:
        query, now = request.url.query, datetime.now(UTC)
        return store.signer.verify(request.method, key.removeprefix("/"), query, request.headers, now)

    @put("/objects/{key:path}", request_max_body_size=None)
    async def upload(request: Request[Any, Any, Any], key: FromPath[str]) -> None:
        await store.accept(grant(request, key), request.stream())

    @get("/objects/{key:path}")
    async def download(request: Request[Any, Any, Any], key: FromPath[str]) -> Stream:
        granted = grant(request, key)

        async def body() -> AsyncIterator[bytes]:
            async with store.open(granted.key) as chunks:
                async for chunk in chunks:
                    yield chunk

        headers = {"Content-Disposition": attachment(granted.filename), "X-Content-Type-Options": "nosniff"}
        return Stream(body(), media_type=granted.content_type, headers=headers)

    def refused(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
        return Response(error.code, status_code=403 if isinstance(error, SignatureRefused) else 400)  # type: ignore[attr-defined]  # both kinds have one

    return Litestar([upload, download], exception_handlers={SignatureRefused: refused, ObjectStoreError: refused})


async def pieces(content: bytes, piece_bytes: int = 60_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), piece_bytes):
        yield content[start : start + piece_bytes]


async def put_bytes(store: ObjectStore, key: str, content: bytes, **options: Any) -> Any:
    arguments: dict[str, Any] = {"content_type": "image/png", "size_bytes_max": 64 * MEBIBYTE, **options}
    return await store.put(key, pieces(content), **arguments)


async def read(store: ObjectStore, key: str, **span: int) -> bytes:
    async with store.open(key, **span) as chunks:
        return b"".join([chunk async for chunk in chunks])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def nothing_is_left(store: ObjectStore, key: str) -> bool:
    """No object, and no bytes of an unfinished upload: a sweep of everything begun until tomorrow finds none."""
    return await store.stat(key) is None and await store.sweep_unfinished(FUTURE) == 0


class TestPut:
    @pytest.mark.parametrize("name", SIZES)
    async def test_what_went_in_comes_out(self, store: ObjectStore, name: str) -> None:
        content = SIZES[name]
        info = await put_bytes(store, "assets/1/photo.png", content)
        assert (info.key, info.size_bytes, info.sha256) == ("assets/1/photo.png", len(content), sha256(content))
        assert await read(store, "assets/1/photo.png") == content
        stat = await store.stat("assets/1/photo.png")
        assert stat is not None
        assert (stat.size_bytes, stat.content_type) == (len(content), "image/png")
        assert stat.sha256 in {info.sha256} | ({None} if len(content) >= PART_BYTES else set())

    async def test_a_local_file_has_its_digest_however_large(self, store: ObjectStore, tmp_path: Path) -> None:
        (tmp_path / "large.bin").write_bytes(LARGE)
        info = await store.put_file("models/large", tmp_path / "large.bin", content_type="application/onnx")
        assert info == await store.stat("models/large")
        assert info.sha256 == sha256(LARGE)
        assert await store.download("models/large", tmp_path / "copy") == len(LARGE)
        assert (tmp_path / "copy").read_bytes() == LARGE

    @pytest.mark.parametrize("content", [PICTURE, LARGE], ids=["small", "large"])
    async def test_a_second_object_under_the_same_key_is_refused(self, store: ObjectStore, content: bytes) -> None:
        await put_bytes(store, "k", PICTURE)
        with pytest.raises(ObjectExists):
            await put_bytes(store, "k", content)
        assert await read(store, "k") == PICTURE
        await put_bytes(store, "k", content[1:], if_absent=False)
        assert await read(store, "k") == content[1:]
        assert await store.sweep_unfinished(FUTURE) == 0

    async def test_of_concurrent_writers_one_wins(self, store: ObjectStore) -> None:
        contents = [bytes([number]) * 3 * MEBIBYTE for number in range(6)]
        outcomes = await asyncio.gather(*(put_bytes(store, "k", each) for each in contents), return_exceptions=True)
        winners = [content for content, outcome in zip(contents, outcomes, strict=True) if not _lost(outcome)]
        # Swift looks at If-None-Match when a write begins, so writers at the same instant all pass; see `put`.
        assert len(winners) == 1 if isinstance(store, DirectoryStore) else winners
        assert await read(store, "k") in winners

    @pytest.mark.parametrize("content", [PICTURE, LARGE], ids=["small", "large"])
    async def test_one_byte_too_many_leaves_nothing(self, store: ObjectStore, content: bytes) -> None:
        with pytest.raises(ObjectTooLarge):
            await put_bytes(store, "k", content, size_bytes_max=len(content) - 1)
        assert await nothing_is_left(store, "k")
        await put_bytes(store, "k", content, size_bytes_max=len(content))

    @pytest.mark.parametrize("content", [PICTURE, LARGE], ids=["small", "large"])
    @pytest.mark.parametrize("announced", [{"size_bytes": 5}, {"sha256": sha256(b"other")}], ids=["size", "sha256"])
    async def test_other_bytes_than_announced_leave_nothing(
        self, store: ObjectStore, content: bytes, announced: dict[str, Any]
    ) -> None:
        with pytest.raises(ObjectMismatch):
            await put_bytes(store, "k", content, **announced)
        assert await nothing_is_left(store, "k")
        await put_bytes(store, "k", content, size_bytes=len(content), sha256=sha256(content))
        stat = await store.stat("k")
        assert stat is not None
        assert stat.sha256 == sha256(content)

    @pytest.mark.parametrize("sent_bytes", [10, 9 * MEBIBYTE])
    async def test_a_cut_leaves_nothing_and_its_error_passes_through(self, store: ObjectStore, sent_bytes: int) -> None:
        async def cut() -> AsyncIterator[bytes]:
            yield LARGE[:sent_bytes]
            raise ConnectionResetError("the client is gone")

        with pytest.raises(ConnectionResetError, match="the client is gone"):
            await store.put("k", cut(), content_type="image/png", size_bytes_max=64 * MEBIBYTE)
        assert await nothing_is_left(store, "k")

    @pytest.mark.parametrize("sent_bytes", [10, 9 * MEBIBYTE])
    async def test_a_cancelled_upload_leaves_nothing(self, store: ObjectStore, sent_bytes: int) -> None:
        waiting = asyncio.Event()

        async def stalls() -> AsyncIterator[bytes]:
            yield LARGE[:sent_bytes]
            waiting.set()
            await asyncio.Event().wait()

        upload = asyncio.create_task(store.put("k", stalls(), content_type="a/b", size_bytes_max=64 * MEBIBYTE))
        await waiting.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        assert await nothing_is_left(store, "k")


class TestRead:
    async def test_ranges(self, store: ObjectStore) -> None:
        await put_bytes(store, "k", PICTURE)
        assert await read(store, "k", offset_bytes=10) == PICTURE[10:]
        assert await read(store, "k", offset_bytes=10, length_bytes=5) == PICTURE[10:15]
        assert await read(store, "k", offset_bytes=70_000, length_bytes=500) == PICTURE[70_000:]
        assert await read(store, "k", offset_bytes=70_001) == b""
        for span in ({"offset_bytes": -1}, {"length_bytes": 0}):
            with pytest.raises(ValueError):
                await read(store, "k", **span)

    async def test_leaving_early_leaks_nothing(self, store: ObjectStore) -> None:
        await put_bytes(store, "k", LARGE)
        async with store.open("k") as chunks:
            assert LARGE.startswith(await anext(chunks))  # What leaks is a warning, and a warning is an error.

    async def test_an_absent_object(self, store: ObjectStore, tmp_path: Path) -> None:
        await store.ready()
        assert await store.stat("no/such") is None
        with pytest.raises(ObjectMissing):
            await read(store, "no/such")
        with pytest.raises(ObjectMissing):
            await store.download("no/such", tmp_path / "file")
        assert not (tmp_path / "file").exists()


class TestDelete:
    async def test_twice_is_once(self, store: ObjectStore) -> None:
        await put_bytes(store, "a/b", PICTURE)
        await put_bytes(store, "a/c", PICTURE)
        await store.delete("a/b")
        await store.delete("a/b")
        await store.delete("never/was")
        assert await store.stat("a/b") is None
        assert await read(store, "a/c") == PICTURE
        await put_bytes(store, "a/b", b"again")

    async def test_a_prefix_and_nothing_beside_it(self, store: ObjectStore) -> None:
        for key in ("jobs/1/a", "jobs/1/b/c", "jobs/12/a", "jobs/1", "jobs/1.x"):
            await put_bytes(store, key, b"x")
        await store.delete_prefix("jobs/1/")
        await store.delete_prefix("jobs/1/")
        assert [entry.key for entry in await store.list_page()] == ["jobs/1", "jobs/1.x", "jobs/12/a"]
        for refused in ("", "jobs/1", "/", "../"):
            with pytest.raises(ValueError):
                await store.delete_prefix(refused)


class TestList:
    async def test_pages_in_key_order_with_times(self, store: ObjectStore) -> None:
        # `-` and `.` sort before the slash, digits and letters after it: a walk by directory would get this wrong.
        keys = ["a", "a-b", "a.b/x", "a/b", "a/b/c", "a/c", "a0", "b/a", "b/a.png"]
        await asyncio.gather(*(put_bytes(store, key, key.encode()) for key in keys))
        whole = await store.list_page()
        assert [entry.key for entry in whole] == keys
        assert [entry.size_bytes for entry in whole] == [len(key) for key in keys]
        assert all(abs(datetime.now(UTC) - entry.modified_at) < timedelta(seconds=60) for entry in whole)
        assert [entry.key for entry in await store.list_page("a/")] == ["a/b", "a/b/c", "a/c"]
        paged: list[str] = []
        while page := await store.list_page(after=paged[-1] if paged else "", limit=2):
            assert len(page) <= 2
            paged += [entry.key for entry in page]
        assert paged == keys

    async def test_an_empty_store(self, store: ObjectStore) -> None:
        assert list(await store.list_page()) == []
        assert list(await store.list_page("no/such/")) == []


async def test_ready(store: ObjectStore) -> None:
    await store.ready()
    await store.ready()


async def test_a_sweep_spares_the_young_and_takes_the_old(store: ObjectStore) -> None:
    """The control of every `nothing_is_left` above: while an upload runs, the sweep does see it."""
    seen: list[int] = []

    async def watched() -> AsyncIterator[bytes]:
        yield LARGE[: 9 * MEBIBYTE]
        seen.append(await store.sweep_unfinished(PAST))
        seen.append(await store.sweep_unfinished(FUTURE))
        yield LARGE[9 * MEBIBYTE :]

    with pytest.raises(ObjectStoreError):
        await store.put("k", watched(), content_type="a/b", size_bytes_max=64 * MEBIBYTE)
    assert seen == [0, 1]
    assert await nothing_is_left(store, "k")


BAD_KEYS = ["", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\0b", "a b", "ü", "a\n", "a+", "a%2fb", "a\\b"]


@pytest.mark.parametrize("key", [*BAD_KEYS, "x" * 201, "/".join(["x" * 100] * 6)], ids=repr)
async def test_a_key_that_is_none_is_refused_everywhere(store: ObjectStore, key: str) -> None:
    """No call gets as far as the store: the S3 one would otherwise answer from Swift."""
    calls: Iterator[Any] = iter(
        (
            put_bytes(store, key, b"x"),
            read(store, key),
            store.stat(key),
            store.delete(key),
            store.presign_put(key, content_type="a/b", size_bytes=1, expires_s=60),
            store.presign_get(key, filename="x", expires_s=60),
        )
    )
    for call in calls:
        with pytest.raises(InvalidKey):
            await call


async def test_good_keys_prefixes_and_types() -> None:
    for key in ("a", "a/b.c-d_E", ".hidden/..x", "x" * 200, "/".join(["x" * 102] * 5)[:512]):
        assert checked_key(key) == key
    assert [checked_prefix(prefix) for prefix in ("", "a/", "a/b/")] == ["", "a/", "a/b/"]
    assert checked_content_type("text/plain; charset=utf-8") == "text/plain; charset=utf-8"
    for bad in ("", "png", "a/b\r\nX: y", "a/b, c/d", "a/" + "b" * 300):
        with pytest.raises(InvalidKey):
            checked_content_type(bad)


async def test_the_name_of_an_attachment_cannot_leave_its_header() -> None:
    assert attachment("a b.png") == "attachment; filename=\"a b.png\"; filename*=UTF-8''a%20b.png"
    assert attachment('x"\r\nSet-Cookie: y') == (
        "attachment; filename=\"x_Set-Cookie_ y\"; filename*=UTF-8''x%22Set-Cookie%3A%20y"
    )
    assert attachment("../../etc/paß\ud800") == "attachment; filename=\"pa_\"; filename*=UTF-8''pa%C3%9F"
    assert attachment("..\\\0") == "attachment; filename=\"download\"; filename*=UTF-8''download"


class TestSignedUpload:
    async def signed(self, store: ObjectStore, **options: Any) -> SignedRequest:
        arguments: dict[str, Any] = {
            "content_type": "image/png",
            "size_bytes": len(PICTURE),
            "expires_s": 60,
            **options,
        }
        return await store.presign_put("up/photo.png", **arguments)

    @pytest.mark.parametrize("digest", [None, sha256(PICTURE)], ids=["no digest", "digest"])
    async def test_once_and_never_again(self, store: ObjectStore, door: httpx.AsyncClient, digest: str | None) -> None:
        signed = await self.signed(store, sha256=digest)
        first = await door.request(signed.method, signed.url, headers=signed.headers, content=PICTURE)
        assert first.is_success, first.text
        stat = await store.stat("up/photo.png")
        assert stat is not None
        assert (stat.size_bytes, stat.content_type) == (len(PICTURE), "image/png")
        assert digest is None or stat.sha256 == digest
        second = await door.request(signed.method, signed.url, headers=signed.headers, content=PICTURE)
        assert second.is_client_error
        assert await read(store, "up/photo.png") == PICTURE

    @pytest.mark.parametrize("change", ["longer", "shorter", "other type", "overwrite", "no digest", "other bytes"])
    async def test_anything_else_than_what_was_signed(
        self, store: ObjectStore, door: httpx.AsyncClient, change: str
    ) -> None:
        signed = await self.signed(store, sha256=sha256(PICTURE))
        headers, content = {name.lower(): value for name, value in signed.headers.items()}, PICTURE
        match change:
            case "longer":
                content, headers["content-length"] = PICTURE + b"x", str(len(PICTURE) + 1)
            case "shorter":
                content, headers["content-length"] = PICTURE[1:], str(len(PICTURE) - 1)
            case "other type":
                headers["content-type"] = "text/html"
            case "overwrite":
                del headers["if-none-match"]
            case "no digest":
                headers = {name: value for name, value in headers.items() if "digest" not in name and "sha" not in name}
            case "other bytes":
                content = bytes(len(PICTURE))
        answer = await door.put(signed.url, headers=headers, content=content)
        assert answer.is_client_error
        assert await nothing_is_left(store, "up/photo.png")

    async def test_another_key_method_or_signature(self, store: ObjectStore, door: httpx.AsyncClient) -> None:
        signed = await self.signed(store)
        last = signed.url[-1]
        for url in (
            signed.url.replace("up/photo.png", "up/other.png"),
            signed.url[:-1] + ("0" if last != "0" else "1"),
            signed.url.replace("xpires=", "xpires=9"),
            signed.url.partition("?")[0],
        ):
            answer = await door.put(url, headers=signed.headers, content=PICTURE)
            assert answer.is_client_error, url
        assert (await door.get(signed.url)).is_client_error
        assert list(await store.list_page()) == []

    async def test_bounds_of_its_life(self, store: ObjectStore) -> None:
        for expires_s in (0, 7 * 24 * 3600 + 1):
            with pytest.raises(ValueError):
                await self.signed(store, expires_s=expires_s)

    async def test_it_ends(self, store: ObjectStore, door: httpx.AsyncClient) -> None:
        await put_bytes(store, "k", b"x")
        url = await store.presign_get("k", filename="x", expires_s=1)
        assert (await door.get(url)).is_success
        for _ in range(100):
            if (await door.get(url)).status_code == 403:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("a URL of one second still works after ten")


class TestSignedDownload:
    async def test_an_attachment(self, store: ObjectStore, door: httpx.AsyncClient) -> None:
        await put_bytes(store, "k", PICTURE, content_type="text/html")
        url = await store.presign_get("k", filename="Bär.png", content_type="application/octet-stream", expires_s=60)
        answer = await door.get(url)
        assert answer.content == PICTURE
        assert (
            answer.headers["content-disposition"] == "attachment; filename=\"B_r.png\"; filename*=UTF-8''B%C3%A4r.png"
        )
        assert answer.headers["content-type"] == "application/octet-stream"

    async def test_changed_it_is_worth_nothing(self, store: ObjectStore, door: httpx.AsyncClient) -> None:
        await put_bytes(store, "k", PICTURE)
        await put_bytes(store, "secret", PICTURE)
        url = await store.presign_get("k", filename="x.png", expires_s=60)
        for changed in (url.replace("/k?", "/secret?"), url.replace("x.png", "x.html"), url.partition("?")[0]):
            assert (await door.get(changed)).status_code in {400, 403}
        assert (await door.put(url, content=b"x")).status_code == 403
        assert await read(store, "k") == PICTURE


def _lost(outcome: object) -> bool:
    if isinstance(outcome, BaseException) and not isinstance(outcome, ObjectExists):
        raise outcome
    return isinstance(outcome, ObjectExists)
