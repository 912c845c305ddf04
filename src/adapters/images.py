"""Judging a stranger's picture: does it hold what was declared, whole, within limits, and no malware signature?

The bytes are only ever decoded in a confined child (`image_decoder.py`); this side never opens the file.
"""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import msgspec
from msgspec import Struct

from .child import Child, ChildDied

Code = Literal[
    "",
    "empty_file",
    "unsupported_media_type",
    "content_type_mismatch",
    "image_truncated",
    "image_too_many_pixels",
    "image_too_many_frames",
    "image_expands_too_much",
    "malware_signature",
    "image_undecodable",
    "scan_timed_out",
]

IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"})
# What clients say when they do not know: the bytes decide.
UNDECLARED = frozenset({"", "application/octet-stream", "image/*"})
SYNONYMS = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-ms-bmp": "image/bmp",
    "image/x-bmp": "image/bmp",
    "image/tif": "image/tiff",
    "video/x-m4v": "video/mp4",
}
SIGNATURE_BYTES = 64  # what `sniff` wants to see of a file
BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
MEBIBYTE_BYTES = 1024 * 1024
# The EICAR test file, which every scanner must find; in two parts, so that none finds it here.
EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
HOLDS_EICAR = "the file holds the EICAR test signature"
OUT_OF_MEMORY = "the picture needs more memory than a decoder may use"


class ImageVerdict(Struct, frozen=True):
    """What a scan found.

    Attributes:
        code: "" when all is well, else one of the codes above, which are part of the API.
        content_type: what the bytes are by their signature, "" when unknown.
        width_px: as a viewer shows it, EXIF orientation applied; 0 when not ok.
        height_px: likewise.
    """

    code: Code = ""
    detail: str = ""
    content_type: str = ""
    width_px: int = 0
    height_px: int = 0

    @property
    def ok(self) -> bool:
        return not self.code


class ImageQuestion(Struct, frozen=True):
    """What the scanner asks its child."""

    path: str
    declared_type: str
    pixels_max: int
    cpu_s_max: float


def normalised(content_type: str) -> str:
    """A declared type without parameters, in lower case, under its registered name."""
    bare = content_type.partition(";")[0].strip().lower()
    return SYNONYMS.get(bare, bare)


def sniff(head: bytes) -> str:
    """The media type that the first SIGNATURE_BYTES of a file show, or ""."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "image/tiff"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADER_SIZES:
        return "image/bmp"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "video/webm" if b"webm" in head else "video/x-matroska"
    return _sniff_boxes(head)


def _sniff_boxes(head: bytes) -> str:
    """ISO base media and QuickTime: a box length, a box type, and for `ftyp` the brand."""
    kind, brand = head[4:8], head[8:12]
    if kind in {b"moov", b"mdat", b"wide"}:
        return "video/quicktime"  # written before `ftyp` existed
    if kind != b"ftyp":
        return ""
    if brand in {b"avif", b"avis"}:
        return "image/avif"
    if brand in {b"heic", b"heix", b"mif1", b"msf1"}:
        return "image/heic"
    return "video/quicktime" if brand == b"qt  " else "video/mp4"


def holds_eicar(file: IO[bytes]) -> bool:
    """Anywhere from here to the end: a file can carry it behind its last pixel, or inside another format's parts."""
    kept = b""
    while block := file.read(MEBIBYTE_BYTES):
        kept += block
        if EICAR in kept:
            return True
        kept = kept[-len(EICAR) :]
    return False


class ImageScanner:
    """Long-lived decoding children behind one method. An async context manager: leaving it ends them.

    Args:
        pixels_max: width × height of a picture, and of each frame.
        timeout_s: for one file.
        memory_bytes_max: of each child's address space; a file that needs more is refused.
        concurrency: children, hence files at once; more callers wait.
    """

    def __init__(
        self,
        *,
        pixels_max: int,
        timeout_s: float = 20.0,
        memory_bytes_max: int = 1536 * MEBIBYTE_BYTES,
        concurrency: int = 2,
    ) -> None:
        self._pixels_max = pixels_max
        self._timeout_s = timeout_s
        self._memory_bytes_max = memory_bytes_max
        module = "sightline.adapters.image_decoder"
        self._children = [Child(module, memory_bytes_max=memory_bytes_max) for _ in range(concurrency)]
        self._idle: asyncio.LifoQueue[Child] = asyncio.LifoQueue()  # last used first: its pages are warm
        for child in self._children:
            self._idle.put_nowait(child)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._children:  # waits for the scans under way, each of which ends within its timeout
            await (await self._idle.get()).kill()

    @property
    def pids(self) -> list[int]:
        """Of the children that run now."""
        return [child.pid for child in self._children if child.pid is not None]

    async def scan(self, path: Path, declared_type: str = "") -> ImageVerdict:
        """The verdict on a file; whatever the file does to the child is a verdict too.

        Raises:
            OSError: there is no such file, or it cannot be read.
            ChildDied: no child can be started, which is not the file's fault.
            TimeoutError: likewise.
        """
        question = self._question(path, declared_type)
        if question is None:
            return ImageVerdict("empty_file", "the file holds no bytes")
        child = await self._idle.get()
        try:
            await child.start()
            return await self._asked(child, question)
        finally:
            self._idle.put_nowait(child)

    def _question(self, path: Path, declared_type: str) -> ImageQuestion | None:
        with path.open("rb") as file:
            if not file.read(1):
                return None
        return ImageQuestion(str(path.absolute()), normalised(declared_type), self._pixels_max, self._timeout_s)

    async def _asked(self, child: Child, question: ImageQuestion) -> ImageVerdict:
        try:
            async with asyncio.timeout(self._timeout_s):
                child.send([msgspec.msgpack.encode(question)])
                verdict = msgspec.msgpack.decode(await child.receive(), type=ImageVerdict)
        except ChildDied as died:
            return ImageVerdict("image_undecodable", f"the decoder {died.reason}")
        except TimeoutError:
            await child.kill()
            return ImageVerdict("scan_timed_out", f"not decoded within {self._timeout_s:g} s")
        except BaseException:
            await child.kill()  # its answer would be read as the next file's
            raise
        if verdict.detail == OUT_OF_MEMORY:
            await child.kill()  # what a failed allocation left behind is unknown
        return verdict
