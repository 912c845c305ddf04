"""The bundle's format: one ZIP of fixed members, written as a stream and read with a bound on everything.

Members, in the order they are written (docs/how-to/audit-offline.md says how to check them by hand):

    README.txt               what this is
    events/NNNNNN.ndjson     the log, CHUNK_EVENTS_MAX events or CHUNK_BYTES_WANTED bytes a member
    checkpoints.ndjson       every signed tree head that falls into the range
    frontier.json            only where the log does not begin at 1: the tree before it, as a compact range
    read_models/NAME.ndjson  rows in the order of their keys, all as of one position
    quarantine.ndjson        streams that the read models stopped at, and where
    blobs.ndjson             objects that the rows name, with their digests and tombstones
    blobs/SHA256             the objects themselves, if asked for
    manifest.json            what there is; last, so that a stream that was cut never looks whole
"""

import hashlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Self, TypeVar
from uuid import UUID

import msgspec
from msgspec import Raw, Struct, field

# What zipfile says of a file that was damaged, or made to look so.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, RuntimeError)

S = TypeVar("S", bound=Struct)

FORMAT = "sightline-audit-bundle"
FORMAT_VERSION = 1

CHUNK_EVENTS_MAX = 10_000
CHUNK_BYTES_WANTED = 8 * 1024**2
EVENT_BYTES_MAX = 64 * 1024**2
# What a reader takes into memory at once; a writer's chunk ends with the event that passes CHUNK_BYTES_WANTED.
CHUNK_BYTES_MAX = CHUNK_BYTES_WANTED + EVENT_BYTES_MAX
SMALL_BYTES_MAX = 64 * 1024**2
LINES_BYTES_MAX = 64 * 1024**3
MEMBERS_MAX = 1_000_000
RATIO_MAX = 1_100  # deflate itself cannot do better than 1,032 to 1
BLOCK_BYTES = 1024**2
DEFLATE_LEVEL = 1  # a tenth of the time of the usual level, for a quarter more bytes

README, MANIFEST, CHECKPOINTS, FRONTIER = "README.txt", "manifest.json", "checkpoints.ndjson", "frontier.json"
QUARANTINE, BLOBS = "quarantine.ndjson", "blobs.ndjson"

_BOUNDS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"README\.txt|manifest\.json|frontier\.json"), SMALL_BYTES_MAX),
    (re.compile(r"events/[0-9]{6}\.ndjson"), CHUNK_BYTES_MAX),
    (re.compile(r"(checkpoints|quarantine|blobs)\.ndjson|read_models/[a-z_]{1,63}\.ndjson"), LINES_BYTES_MAX),
    (re.compile(r"blobs/[0-9a-f]{64}"), LINES_BYTES_MAX),
)


class BundleRefused(Exception):
    """Not a bundle, or not one that can be trusted.

    Attributes:
        position: the first one that is wrong, where the fault has one.
    """

    def __init__(self, reason: str, position: int | None = None) -> None:
        super().__init__(reason if position is None else f"position {position}: {reason}")
        self.reason = reason
        self.position = position


