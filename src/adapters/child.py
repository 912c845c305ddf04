"""The parent's end of a long-lived child process that works on strangers' bytes: frames over its pipes, and its end.

The child's end is `confinement.py`. A child answers in the order in which it was asked and writes each answer before
it begins the next question, so when it dies the first question without an answer is the one that killed it.
"""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from .embedded.processes import launcher_argv

FRAME_BYTES_MAX = 16 * 1024 * 1024
HEADER_BYTES = 4
READ_BYTES = 1 << 16
STARTUP_S_MAX = 30.0
SAID_LINES_MAX = 50  # of what one child prints, and of each line so many characters
SAID_CHARS_MAX = 300
LAST_BREATH_S = 1.0  # between the end of a child's output and its death, before it is killed

# What a child may know of our environment: where its libraries are, and which accelerator it may use. No secrets.
ENVIRONMENT_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES")
# One job, one core, unless a session asks for more: each library would otherwise size its own pool from the host.
# ONNX Runtime would keep an id of this machine, and report to its maker what it runs.
ENVIRONMENT_SET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONHASHSEED": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Directories that a child may open files in, beside its libraries; see `landlock.py`.
READABLE, WRITABLE = "SIGHTLINE_CHILD_READABLE", "SIGHTLINE_CHILD_WRITABLE"

log = structlog.get_logger("sightline.child")


class BrokenFrame(Exception):
    """A length that no honest end would write."""


class ChildDied(Exception):
    """The child ended by itself, or somebody killed it.

    Attributes:
        exit_code: as `subprocess` has it: negative for a signal.
    """

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"the child {self.reason}")

    @property
    def signal(self) -> int | None:
        return -self.exit_code if self.exit_code < 0 else None

    @property
    def reason(self) -> str:
        if self.exit_code >= 0:
            return f"exited with {self.exit_code}"
        with suppress(ValueError):
            return f"died of {signal.Signals(-self.exit_code).name}"
        return f"died of signal {-self.exit_code}"


def framed(payload: bytes) -> bytes:
    """`payload` behind its length in four bytes, big-endian.

    Raises:
        BrokenFrame: more than FRAME_BYTES_MAX.
    """
    if len(payload) > FRAME_BYTES_MAX:
        raise BrokenFrame(f"{len(payload)} bytes are more than {FRAME_BYTES_MAX}")
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class Frames:
    """Bytes as they come, in; whole frames, out."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes.

        Raises:
            BrokenFrame: a length beyond FRAME_BYTES_MAX: the other end writes something else than frames.
        """
        self._pending += data
        found = []
        start = 0
        while len(self._pending) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            length = int.from_bytes(self._pending[start:body], "big")
            if length > FRAME_BYTES_MAX:
                raise BrokenFrame(f"a frame of {length} bytes")
            if len(self._pending) < body + length:
                break
            found.append(bytes(self._pending[body : body + length]))
            start = body + length
        del self._pending[:start]
        return found


class Child:
    """`python -m module`, confined, started when first needed and again after it was killed.

    One task at a time may use it; `interrupt` alone may come from anywhere.

    Args:
        module: its `main` begins with `confinement.enter()`.
        memory_bytes_max: of address space; 0 sets none (CUDA reserves more than any host has).
        environ: added to the few variables that a child may know.
        readable: directories whose files it may read, beside the temporary one; made where they are missing.
        writes: whether it may write, into the temporary directory alone.
    """

    def __init__(
        self,
        module: str,
        *,
        memory_bytes_max: int,
        environ: Mapping[str, str] | None = None,
        readable: Sequence[Path] = (),
        writes: bool = False,
    ) -> None:
        self._module = module
        self._memory_bytes_max = memory_bytes_max
        self._readable = [path.absolute() for path in readable]
        temporary = tempfile.gettempdir()
        allowed = {READABLE: os.pathsep.join(map(str, [temporary, *self._readable]))}
        allowed[WRITABLE] = temporary if writes else ""
        kept = {name: os.environ[name] for name in ENVIRONMENT_KEPT if name in os.environ}
        self._environ = {**kept, **ENVIRONMENT_SET, **allowed, **(environ or {})}
        self._process: Process | None = None
        self._interrupted = False
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._frames = Frames()
        self._received: deque[bytes] = deque()
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Ready to be asked; says nothing if it already is.

        Raises:
            ChildDied: it ended before it was ready.
            TimeoutError: it was not ready within STARTUP_S_MAX; it was killed.
        """
        if self._process is not None and self._process.returncode is None and not self._interrupted:
            return
        await self.kill()  # what is left of one that died while nobody asked it anything
        self._frames, self._received, self._interrupted = Frames(), deque(), False
        for path in self._readable:
            path.mkdir(parents=True, exist_ok=True)  # the child can only be given what is there
        self._directory = tempfile.TemporaryDirectory(prefix="sightline-child-", ignore_cleanup_errors=True)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *launcher_argv(
                    [sys.executable, "-P", "-m", self._module],
                    memory_bytes_max=self._memory_bytes_max,
                    lasting_thread=True,  # when the thread of this loop ends, nobody is left to ask the child
                ),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                cwd=self._directory.name,
                env=self._environ,
                start_new_session=True,  # Ctrl-C is for the parent, which lets the child finish
            )
            if self._process.stderr is not None:
                self._listening = asyncio.create_task(_tell(self._process.stderr, self._module))
            async with asyncio.timeout(STARTUP_S_MAX):
                await self.receive()  # an empty frame: confined, and listening
            # Its working directory goes, with it still inside: nothing can be put there, and nothing is left of it
            # even when this process is killed.
            self._directory.cleanup()
        except BaseException:
            await self.kill()
            raise

    def send(self, payloads: list[bytes]) -> None:
        """Ask. What the pipe does not take at once is kept in memory: the caller bounds how much it asks."""
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("not started")
        self._process.stdin.write(b"".join(map(framed, payloads)))

    async def receive(self) -> bytes:
        """The next frame.

        Raises:
            ChildDied: there will be none. The child is gone, the next `start` makes another.
        """
        while not self._received:
            if self._process is None or self._process.stdout is None:
                raise RuntimeError("not started")
            data = await self._process.stdout.read(READ_BYTES)
            try:
                self._received += self._frames.feed(data)
            except BrokenFrame:
                self.interrupt()
                data = b""
            if not data:
                raise ChildDied(await self._ended())
        return self._received.popleft()

    def interrupt(self) -> None:
        """SIGKILL, now; whoever waits in `receive` gets ChildDied."""
        self._interrupted = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def kill(self) -> None:
        """No child, no zombie, no open pipe and no directory of its own afterwards."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            if process.stdin is not None:
                process.stdin.close()
            if self._listening is not None:
                self._listening.cancel()
                await asyncio.wait({self._listening})
                self._listening = None
            await process.communicate()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    async def _ended(self) -> int:
        process = self._process
        if process is None:
            raise RuntimeError("not started")
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), LAST_BREATH_S)
        await self.kill()
        return process.returncode if process.returncode is not None else -signal.SIGKILL


async def _tell(said: asyncio.StreamReader, module: str) -> None:
    """What a child prints, as entries of the log, a few of them: a library may repeat a stranger's words, line breaks
    and all, and as often as the stranger likes. Read to its end, or the child would wait for us.
    """
    lines = 0
    while data := await said.read(READ_BYTES):
        for line in data.decode(errors="replace").splitlines()[: SAID_LINES_MAX - lines]:
            lines += 1
            log.warning("child_said", module=module, said=line[:SAID_CHARS_MAX])
