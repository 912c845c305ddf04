"""The scanner's child: `python -m sightline.adapters.image_decoder`. Decodes every frame and says what it found."""

import mmap
import warnings
from contextlib import ExitStack
from pathlib import Path

import msgspec
from PIL import Image, UnidentifiedImageError

from .confinement import CpuTime, enter
from .images import (
    EICAR,
    HOLDS_EICAR,
    IMAGE_TYPES,
    MEBIBYTE_BYTES,
    OUT_OF_MEMORY,
    SIGNATURE_BYTES,
    UNDECLARED,
    Code,
    ImageQuestion,
    ImageVerdict,
    holds_eicar,
    sniff,
)

FRAMES_MAX = 1000
FRAMES_PIXELS_FACTOR_MAX = 4  # all frames together may hold this many times what one may
ASPECT_RATIO_MAX = 5000
# What a picture unpacks to, against what it was sent as: more than deflate can do at its very best (1 to 1,032), which
# a plain surface does honestly. Small ones are not asked, since any of them may.
EXPANSION_MAX = 1_100
EXPANSION_FREE_BYTES = 32 * MEBIBYTE_BYTES
# What Pillow says of packed texts and profiles that pass its own bounds, a mebibyte each.
EXPANDING_METADATA = ("Decompressed data too large", "Too much memory used in text chunks")
BITS_OF_MODES = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}  # others: 8 a band
PNG_SIGNATURE_BYTES = 8
PNG_CHUNKS_MAX = 1_000_000
EXIF_ORIENTATION = 0x0112
EXIF_QUARTER_TURNS = range(5, 9)

# Pillow's plugin for each type: the file's signature chooses it, so that no other parser ever sees the bytes.
PLUGINS = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
}


class Refused(Exception):
    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code: Code = code
        self.detail = detail


