"""A ClamAV daemon for the tests: the real one with a signature of our own, or one that answers as it is told."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

START_S_MAX = 20.0
STREAM_BYTES_MAX = 3 * 1024 * 1024
INFECTED = b"SIGHTLINE-TEST-SIGNATURE-0123456789"
ZERO_CHUNK = bytes(4)

CONF = """
LocalSocket {directory}/socket
DatabaseDirectory {directory}/database
LogFile {directory}/log
TemporaryDirectory {directory}
Foreground yes
StreamMaxLength 3M
MaxThreads 4
"""

Answering = Callable[[bytes], bytes | None]


def program() -> str | None:
    """Debian's package clamav-daemon has it."""
    return shutil.which("clamd") or shutil.which("/usr/sbin/clamd")


@contextmanager
def daemon(clamd: str) -> Iterator[Path]:
    """The socket of a real one, which knows INFECTED and nothing else."""
    with TemporaryDirectory(prefix="clamd-") as directory:
        database = Path(directory, "database")
        database.mkdir()
        (database / "ours.ndb").write_text(f"Sightline.Test:0:*:{INFECTED.hex()}\n")
        conf = Path(directory, "clamd.conf")
        conf.write_text(CONF.format(directory=directory))
        running = subprocess.Popen([clamd, "-c", conf], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _until_it_answers(Path(directory, "socket"), running)
            yield Path(directory, "socket")
        finally:
            running.terminate()
            running.wait()


def _until_it_answers(path: Path, running: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_S_MAX
    while time.monotonic() < until and running.poll() is None:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(path))
            asking.sendall(b"zPING\0")
            if asking.recv(100) == b"PONG\0":
                return
        time.sleep(0.05)
    raise AssertionError(f"clamd did not start: {running.poll()}")


@asynccontextmanager
async def told(directory: Path, answering: Answering) -> AsyncIterator[Path]:
    """The socket of one that reads the whole stream and sends what `answering` says to it; None: it hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.readuntil(b"\0") == b"zINSTREAM\0"
            content = b""
            while (length := int.from_bytes(await reader.readexactly(4), "big")) != 0:
                content += await reader.readexactly(length)
            said = answering(content)
            if said is not None:
                writer.write(said)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    path = directory / "clamd.socket"
    server = await asyncio.start_unix_server(answer, path)
    try:
        yield path
    finally:
        server.close()
        await server.wait_closed()
