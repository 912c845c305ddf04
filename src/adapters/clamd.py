"""Asking a ClamAV daemon about a file, over its Unix socket (INSTREAM of clamd(8)). It gets the bytes, never a path.

Who configured one wants every file looked at: no answer, an odd one or a late one is an error, and never a pass.
"""

import asyncio
from contextlib import aclosing, suppress
from pathlib import Path

from .objects.streams import file_chunks

CONNECT_S_MAX = 2.0
TIMEOUT_S = 60.0  # for all of one file; the daemon has bounds of its own (MaxScanTime)
ANSWER_BYTES_MAX = 4096
SIGNATURE_CHARS_MAX = 200
FOUND, CLEAN = " FOUND", "stream: OK"


class ScannerUnavailable(OSError):
    """The daemon was not there, was late, or said what cannot be taken for a verdict."""


class Clamd:
    """A daemon behind a socket. One connection a file, as its protocol has it; callers bound how many at once.

    Args:
        socket_path: as LocalSocket of clamd.conf.
        timeout_s: for one file, from the first byte to the verdict.
    """

    def __init__(self, socket_path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._socket_path = socket_path
        self._timeout_s = timeout_s

    async def scan(self, path: Path) -> str:
        """The name of what it found in the file, or "".

        Raises:
            ScannerUnavailable: there is no verdict.
            OSError: the file cannot be read.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._asked(path)
        except TimeoutError as error:
            raise ScannerUnavailable(f"clamd gave no verdict within {self._timeout_s:g} s") from error
        return _verdict(answer)

    async def _asked(self, path: Path) -> bytes:
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                reader, writer = await asyncio.open_unix_connection(self._socket_path, limit=ANSWER_BYTES_MAX)
        except OSError as error:  # TimeoutError is one
            raise ScannerUnavailable(f"clamd cannot be reached: {error!r}") from error
        try:
            # It may answer before it has all, and close: "size limit exceeded". What it said still counts.
            with suppress(ConnectionError):
                await _send(writer, path)
            return await reader.readuntil(b"\0")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ScannerUnavailable(f"clamd answered no whole line: {error!r}") from error
        finally:
            writer.transport.abort()  # a close would first wait for the other end to take what it never will
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, path: Path) -> None:
    writer.write(b"zINSTREAM\0")
    async with aclosing(file_chunks(path)) as chunks:
        async for chunk in chunks:
            writer.write(len(chunk).to_bytes(4, "big") + chunk)
            await writer.drain()
    writer.write(bytes(4))
    await writer.drain()


def _verdict(answer: bytes) -> str:
    text = answer.rstrip(b"\0").decode(errors="replace").strip()
    if text == CLEAN:
        return ""
    if text.startswith("stream: ") and text.endswith(FOUND):
        named = text.removeprefix("stream: ").removesuffix(FOUND)
        return "".join(char if char.isprintable() else "?" for char in named)[:SIGNATURE_CHARS_MAX] or "unnamed"
    raise ScannerUnavailable(f"clamd gave no verdict, but {text[:SIGNATURE_CHARS_MAX]!r}")
