"""Bytes on their way into and out of a store: counted, bounded, hashed, and cut into blocks of a sensible size."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Literal, ParamSpec, TypeVar

from .port import ObjectInfo, ObjectMismatch, ObjectTooLarge

P = ParamSpec("P")
R = TypeVar("R")

BLOCK_BYTES = 1024 * 1024  # One hop to a thread (about 0.1 ms) a mebibyte is noise; a smaller block would not be.


class Intake:
    """One stream as it comes in.

    Attributes:
        size_bytes: how many bytes have passed.
    """

    def __init__(self, size_bytes_max: int) -> None:
        self.size_bytes = 0
        self._size_bytes_max = size_bytes_max
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def blocks(self, chunks: AsyncIterable[bytes], block_bytes: int = BLOCK_BYTES) -> AsyncGenerator[bytes, None]:
        """The same bytes in blocks of `block_bytes`, only the last one shorter; of an empty stream, none.

        Raises:
            ObjectTooLarge: as soon as the bound is passed, before the block that passes it is handed on.
        """
        buffer = bytearray()
        async for chunk in chunks:
            self.size_bytes += len(chunk)
            if self.size_bytes > self._size_bytes_max:
                raise ObjectTooLarge(f"more than {self._size_bytes_max} bytes")
            buffer += chunk
            while len(buffer) >= block_bytes:
                block = bytes(buffer[:block_bytes])
                del buffer[:block_bytes]
                await asyncio.to_thread(self._hash.update, block)
                yield block
        if buffer:
            self._hash.update(buffer)
            yield bytes(buffer)

    def finish(self, key: str, content_type: str, *, size_bytes: int | None, sha256: str | None) -> ObjectInfo:
        """What came in, once it is all there.

        Raises:
            ObjectMismatch: it is not what was announced.
        """
        if size_bytes is not None and size_bytes != self.size_bytes:
            raise ObjectMismatch(f"{self.size_bytes} bytes came where {size_bytes} were announced")
        if sha256 is not None and sha256 != self.sha256:
            raise ObjectMismatch(f"the content's SHA-256 is {self.sha256}, not {sha256}")
        return ObjectInfo(key=key, size_bytes=self.size_bytes, sha256=self.sha256, content_type=content_type)


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`work` in a thread, awaited to its end even when the caller is cancelled.

    `asyncio.to_thread` alone would return while the thread still writes, and the clean-up would close the file
    under it: its number may by then belong to another object.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # Looked at, or asyncio would report it as forgotten.
        raise


def open_into(held: ExitStack, path: Path, mode: Literal["rb", "wb", "xb"]) -> IO[bytes]:
    """An unbuffered local file that `held` closes.

    To be run by `in_thread`: the file is owned before the thread ends, so a cancellation meanwhile leaks nothing.
    Unbuffered, because closing a buffered one on a full disk tries to write again and fails a second time.
    """
    return held.enter_context(path.open(mode, buffering=0))


def write_all(file: IO[bytes], block: bytes) -> None:
    left = memoryview(block)
    while left:
        left = left[file.write(left) :]


async def file_chunks(path: Path) -> AsyncGenerator[bytes, None]:
    """The content of a local file, a block at a time."""
    with ExitStack() as held:
        file = await in_thread(open_into, held, path, "rb")
        while block := await in_thread(file.read, BLOCK_BYTES):
            yield block


async def write_file(path: Path, chunks: AsyncIterable[bytes]) -> int:
    """Writes `chunks` to `path` and returns how many bytes; on any failure the file is gone."""
    size_bytes = 0
    try:
        with ExitStack() as held:
            file = await in_thread(open_into, held, path, "wb")
            async for chunk in chunks:
                await in_thread(write_all, file, chunk)
                size_bytes += len(chunk)
    except BaseException:
        await in_thread(path.unlink, missing_ok=True)
        raise
    return size_bytes


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
