"""The object store of the embedded default: one directory, one file per object.

A file is the object's bytes followed by a footer: JSON (content type, SHA-256, size), its length, a magic word.
So bytes and description appear with one link, go with one unlink, and cannot drift apart as a sidecar would after
a crash between two files; extended attributes would do as well, but not every file system has them. The bytes come
first, which keeps ranges plain and lets `file` and image viewers open most objects where they lie.

Names end in `+`, a character that no key has: the keys `a` and `a/b` may both exist, as on S3, and nothing that a
caller names meets the store's own `+unfinished`.
"""

import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import IO, ParamSpec, TypeVar
from uuid import uuid4

from ..keyfiles import sync_directory
from .footer import footer_at, read_footer, seal
from .port import (
    PAGE_LENGTH_MAX,
    ObjectDamaged,
    ObjectEntry,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    ObjectStoreUnavailable,
    SignedRequest,
    checked_content_type,
    checked_expiry_s,
    checked_key,
    checked_prefix,
    checked_span,
)
from .signing import SignedGrant, UrlSigner
from .streams import BLOCK_BYTES, Intake, file_chunks, in_thread, open_into, write_all, write_file

P = ParamSpec("P")
R = TypeVar("R")

SUFFIX = "+"
UNFINISHED = "+unfinished"
PUBLISH_ATTEMPTS_MAX = 10  # Each lost attempt means that a delete pruned the new directory in that instant.


def _now() -> datetime:
    return datetime.now(UTC)


