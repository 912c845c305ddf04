"""What neither store may do when the world around it fails: half an object, a lost one, a false refusal."""

import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from sightline.adapters.objects import open_object_store
from sightline.adapters.objects.directory import SUFFIX, UNFINISHED, DirectoryStore
from sightline.adapters.objects.port import (
    ObjectDamaged,
    ObjectExists,
    ObjectStore,
    ObjectStoreUnavailable,
)
from sightline.adapters.objects.s3 import S3Store
from sightline.adapters.objects.signing import Secrets, UrlSigner
from sightline.adapters.objects.streams import in_thread
from sightline.adapters.settings import Settings

MEBIBYTE = 1024 * 1024
FUTURE = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects", UrlSigner(Secrets(b"1" * 32), "http://door.test"))


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


async def put(store: ObjectStore, key: str, *content: bytes, **options: Any) -> Any:
    return await store.put(key, pieces(*content), content_type="a/b", size_bytes_max=64 * MEBIBYTE, **options)


# Half of an upload is on the disk when it says so, and then it waits to be killed.
UPLOADER = """
import asyncio, sys
from pathlib import Path
from threading import Event
from sightline.adapters.objects.directory import DirectoryStore
from sightline.adapters.objects.signing import Secrets, UrlSigner

async def half():
    yield bytes(3 * 2**20)
    print("half", flush=True)
    if sys.argv[2] == "finish":
        return
    await asyncio.Event().wait()

store = DirectoryStore(Path(sys.argv[1]), UrlSigner(Secrets(bytes(32)), ""))
asyncio.run(store.put("a/k", half(), content_type="a/b", size_bytes_max=2**30))
"""


class TestDirectory:
    @pytest.mark.parametrize("then", ["kill", "finish"])
    async def test_a_process_killed_mid_upload(self, directory: DirectoryStore, tmp_path: Path, then: str) -> None:
        command = [sys.executable, "-c", UPLOADER, str(tmp_path / "objects"), then]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"half\n"
        if then == "kill":
            process.kill()
        await process.wait()
        found = await directory.stat("a/k")
        assert (found is None) == (then == "kill")  # The control: left alone, the same upload is there.
        assert await directory.sweep_unfinished(FUTURE) == (1 if then == "kill" else 0)

    async def test_a_full_disk(self, directory: DirectoryStore) -> None:
        await put(directory, "before", b"x")
        with file_size_limit(2 * MEBIBYTE):
            with pytest.raises(ObjectStoreUnavailable):
                await put(directory, "k", *[bytes(MEBIBYTE)] * 4)
            await put(directory, "small", b"x")
        assert [entry.key for entry in await directory.list_page()] == ["before", "small"]
        assert await directory.sweep_unfinished(FUTURE) == 0
        await put(directory, "k", *[bytes(MEBIBYTE)] * 4)

    async def test_a_directory_that_cannot_be_one(self, tmp_path: Path) -> None:
        (tmp_path / "objects").write_text("in the way")
        store = DirectoryStore(tmp_path / "objects", UrlSigner(Secrets(b"1" * 32), ""))
        for call in (store.ready(), put(store, "k", b"x")):
            with pytest.raises(ObjectStoreUnavailable):
                await call

    @pytest.mark.parametrize("damage", ["cut", "longer", "emptied", "footer"])
    async def test_bytes_changed_behind_its_back(self, directory: DirectoryStore, tmp_path: Path, damage: str) -> None:
        await put(directory, "k", b"x" * 5000)
        path = tmp_path / "objects" / f"k{SUFFIX}"
        content = path.read_bytes()
        changes = {"cut": content[100:], "longer": b"x" + content, "emptied": b"", "footer": content[:-20]}
        path.write_bytes(changes[damage])
        with pytest.raises(ObjectDamaged):
            await directory.stat("k")
        with pytest.raises(ObjectDamaged):
            async with directory.open("k"):
                pass
        assert [entry.key for entry in await directory.list_page()] == ["k"]
        await directory.delete("k")

    async def test_the_bytes_come_first(self, directory: DirectoryStore, tmp_path: Path) -> None:
        await put(directory, "a/k.png", b"picture")
        assert (tmp_path / "objects" / "a" / f"k.png{SUFFIX}").read_bytes().startswith(b"picture{")

    async def test_deleting_beside_writing_loses_nothing(self, directory: DirectoryStore) -> None:
        """Each delete prunes the directory that the next put needs."""
        for key in ("d/1", "d/2", "d/3"):
            await put(directory, key, b"x")

        async def churn(key: str) -> None:
            for _ in range(100):
                await directory.delete(key)
                await put(directory, key, key.encode())

        await asyncio.gather(*map(churn, ("d/1", "d/2", "d/3")))
        assert [entry.key for entry in await directory.list_page("d/")] == ["d/1", "d/2", "d/3"]

    async def test_deletes_leave_no_empty_directories(self, directory: DirectoryStore, tmp_path: Path) -> None:
        await put(directory, "a/b/c/d", b"x")
        await put(directory, "a/b/e", b"x")
        await directory.delete("a/b/c/d")
        assert sorted(path.name for path in (tmp_path / "objects/a/b").iterdir()) == [f"e{SUFFIX}"]
        await directory.delete_prefix("a/b/")
        assert [path.name for path in (tmp_path / "objects").iterdir()] == [UNFINISHED]

    async def test_of_many_writers_exactly_one_wins(self, directory: DirectoryStore) -> None:
        async def attempt(number: int, if_absent: bool) -> bool:
            try:
                await put(directory, f"k{if_absent}", bytes([number]) * MEBIBYTE, if_absent=if_absent)
            except ObjectExists:
                return False
            return True

        wins = await asyncio.gather(*(attempt(number, if_absent=True) for number in range(24)))
        assert sum(wins) == 1
        assert all(await asyncio.gather(*(attempt(number, if_absent=False) for number in range(24))))  # The control.