class EventLine(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One event. `metadata` and `data` are the stored bytes, see `exact` and `raw`."""

    position: int
    stream_id: UUID
    version: int
    topic: str
    recorded_at_us: int
    metadata: Raw
    data: Raw


class CheckpointLine(Struct, frozen=True, forbid_unknown_fields=True):
    tree_size: int
    note: str


class FrontierPart(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    nodes: roots of the perfect trees that the first `size` leaves make, largest first, hexadecimal.
    """

    size: int
    nodes: list[str]


class BlobLine(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    stream_id: whose event names it.
    tombstone: the position of the event that deleted it.
    """

    key: str
    sha256: str
    size_bytes: int
    stream_id: UUID
    tombstone: int | None = None


class QuarantineLine(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    position: of the first event of the stream that the read models leave out.
    """

    stream_id: UUID
    position: int


class Member(Struct, frozen=True, forbid_unknown_fields=True):
    size_bytes: int
    sha256: str


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attributes:
    first, last: positions of the events in it, as `from` and `to`.
    read_models_position: as of which the rows are; none where there are none.
    read_models_absent: why there are none.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    origin: str
    epoch: UUID
    first: int = field(name="from")
    last: int = field(name="to")
    exported_at: datetime
    read_models_position: int | None = None
    read_models_absent: str = ""
    with_blobs: bool = False
    members: dict[str, Member]


class _Format(Struct, frozen=True):
    """The two fields that every version has."""

    format: str = ""
    format_version: int = 0


def raw(stored: bytes) -> Raw:
    """Stored JSON text as a value inside a line. Objects stand for themselves; what is not one, or has space around
    it, which JSON would lose, goes as a string, so that it comes back byte for byte.
    """
    if stored[:1] == b"{" and stored[-1:] == b"}":
        return Raw(stored)
    return Raw(msgspec.json.encode(stored.decode()))


def exact(value: Raw) -> bytes:
    """The stored bytes again.

    Raises:
        msgspec.DecodeError: a string that is none.
    """
    text = bytes(value)
    return text if text[:1] == b"{" else msgspec.json.decode(text, type=str).encode()


def chunk_name(number: int) -> str:
    return f"events/{number:06}.ndjson"


def read_model_name(name: str) -> str:
    return f"read_models/{name}.ndjson"


def blob_name(sha256: str) -> str:
    return f"blobs/{sha256}"


class _Outbox:
    """A file that only grows, and whose bytes are taken away as they come."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


class BundleWriter:
    """A bundle as a stream: open a member, write, open the next; `take` what has become of it meanwhile.

    It needs memory for what was not taken yet, and a line of the directory per member.
    """

    def __init__(self) -> None:
        self._outbox = _Outbox()
        self._zip = zipfile.ZipFile(self._outbox, "w")
        self._member: IO[bytes] | None = None
        self._name = ""
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self.members: dict[str, Member] = {}

    def open(self, name: str, *, stored: bool = False) -> None:
        """Begin a member; the one before is closed. `stored` is for bytes that are compressed already."""
        self.end()
        info = zipfile.ZipInfo(name)  # whose time is 1980: two exports of the same log are the same bytes
        info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
        info._compresslevel = DEFLATE_LEVEL  # type: ignore[attr-defined]  # noqa: SLF001  # public from 3.13 on
        self._member = self._zip.open(info, "w", force_zip64=True)
        self._name, self._digest, self._size_bytes = name, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        assert self._member is not None
        self._member.write(data)
        self._digest.update(data)
        self._size_bytes += len(data)

    def add(self, name: str, data: bytes) -> None:
        self.open(name)
        self.write(data)
        self.end()

    def end(self) -> None:
        """Close the open member, if there is one."""
        if self._member is not None:
            self._member.close()
            self._member = None
            self.members[self._name] = Member(self._size_bytes, self._digest.hexdigest())

    def take(self) -> bytes:
        return self._outbox.take()

    def abandon(self) -> None:
        """Of a bundle that will not be finished, what has become of it is worth nothing."""
        self.end()
        self._zip.close()
        self.take()

    def finish(self, manifest: Manifest) -> bytes:
        """The rest, once every member is written; `manifest` has them."""
        self.add(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        self._zip.close()
        return self.take()


class BundleReader:
    """A bundle on disk: its manifest, and members that are held against it as they are read.

    Raises (every method):
        BundleRefused: it is not what it says, or larger than anything that we write.
        OSError: it cannot be read.
    """

    def __init__(self, file: "Path | IO[bytes]") -> None:
        try:
            self._zip = zipfile.ZipFile(file)
        except _DAMAGED as error:
            raise BundleRefused(f"not a bundle: {_said(error)}") from error
        try:
            self._infos = _checked(self._zip.infolist())
            self.manifest = self._read_manifest()
        except BaseException:
            self._zip.close()
            raise

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_manifest(self) -> Manifest:
        text = self.read(MANIFEST, digest=False)
        try:
            said = msgspec.json.decode(text, type=_Format)
            if said.format != FORMAT:
                raise BundleRefused("not a bundle: the manifest names another format")
            if said.format_version != FORMAT_VERSION:
                raise BundleRefused(f"format version {said.format_version} is unknown; this is {FORMAT_VERSION}")
            manifest = msgspec.json.decode(text, type=Manifest)
        except msgspec.MsgspecError as error:
            raise BundleRefused(f"manifest.json: {error}") from error
        for name in self._infos.keys() ^ {*manifest.members, MANIFEST}:
            if name in self._infos:
                raise BundleRefused(f"{name} is not in the manifest")
            raise BundleRefused(f"{name} is missing")
        for name, member in manifest.members.items():
            if self._infos[name].file_size != member.size_bytes:
                raise BundleRefused(f"{name} has {self._infos[name].file_size} bytes, not {member.size_bytes}")
        return manifest

    def has(self, name: str) -> bool:
        return name in self._infos

    def names(self, prefix: str) -> list[str]:
        """Members below `prefix`, sorted."""
        return sorted(name for name in self._infos if name.startswith(prefix))

    def size_bytes(self, name: str) -> int:
        return self._infos[name].file_size if name in self._infos else 0

    def read(self, name: str, *, digest: bool = True) -> bytes:
        """A whole member, which its bound makes small enough."""
        return b"".join(self.blocks(name, digest=digest))

    def blocks(self, name: str, *, digest: bool = True) -> Iterator[bytes]:
        """A member in blocks. With `digest` the end of the iteration says that it is the manifest's."""
        if name not in self._infos:
            raise BundleRefused(f"{name} is missing")
        hashed = hashlib.sha256()
        try:
            with self._zip.open(self._infos[name]) as member:
                while block := member.read(BLOCK_BYTES):
                    if digest:
                        hashed.update(block)
                    yield block
        except _DAMAGED as error:
            raise BundleRefused(f"{name}: {_said(error)}") from error
        if digest and hashed.hexdigest() != self.manifest.members[name].sha256:
            raise BundleRefused(f"{name} is not what the manifest says")

    def lines(self, name: str) -> Iterator[list[bytes]]:
        """The lines of a member, without their ends, in portions; each of at most EVENT_BYTES_MAX bytes."""
        rest = b""
        for block in self.blocks(name):
            *whole, rest = (rest + block).split(b"\n")
            if len(rest) > EVENT_BYTES_MAX:
                raise BundleRefused(f"{name}: a line is longer than {EVENT_BYTES_MAX} bytes")
            yield whole
        if rest:
            raise BundleRefused(f"{name}: the last line has no end")

    def structs(self, name: str, kind: type[S]) -> Iterator[S]:
        """The lines of a member as structs."""
        decode = msgspec.json.Decoder(kind).decode
        for lines in self.lines(name):
            for line in lines:
                try:
                    yield decode(line)
                except msgspec.MsgspecError as error:
                    raise BundleRefused(f"{name}: {error}") from error


def _checked(infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Members by name: each once, of a name that the format has, plain, and no larger than it may be."""
    if len(infos) > MEMBERS_MAX:
        raise BundleRefused(f"more than {MEMBERS_MAX} members")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        bound = next((most for pattern, most in _BOUNDS if pattern.fullmatch(info.filename)), None)
        if bound is None:
            raise BundleRefused(f"a bundle has no member {info.filename[:100]!r}")
        if info.filename in found:
            raise BundleRefused(f"{info.filename} is there twice")
        if info.header_offset < 0:
            raise BundleRefused(f"{info.filename} begins before the file does")
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleRefused(f"{info.filename} is encrypted, or compressed in a way that we do not write")
        if info.file_size > min(bound, info.compress_size * RATIO_MAX):
            raise BundleRefused(f"{info.filename} says that it has {info.file_size} bytes, which is too many")
        found[info.filename] = info
    return found


def _said(error: BaseException) -> str:
    return str(error)[:200] or "the file is damaged"
