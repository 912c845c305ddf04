"""Who was erased: a list outside the database, so that a restored backup can be told again.

A line is a subject, the random id of a key: it says nothing of whose the key was, and after the erasure nobody can
find out. A line is on disk before its key is destroyed; a key that is not on the list is never gone without a trace.
"""

import fcntl
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import UUID

import msgspec
from msgspec import Struct

from .keyfiles import sync_directory
from .settings import Settings

LIST_FILE = "erasures.jsonl"
LINE_BYTES_MAX = 4096


class ErasuresDamaged(ValueError):
    """A line of the list cannot be read: somebody may be missing from it."""


class Erasure(Struct, frozen=True):
    at: datetime
    subject: UUID


class Erasures:
    """The list in one file; several processes may add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, settings: Settings) -> "Erasures":
        return cls(Path(settings.erasures_path) if settings.erasures_path else settings.data_dir / "keys" / LIST_FILE)

    def add(self, erasure: Erasure) -> None:
        """Returns once the line is on disk.

        Raises:
            OSError: it could not be written; then nothing may be erased.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(max(0, file.seek(0, os.SEEK_END) - LINE_BYTES_MAX))
            # A half line is of an erasure that was cut off before its key was touched.
            end += file.read().rfind(b"\n") + 1
            file.truncate(end)
            file.seek(end)
            file.write(msgspec.json.encode(erasure) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.path.parent)

    def __iter__(self) -> Iterator[Erasure]:
        """Every erasure, the oldest first; none where there is no list.

        Raises:
            ErasuresDamaged: a line is not one of ours.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield msgspec.json.decode(line, type=Erasure)
                except msgspec.MsgspecError as error:
                    raise ErasuresDamaged(f"{self.path}, line {number}: {error}") from error
