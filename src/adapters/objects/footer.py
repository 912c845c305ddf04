"""What stands behind an object's bytes in its file: a description as JSON, its length, a magic word."""

import os
import struct
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from .port import ObjectDamaged, ObjectInfo
from .streams import write_all

FOOTER_MAGIC = b"SLobject"
FOOTER_BYTES_MAX = 4096  # The JSON is bounded by the content type's 255 characters.

_LENGTH = struct.Struct(">I")


class Footer(Struct, frozen=True):
    content_type: str
    sha256: str
    size_bytes: int


def seal(file: IO[bytes], info: ObjectInfo) -> None:
    """Writes the footer and waits until the disk has all of it."""
    assert info.sha256 is not None
    text = msgspec.json.encode(Footer(info.content_type, info.sha256, info.size_bytes))
    write_all(file, text + _LENGTH.pack(len(text)) + FOOTER_MAGIC)
    os.fsync(file.fileno())


def footer_at(path: Path) -> Footer:
    with path.open("rb") as file:
        return read_footer(file)


def read_footer(file: IO[bytes]) -> Footer:
    """The description at the end of an object's file.

    Raises:
        ObjectDamaged: there is none, or the file is not as long as it says.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    file.seek(max(0, file_bytes - FOOTER_BYTES_MAX))
    tail = file.read(FOOTER_BYTES_MAX)
    fixed_bytes = _LENGTH.size + len(FOOTER_MAGIC)
    if len(tail) < fixed_bytes or not tail.endswith(FOOTER_MAGIC):
        raise ObjectDamaged(f"{file.name} has no footer")
    (text_bytes,) = _LENGTH.unpack_from(tail, len(tail) - fixed_bytes)
    try:
        footer = msgspec.json.decode(tail[-fixed_bytes - text_bytes : -fixed_bytes], type=Footer)
    except msgspec.DecodeError as error:
        raise ObjectDamaged(f"the footer of {file.name} cannot be read") from error
    if footer.size_bytes + text_bytes + fixed_bytes != file_bytes:
        raise ObjectDamaged(f"{file.name} has {file_bytes} bytes, which is not what its footer says")
    return footer