class DirectoryStore(ObjectStore):
    """Objects under `root`, on one file system with hard links. Many processes may use it at once."""

    def __init__(self, root: Path, signer: UrlSigner, clock: Callable[[], datetime] = _now) -> None:
        self.signer = signer
        self._root = root
        self._unfinished = root / UNFINISHED
        self._clock = clock

    async def put(
        self,
        key: str,
        chunks: AsyncIterable[bytes],
        *,
        content_type: str,
        size_bytes_max: int,
        if_absent: bool = True,
        size_bytes: int | None = None,
        sha256: str | None = None,
    ) -> ObjectInfo:
        target = self._path(key)
        checked_content_type(content_type)
        if if_absent and await _io(key, target.exists):
            raise ObjectExists(key)  # Known before the body is read; the link below decides.
        intake = Intake(size_bytes_max)
        temporary = self._unfinished / uuid4().hex
        await _io(key, self._prepare)
        try:
            async with aclosing(intake.blocks(chunks)) as blocks:
                with ExitStack() as held:
                    file = await _io(key, open_into, held, temporary, "xb")
                    async for block in blocks:
                        await _io(key, write_all, file, block)
                    info = intake.finish(key, content_type, size_bytes=size_bytes, sha256=sha256)
                    await _io(key, seal, file, info)
            await _io(key, self._publish, temporary, target, if_absent)
        finally:
            await _io(key, temporary.unlink, missing_ok=True)
        return info

    async def accept(self, grant: SignedGrant, chunks: AsyncIterable[bytes]) -> ObjectInfo:
        """Stores the body of a request that `signer.verify` let through, holding it to its word.

        Raises:
            ValueError: the grant is not one to write.
            ObjectExists, ObjectTooLarge, ObjectMismatch: as `put`.
        """
        if grant.method != "PUT" or grant.content_type is None or grant.size_bytes is None:
            raise ValueError(f"a grant to {grant.method} is not one to write")
        return await self.put(
            grant.key,
            chunks,
            content_type=grant.content_type,
            size_bytes_max=grant.size_bytes,
            size_bytes=grant.size_bytes,
            sha256=grant.sha256,
        )

    async def put_file(self, key: str, path: Path, *, content_type: str, if_absent: bool = True) -> ObjectInfo:
        size_bytes = (await in_thread(path.stat)).st_size
        async with aclosing(file_chunks(path)) as chunks:
            return await self.put(
                key,
                chunks,
                content_type=content_type,
                size_bytes_max=size_bytes,
                size_bytes=size_bytes,
                if_absent=if_absent,
            )

    @asynccontextmanager
    async def open(
        self, key: str, *, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        path = self._path(key)
        checked_span(offset_bytes, length_bytes)
        with ExitStack() as held:
            file = await _find(key, open_into, held, path, "rb")
            footer = await _io(key, read_footer, file)
            left_bytes = max(0, footer.size_bytes - offset_bytes)
            await _io(key, file.seek, offset_bytes)
            chunks = _read(key, file, left_bytes if length_bytes is None else min(left_bytes, length_bytes))
            async with aclosing(chunks):
                yield chunks

    async def download(self, key: str, path: Path) -> int:
        async with self.open(key) as chunks:
            return await write_file(path, chunks)

    async def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            footer = await _find(key, footer_at, path)
        except ObjectMissing:
            return None
        return ObjectInfo(key=key, size_bytes=footer.size_bytes, sha256=footer.sha256, content_type=footer.content_type)

    async def delete(self, key: str) -> None:
        await _io(key, self._remove, self._path(key))

    async def delete_prefix(self, prefix: str) -> None:
        if not checked_prefix(prefix):
            raise ValueError("an empty prefix would delete the whole store")
        await _io(prefix, self._remove_tree, self._root / prefix)

    async def list_page(
        self, prefix: str = "", *, after: str = "", limit: int = PAGE_LENGTH_MAX
    ) -> Sequence[ObjectEntry]:
        checked_prefix(prefix)
        bounded = max(1, min(limit, PAGE_LENGTH_MAX))
        return await _io(prefix, lambda: list(islice(_walk(self._root / prefix, prefix, after), bounded)))

    async def presign_put(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int, sha256: str | None = None
    ) -> SignedRequest:
        expires_at = self._clock() + timedelta(seconds=checked_expiry_s(expires_s))
        return self.signer.put_request(
            key,
            content_type=checked_content_type(content_type),
            size_bytes=size_bytes,
            sha256=sha256,
            expires_at=expires_at,
        )

    async def presign_get(self, key: str, *, filename: str, content_type: str | None = None, expires_s: int) -> str:
        expires_at = self._clock() + timedelta(seconds=checked_expiry_s(expires_s))
        if content_type is not None:
            checked_content_type(content_type)
        return self.signer.get_url(key, filename=filename, content_type=content_type, expires_at=expires_at)

    async def sweep_unfinished(self, before: datetime) -> int:
        return await _io(UNFINISHED, self._sweep, before.timestamp())

    async def ready(self) -> None:
        await _io("ready", self._probe)

    async def close(self) -> None:
        """Nothing is held between calls."""

    def _path(self, key: str) -> Path:
        return self._root / (checked_key(key) + SUFFIX)

    def _prepare(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._unfinished.mkdir(exist_ok=True, mode=0o700)

    def _publish(self, temporary: Path, target: Path, if_absent: bool) -> None:
        for _ in range(PUBLISH_ATTEMPTS_MAX):
            # A delete may prune the directory just before either line; mkdir then says that it exists, or does not.
            with suppress(FileNotFoundError, FileExistsError):
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                if if_absent:
                    os.link(temporary, target)  # Unlike a rename it refuses an existing name: one writer wins.
                else:
                    temporary.replace(target)
            except FileNotFoundError:
                continue
            except FileExistsError as error:
                raise ObjectExists(target.name) from error
            break
        else:
            raise ObjectStoreUnavailable(f"{target.parent} vanished {PUBLISH_ATTEMPTS_MAX} times")
        self._sync_upwards(target.parent)

    def _sync_upwards(self, directory: Path) -> None:
        """Every level, since any of them may be new; a level that somebody pruned meanwhile holds nothing."""
        for level in (directory, *directory.parents):
            with suppress(FileNotFoundError):
                sync_directory(level)
            if level == self._root.parent:
                break

    def _remove(self, target: Path) -> None:
        with suppress(FileNotFoundError):
            target.unlink()
            self._prune(target.parent)

    def _remove_tree(self, directory: Path) -> None:
        """Everything under `directory` disappears at once, by a rename; then its bytes are freed."""
        doomed = self._unfinished / uuid4().hex
        self._prepare()
        with suppress(FileNotFoundError):
            directory.rename(doomed)
            self._prune(directory.parent)
            shutil.rmtree(doomed)

    def _prune(self, directory: Path) -> None:
        """Removes directories that are empty now, and makes the removal durable."""
        while directory != self._root:
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                break
            directory = directory.parent
        self._sync_upwards(directory)

    def _sweep(self, before_s: float) -> int:
        swept = 0
        for path in self._unfinished.iterdir() if self._unfinished.exists() else ():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before_s:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    swept += 1
        return swept

    def _probe(self) -> None:
        self._prepare()
        path = self._unfinished / uuid4().hex
        try:
            path.write_bytes(b"ready?")
        finally:
            path.unlink(missing_ok=True)


async def _io(key: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """File work in a thread, its errors in the port's words. Only our own: what a caller's stream raises is theirs."""
    try:
        return await in_thread(work, *args, **kwargs)
    except OSError as error:
        raise ObjectStoreUnavailable(f"{key}: {error}") from error


async def _find(key: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The same where a missing file means a missing object."""
    try:
        return await _io(key, work, *args, **kwargs)
    except ObjectStoreUnavailable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ObjectMissing(key) from error
        raise


async def _read(key: str, file: IO[bytes], left_bytes: int) -> AsyncGenerator[bytes, None]:
    while left_bytes:
        block = await _io(key, file.read, min(left_bytes, BLOCK_BYTES))
        if not block:
            raise ObjectDamaged(f"{key} ends {left_bytes} bytes early")
        left_bytes -= len(block)
        yield block


def _walk(directory: Path, prefix: str, after: str) -> Iterator[ObjectEntry]:
    """Objects under `directory` in the order of their keys: a subdirectory sorts as its name and a slash."""
    names = []
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                names.append(entry.name.removesuffix(SUFFIX))
            elif entry.is_dir() and entry.name != UNFINISHED:
                names.append(f"{entry.name}/")
    for name in sorted(names):
        key = prefix + name
        if name.endswith("/"):
            if key > after or after.startswith(key):
                yield from _walk(directory / name, key, after)
        elif key > after:
            with suppress(FileNotFoundError):  # Deleted since the directory was read.
                yield _entry(directory / (name + SUFFIX), key)


def _entry(path: Path, key: str) -> ObjectEntry:
    stat = path.stat()
    try:
        size_bytes = footer_at(path).size_bytes
    except ObjectDamaged:
        size_bytes = stat.st_size  # The janitor must see it to remove it.
    return ObjectEntry(key=key, size_bytes=size_bytes, modified_at=datetime.fromtimestamp(stat.st_mtime, UTC))