class TestS3:
    async def test_a_store_that_is_not_there(self, tmp_path: Path) -> None:
        store = await S3Store.connect(
            endpoint_url="http://127.0.0.1:9",
            region="us-east-1",
            bucket="none",
            access_key_id="a",
            secret_access_key="b",
        )
        started_s = time.monotonic()
        calls = (
            store.ready(),
            put(store, "k", b"x"),
            store.stat("k"),
            store.download("k", tmp_path / "file"),
            store.delete("k"),
            store.list_page(),
            store.presign_put("k", content_type="a/b", size_bytes=1, expires_s=1),
        )
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await store.close()
        assert [type(outcome) for outcome in outcomes] == [ObjectStoreUnavailable] * len(calls)
        assert time.monotonic() - started_s < 60  # a store that hangs would take longer, try after try

    async def test_credentials_that_are_refused(self, swift_s3: Any) -> None:
        async with connected(swift_s3, secret_access_key="not this one") as store:
            with pytest.raises(ObjectStoreUnavailable):
                await store.ready()

    @pytest.mark.parametrize(
        ("size_bytes", "last_request"), [(10, b"PUT "), (9 * MEBIBYTE, b"POST ")], ids=["whole", "in parts"]
    )
    async def test_a_lost_answer_is_not_a_conflict(self, swift_s3: Any, size_bytes: int, last_request: bytes) -> None:
        """The write is done, its answer is lost, the client sends it again: what is there is ours."""
        async with cutting_proxy(swift_s3.endpoint_url) as proxy, connected(swift_s3, proxy.url) as store:
            await store.ready()
            proxy.lose_answer_to = last_request
            info = await put(store, "k", b"x" * size_bytes)
            assert proxy.answers_lost == 1
            assert await store.stat("k") is not None
            assert info.size_bytes == size_bytes
            with pytest.raises(ObjectExists):  # The control: another's object is a conflict.
                await put(store, "k", b"y")

    async def test_a_download_that_is_cut_leaves_no_file(self, swift_s3: Any, tmp_path: Path) -> None:
        async with cutting_proxy(swift_s3.endpoint_url) as proxy, connected(swift_s3, proxy.url) as store:
            await put(store, "k", bytes(4 * MEBIBYTE))
            proxy.answer_bytes_max = MEBIBYTE
            with pytest.raises(ObjectStoreUnavailable):
                await store.download("k", tmp_path / "file")
            assert not (tmp_path / "file").exists()
            proxy.answer_bytes_max = None
            assert await store.download("k", tmp_path / "file") == 4 * MEBIBYTE


async def test_cancelled_file_work_has_ended_when_the_clean_up_begins() -> None:
    running, may_end, ended = Event(), Event(), Event()

    def work() -> None:
        running.set()
        may_end.wait(timeout=60)
        ended.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(running.wait, 60)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.05)
    assert not done
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_the_settings_choose(tmp_path: Path) -> None:
    stores = [
        await open_object_store(Settings(data_dir=tmp_path)),
        await open_object_store(Settings(s3_endpoint_url="http://127.0.0.1:9")),
    ]
    assert [type(store) for store in stores] == [DirectoryStore, S3Store]
    for store in stores:
        await store.close()


@asynccontextmanager
async def connected(swift: Any, endpoint_url: str = "", secret_access_key: str = "") -> AsyncIterator[S3Store]:
    store = await S3Store.connect(
        endpoint_url=endpoint_url or swift.endpoint_url,
        region=swift.region,
        bucket=f"test-{uuid4().hex}",
        access_key_id=swift.access_key_id,
        secret_access_key=secret_access_key or swift.secret_access_key,
    )
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """A write beyond the limit fails as on a full disk, with an OSError half-way through."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class CuttingProxy:
    """A network between the client and Swift that fails on demand.

    Attributes:
        lose_answer_to: how a request begins whose whole answer is to be lost, once.
        answer_bytes_max: a connection ends when so much has come back on it.
    """

    def __init__(self, upstream_url: str) -> None:
        self.url = ""
        self.lose_answer_to: bytes | None = None
        self.answers_lost = 0
        self.answer_bytes_max: int | None = None
        self._upstream_port = int(upstream_url.rpartition(":")[2])
        self.connections: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.append(task)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        losing = asyncio.Event()
        pumps = [
            asyncio.create_task(self._requests(reader, up_writer, losing)),
            asyncio.create_task(self._answers(up_reader, writer, losing)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for one in (writer, up_writer):
            one.transport.abort()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while sent := await reader.read(65_536):
            # The request that begins a multipart upload is a POST too; its query is `?uploads`.
            if self.lose_answer_to and sent.startswith(self.lose_answer_to) and b"?uploads" not in sent:
                self.lose_answer_to = None
                losing.set()
            writer.write(sent)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        lost, answered_bytes = b"", 0
        while answer := await reader.read(65_536):
            if losing.is_set() and not answer.startswith(b"HTTP/1.1 100"):
                lost += answer
                if lost.endswith(b"0\r\n\r\n" if b"chunked" in lost else b"\r\n\r\n"):
                    self.answers_lost += 1
                    return
                continue
            answered_bytes += len(answer)
            if self.answer_bytes_max is not None and answered_bytes > self.answer_bytes_max:
                return
            writer.write(answer)
            await writer.drain()


@asynccontextmanager
async def cutting_proxy(upstream_url: str) -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy(upstream_url)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield proxy
        finally:
            async with asyncio.timeout(60):
                await asyncio.gather(*proxy.connections)