def judge(question: ImageQuestion) -> ImageVerdict:
    """The verdict on one file. MemoryError is one of them."""
    found = ""
    try:
        with Path(question.path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = sniff(data[:SIGNATURE_BYTES])
            if holds_eicar(file):
                raise Refused("malware_signature", HOLDS_EICAR)
            check_type(found, question.declared_type)
            check_whole(data, found)
        width_px, height_px = decoded(Path(question.path), found, question.pixels_max)
    except Refused as refused:
        return ImageVerdict(refused.code, refused.detail, found)
    except MemoryError:
        return ImageVerdict("image_undecodable", OUT_OF_MEMORY, found)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return ImageVerdict("image_too_many_pixels", str(error), found)
    except Exception as error:  # noqa: BLE001  a decoder may raise anything on bytes made to make it
        return ImageVerdict(*_reason(error), found)
    return ImageVerdict("", "", found, width_px, height_px)


def check_type(found: str, declared: str) -> None:
    """The declared type is one we take, and the bytes are of it."""
    if declared not in IMAGE_TYPES | UNDECLARED:
        raise Refused("unsupported_media_type", f"{declared[:100]} is not one of {', '.join(sorted(IMAGE_TYPES))}")
    if declared in UNDECLARED and found not in IMAGE_TYPES:
        raise Refused("unsupported_media_type", f"the file is {found or 'of no type that we know'}")
    if declared not in UNDECLARED and found != declared:
        raise Refused("content_type_mismatch", f"declared as {declared}, but it is {found or 'nothing that we know'}")


def check_whole(data: mmap.mmap, found: str) -> None:
    """Truncations that the decoder would forgive, or would blame on something else."""
    if found == "image/webp":
        wanted = 8 + int.from_bytes(data[4:8], "little")
        if len(data) < wanted:
            raise Refused("image_truncated", f"{len(data)} bytes of {wanted}")
    if found == "image/png":
        start = PNG_SIGNATURE_BYTES
        for _ in range(PNG_CHUNKS_MAX):
            length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
            start += 12 + length  # length, type, body, checksum
            if start > len(data):
                raise Refused("image_truncated", "the file ends inside a chunk, or before IEND")
            if kind == b"IEND":
                return
        raise Refused("image_undecodable", f"more than {PNG_CHUNKS_MAX} chunks")


def decoded(path: Path, found: str, pixels_max: int) -> tuple[int, int]:
    """Width and height as shown, once every frame was decoded within the limits."""
    Image.MAX_IMAGE_PIXELS = pixels_max
    with warnings.catch_warnings(), ExitStack() as opened:
        # Pillow warns of harmless metadata, and a stranger's words have no place in the log; limits raise.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = opened.enter_context(Image.open(path, formats=[PLUGINS[found]]))
        size_bytes = path.stat().st_size
        pixels = 0
        shown = (0, 0)
        for frame in range(FRAMES_MAX + 1):
            try:
                image.seek(frame)
            except EOFError:
                check_metadata(image)  # some of it comes behind the last frame
                return shown
            check_size(image.size, pixels_max)
            pixels += image.width * image.height
            if frame and pixels > FRAMES_PIXELS_FACTOR_MAX * pixels_max:
                raise Refused("image_too_many_pixels", f"its frames hold {pixels} pixels, or more")
            check_expansion(image, size_bytes)
            image.load()
            if not frame:
                shown = _shown_size(image)  # only now: for some formats, reading EXIF decodes the pixels
    raise Refused("image_too_many_frames", f"more than {FRAMES_MAX} frames")


def check_expansion(image: Image.Image, size_bytes: int) -> None:
    """Before a frame is unpacked: not too much of it for what was sent. All frames together are bounded above."""
    bits = BITS_OF_MODES.get(image.mode, 8 * len(image.getbands()))
    unpacked_bytes = image.width * image.height * bits // 8
    if unpacked_bytes > max(EXPANSION_FREE_BYTES, EXPANSION_MAX * size_bytes):
        raise Refused("image_expands_too_much", f"{size_bytes} bytes hold a frame of {unpacked_bytes}")


def check_metadata(image: Image.Image) -> None:
    """What is packed inside the file, texts of a PNG for one, is searched as others read it: unpacked."""
    for value in image.info.values():
        data = value.encode(errors="replace") if isinstance(value, str) else value
        if isinstance(data, bytes) and EICAR in data:
            raise Refused("malware_signature", HOLDS_EICAR)


def check_size(size: tuple[int, int], pixels_max: int) -> None:
    """Before anything is allocated for a frame."""
    width, height = size
    if width < 1 or height < 1:
        raise Refused("image_undecodable", f"{width} × {height} pixels")
    if width * height > pixels_max:
        raise Refused("image_too_many_pixels", f"{width} × {height} pixels are more than {pixels_max}")
    if max(size) > ASPECT_RATIO_MAX * min(size):
        raise Refused(
            "image_too_many_pixels", f"{width} × {height}: one side is over {ASPECT_RATIO_MAX} times the other"
        )


def _shown_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = image.getexif().get(EXIF_ORIENTATION) in EXIF_QUARTER_TURNS
    return (height, width) if turned else (width, height)


def _reason(error: Exception) -> tuple[Code, str]:
    text = " ".join(str(error).split())[:200]
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return "image_truncated", text or "the file ends too early"
    if any(said in text for said in EXPANDING_METADATA):
        return "image_expands_too_much", text
    if isinstance(error, UnidentifiedImageError):
        return "image_undecodable", "its header is broken"  # the library's text would name our path
    return "image_undecodable", f"{type(error).__name__}: {text}"


def main() -> None:
    """Answer until the parent closes its end, or dies."""
    Image.init()  # the plugins, before the first file waits for them
    channel = enter()
    cpu_time = CpuTime()
    for frame in channel:
        question = msgspec.msgpack.decode(frame, type=ImageQuestion)
        cpu_time.allow(question.cpu_s_max)
        channel.send(msgspec.msgpack.encode(judge(question)))


if __name__ == "__main__":
    main()
