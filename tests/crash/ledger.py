"""What was acknowledged, as whoever was told it wrote it down: one write() for each answer, before the next command.

A file outlives the process that wrote it, however it was killed. It would not outlive the machine.
"""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

_RECORD = struct.Struct(">16s16siqqqB")

APPENDED, REPEAT, REFUSED = range(3)


class Acknowledged(Struct, frozen=True):
    """One command of a bulk appender.

    Attributes:
        lane: which of its appender's lanes sent it; a lane sends its commands one after the other.
        version: of the stream after the command.
        position: of its last event.
        told_ns: when, on this machine's monotonic clock.
        outcome: APPENDED; REPEAT where an earlier sending had been; REFUSED where it was taken for a conflict.
    """

    command_id: UUID
    stream_id: UUID
    lane: int
    version: int
    position: int
    told_ns: int
    outcome: int


class Ledger:
    """The commands of one bulk appender."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def write(self, one: Acknowledged) -> None:
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        record = _RECORD.pack(
            one.command_id.bytes,
            one.stream_id.bytes,
            one.lane,
            one.version,
            one.position,
            one.told_ns,
            one.outcome,
        )
        written = os.write(self._file, record)
        assert written == len(record)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __len__(self) -> int:
        """How many commands, without reading them."""
        return self.path.stat().st_size // _RECORD.size if self.path.exists() else 0

    def __iter__(self) -> Iterator[Acknowledged]:
        return self.since(0)

    def since(self, number: int) -> Iterator[Acknowledged]:
        """Those from the `number`th on."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(number * _RECORD.size)
            data = file.read()
        for command, stream, *rest in _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]):
            yield Acknowledged(UUID(bytes=command), UUID(bytes=stream), *rest)


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client of the API was told.

    Attributes:
        what: `job` (one of the answers under `key`), `asset` (clean, of these bytes), `cut` (an upload left midway),
            `refused` (an answer that no client should get), `round` (all of this round is told).
        position: Event-Position of the answer.
    """

    what: str
    round: int
    key: str = ""
    id: str = ""
    position: int = 0
    sha256: str = ""
    detail: str = ""
    told_ns: int = msgspec.field(default_factory=time.monotonic_ns)


class Answers:
    """What all clients were told; a line of JSON each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._looked = 0  # bytes
        self._rounds = 0

    def write(self, **told: Any) -> None:
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, msgspec.json.encode(Answer(**told)) + b"\n")

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def rounds(self) -> int:
        """How many rounds are told whole; looks at what is new since it was asked last."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._looked)
                lines = file.read().rpartition(b"\n")[0]
            if lines:
                self._looked += len(lines) + 1
                self._rounds += sum(line.startswith(b'{"what":"round"') for line in lines.split(b"\n"))
        return self._rounds

    def __iter__(self) -> Iterator[Answer]:
        if self.path.exists():
            lines = self.path.read_bytes().split(b"\n")[:-1]  # the last one is empty, or still being written
            yield from (msgspec.json.decode(line, type=Answer) for line in lines)
