"""One thing that a stranger sends, and what it must be told."""

import struct
import zlib
from collections.abc import Callable, Iterator

from msgspec import Struct

CLEAN = ""


class Case(Struct, frozen=True):
    """
    Attributes:
        declared: the media type it comes under.
        codes: of which it gets one; {CLEAN} where it is harmless.
    """

    name: str
    content: bytes
    declared: str
    codes: frozenset[str]


Maker = Callable[[], Iterator[Case]]


def case(name: str, content: bytes, declared: str, *codes: str) -> Case:
    return Case(name, content, declared, frozenset(codes or {CLEAN}))


def chunk(kind: bytes, body: bytes, *, length: int | None = None, checksum: int | None = None) -> bytes:
    """Of a PNG; length and checksum as they are, unless the case lies about them."""
    told = len(body) if length is None else length
    checked = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", told) + kind + body + struct.pack(">I", checked)


def png(width: int, height: int, data: bytes, *, depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    """A PNG that claims a size, with compressed rows as given."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deflated_zeros(size_bytes: int) -> bytes:
    """So many zero bytes, packed without having them in memory."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    packed = b"".join(packer.compress(block) for _ in range(size_bytes >> 20))
    return packed + packer.compress(bytes(size_bytes & 0xFFFFF)) + packer.flush()
