"""Pictures that hurt, lie, or are merely odd; made by code, so that everybody can see what is in them."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from random import Random

from PIL import Image, PngImagePlugin
from tests.adapters.hostile.case import CLEAN, Case, case, chunk, deflated_zeros, png

from sightline.adapters.images import EICAR

TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
CUTS = (0.02, 0.1, 0.3, 0.5, 0.8, 0.99)
TRUNCATED, BROKEN = CUT = ("image_truncated", "image_undecodable")
PIXELS = "image_too_many_pixels"
FRAMES = "image_too_many_frames"
EXPANDS = "image_expands_too_much"
MALWARE = "malware_signature"
MISMATCH = "content_type_mismatch"
UNSUPPORTED = "unsupported_media_type"
HTML = b"<html><script>alert(document.domain)</script></html>"
PHP = b"<?php system($_GET['c']); ?>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="file:///etc/passwd"/></svg>'


def noise(width: int = 64, height: int = 48, mode: str = "RGB", seed: int = 1) -> Image.Image:
    """It does not compress, so that cutting its file cuts its pixels."""
    size = len(Image.new(mode, (1, 1)).tobytes())
    return Image.frombytes(mode, (width, height), Random(seed).randbytes(width * height * size))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def zipped(name: str, content: bytes, *, packed: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


WHOLE = {kind: encoded(noise(), kind) for kind in TYPES}


def cut() -> Iterator[Case]:
    """Each type, ended too early: nothing of it is ever taken for a picture."""
    for kind, content in WHOLE.items():
        for share in CUTS:
            yield case(f"{kind}-cut-{share}", content[: int(len(content) * share)], TYPES[kind], *CUT)
        yield case(f"{kind}-signature", content[:16], TYPES[kind], *CUT)
        yield case(f"{kind}-one-byte", content[:1], TYPES[kind], MISMATCH)
        yield case(f"{kind}-empty", b"", TYPES[kind], "empty_file")


def lying() -> Iterator[Case]:
    """Bytes of one type under the name of another."""
    for kind, content in WHOLE.items():
        other = "image/png" if kind != "PNG" else "image/gif"
        yield case(f"{kind}-as-{other}", content, other, MISMATCH)
        yield case(f"{kind}-as-html", content, "text/html", UNSUPPORTED)
        yield case(f"{kind}-undeclared", content, "application/octet-stream", CLEAN)
        yield case(f"html-as-{kind}", HTML, TYPES[kind], MISMATCH)
        yield case(f"svg-as-{kind}", SVG, TYPES[kind], MISMATCH)
    yield case("svg", SVG, "image/svg+xml", UNSUPPORTED)
    yield case("svg-undeclared", SVG, "", UNSUPPORTED)
    yield case("html-undeclared", HTML, "application/octet-stream", UNSUPPORTED)
    yield case("zip-as-png", zipped("a", b"b"), "image/png", MISMATCH)
    yield case("elf-as-gif", b"\x7fELF" + bytes(200), "image/gif", MISMATCH)
    yield case("pdf-as-tiff", b"%PDF-1.7\n" + bytes(200), "image/tiff", MISMATCH)
    yield case("postscript-as-jpeg", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n", "image/jpeg", MISMATCH)
    yield case("mvg-as-png", b"push graphic-context\nimage over 0,0 0,0 'msl:/etc/passwd'\n", "image/png", MISMATCH)
    yield case("avif", b"\0\0\0\x20ftypavif" + bytes(100), "image/png", MISMATCH)
    yield case("half-a-signature", b"\x89PNG\r\n\x1b\n" + WHOLE["PNG"][8:], "image/png", MISMATCH)
    yield case("text-before-a-picture", b"GIF" + WHOLE["GIF"], "image/gif", MISMATCH)
    yield case("endless-type", WHOLE["PNG"], "image/" + "p" * 100_000, UNSUPPORTED)
    yield case("type-with-controls", WHOLE["PNG"], "image/png\r\nX: y", UNSUPPORTED)


def two_at_once() -> Iterator[Case]:
    """A picture that is something else too. What is behind its end is never run: it goes out as an attachment of the
    picture's type. It is harmless unless it holds a signature of malware.
    """
    archive = zipped("run.sh", b"#!/bin/sh\n")
    for kind, content in WHOLE.items():
        yield case(f"{kind}+zip", content + archive, TYPES[kind], CLEAN)
        yield case(f"{kind}+html", content + HTML, TYPES[kind], CLEAN)
        yield case(f"{kind}+php", content + PHP, TYPES[kind], CLEAN)
        yield case(f"{kind}+eicar", content + EICAR, TYPES[kind], MALWARE)
        yield case(f"{kind}+far-eicar", content + bytes((1 << 20) - 34 - len(content)) + EICAR, TYPES[kind], MALWARE)
        yield case(f"{kind}+zip-of-eicar", content + zipped("e.com", EICAR), TYPES[kind], MALWARE)
    yield case("jpeg-with-php-comment", encoded(noise(), "JPEG", comment=PHP), "image/jpeg", CLEAN)
    yield case("gif-with-html-comment", encoded(noise(), "GIF", comment=HTML), "image/gif", CLEAN)
    yield case("gif-that-is-a-script", b"GIF89a/*" + WHOLE["GIF"][8:] + b"*/=alert(1)//", "image/gif", CLEAN)


def malware() -> Iterator[Case]:
    """The test signature, wherever a file has room for it; packed texts are unpacked to look."""
    text = EICAR.decode()
    yield case("eicar-alone", EICAR, "image/png", MALWARE)
    yield case("eicar-jpeg-comment", encoded(noise(), "JPEG", comment=EICAR), "image/jpeg", MALWARE)
    yield case("eicar-gif-comment", encoded(noise(), "GIF", comment=EICAR), "image/gif", MALWARE)
    yield case("eicar-icc-webp", encoded(noise(), "WEBP", icc_profile=EICAR + bytes(200)), "image/webp", MALWARE)
    exif = Image.Exif()
    exif[0x010E] = text
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield case(f"eicar-exif-{kind}", encoded(noise(), kind, exif=exif), TYPES[kind], MALWARE)
    for name, packed in (("tEXt", False), ("zTXt", True)):
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", text, zip=packed)
        yield case(f"eicar-{name}", encoded(noise(), "PNG", pnginfo=info), "image/png", MALWARE)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Comment", text, zip=True)
    yield case("eicar-iTXt", encoded(noise(), "PNG", pnginfo=info), "image/png", MALWARE)
    packed_text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(EICAR))
    behind = WHOLE["PNG"][:-12] + packed_text + WHOLE["PNG"][-12:]
    yield case("eicar-zTXt-behind-the-pixels", behind, "image/png", MALWARE)
    yield case("eicar-icc-png", encoded(noise(), "PNG", icc_profile=EICAR + bytes(200)), "image/png", MALWARE)


def bombs() -> Iterator[Case]:
    """Little that unpacks to much."""
    zeros = deflated_zeros(64 << 20)
    yield case("png-20k-square", png(20_000, 20_000, zlib.compress(bytes(60_001))), "image/png", PIXELS)
    yield case("png-2^31", png(2**31 - 1, 2**31 - 1, b""), "image/png", PIXELS)
    yield case("png-2^31-high", png(1, 2**31 - 1, zlib.compress(b"")), "image/png", PIXELS)
    yield case("png-strip", png(1, 60_000, deflated_zeros(4 * 60_000)), "image/png", PIXELS)
    yield case("png-all-zeros-claims-less", png(10, 10, zeros), "image/png", CLEAN)
    yield case("png-empty-rows", png(7_000, 7_000, zlib.compress(b"\0")), "image/png", EXPANDS)
    # Two mebibytes of packed zeros would be 64 megapixels of 16 bits and four channels.
    yield case("png-wide-pixels", png(8_000, 7_999, deflated_zeros(1 << 20), depth=16, color=6), "image/png", EXPANDS)
    for name, key in (("zTXt", b"Comment\0\0"), ("iCCP", b"profile\0\0")):
        packed = chunk(name.encode(), key + zeros)
        bomb = png(8, 8, zlib.compress(bytes(8 * 25)), extra=packed)
        yield case(f"png-{name}-bomb", bomb, "image/png", EXPANDS)
    packed = chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)
    yield case("png-iTXt-bomb", png(8, 8, zlib.compress(bytes(8 * 25)), extra=packed), "image/png", EXPANDS)
    many = chunk(b"zTXt", b"a\0\0" + deflated_zeros(1_000_000)) * 80
    yield case("png-many-texts", png(8, 8, zlib.compress(bytes(8 * 25)), extra=many), "image/png", EXPANDS)
    yield case("webp-plain", encoded(Image.new("RGB", (7_900, 7_900)), "WEBP", lossless=True), "image/webp", EXPANDS)
    yield case("webp-vp8x-claims", webp_canvas(16_777_216, 16_777_216), "image/webp", PIXELS)
    yield case("gif-canvas", gif([(0, 0, 1, 1)], canvas=(65_535, 65_535)), "image/gif", PIXELS)
    yield case("gif-canvas-below", gif([(0, 0, 1, 1)], canvas=(7_900, 7_900)), "image/gif", EXPANDS)
    yield case("gif-2000-frames", gif([(0, 0, 1, 1)] * 2_000), "image/gif", FRAMES)
    yield case("gif-frames-of-a-canvas", gif([(0, 0, 1, 1)] * 200, canvas=(2_000, 2_000)), "image/gif", PIXELS)
    yield case("gif-frame-outside", gif([(60_000, 60_000, 5_000, 5_000)]), "image/gif", PIXELS)
    yield case("bmp-2^31", bmp(2**31 - 1, 2**31 - 1), "image/bmp", PIXELS)
    yield case("bmp-negative", bmp(-5, 5), "image/bmp", PIXELS)
    yield case("bmp-top-down-2^31", bmp(1_000, -(2**31)), "image/bmp", PIXELS)
    yield case("bmp-rle", bmp(7_900, 7_900, bits=8, compression=1, data=b"\0\1"), "image/bmp", EXPANDS)
    yield case("bmp-palette-of-2^32", bmp(8, 8, bits=8, colors=2**32 - 1), "image/bmp", BROKEN)
    yield case("tiff-2^31", tiff([ifd(2**31 - 1, 2**31 - 1)]), "image/tiff", PIXELS)
    yield case("tiff-loop", tiff([ifd(8, 8)], last_points_to=8), "image/tiff", CLEAN)
    yield case("tiff-2000-pages", tiff([ifd(8, 8)] * 2_000), "image/tiff", FRAMES)
    yield case("tiff-pages-of-one-strip", tiff([ifd(6_000, 6_000, count=36_000_000)] * 20), "image/tiff", EXPANDS)
    yield case("tiff-strip-outside", tiff([ifd(8, 8, offset=2**31)]), "image/tiff", TRUNCATED)
    yield case("tiff-strip-of-2^32", tiff([ifd(8, 8, count=2**32 - 1)]), "image/tiff", CLEAN)
    yield case("tiff-deflate-bomb", packed_tiff(zeros, 5_000), "image/tiff", CLEAN)
    yield case("tiff-tags-of-2^32", tiff([ifd(8, 8, tag_count=2**32 - 1)]), "image/tiff", CLEAN)
    yield case("tiff-directory-outside", b"II*\0" + struct.pack("<I", 2**32 - 8), "image/tiff", BROKEN)
    frames = [Image.new("RGB", (8, 8), (n % 2 * 255, n % 256, 0)) for n in range(1_001)]
    animated = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=1)
    yield case("webp-1001-frames", animated, "image/webp", FRAMES)


def odd() -> Iterator[Case]:
    """Unusual, and harmless, or merely broken."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield case(f"png-{mode}", encoded(noise(mode=mode), "PNG"), "image/png", CLEAN)
    for mode in ("L", "CMYK"):
        yield case(f"jpeg-{mode}", encoded(noise(mode=mode), "JPEG"), "image/jpeg", CLEAN)
    for mode in ("1", "L", "CMYK", "LAB", "I;16", "F", "RGBA"):
        yield case(f"tiff-{mode}", encoded(noise(mode=mode), "TIFF"), "image/tiff", CLEAN)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield case(f"tiff-{compression}", encoded(noise(), "TIFF", compression=compression), "image/tiff", CLEAN)
    yield case("jpeg-progressive", encoded(noise(), "JPEG", progressive=True), "image/jpeg", CLEAN)
    yield case("one-pixel", encoded(Image.new("RGB", (1, 1)), "PNG"), "image/png", CLEAN)
    still = encoded(Image.new("RGB", (640, 480)), "PNG", compress_level=9)
    yield case("a-plain-surface", still, "image/png", CLEAN)
    for kind in ("PNG", "GIF", "WEBP", "TIFF"):
        frames = [noise(seed=seed) for seed in range(4)]
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        yield case(f"{kind}-of-frames", content, TYPES[kind], CLEAN)
    exif = Image.Exif()
    exif[0x0112] = 65_535
    yield case("exif-odd-orientation", encoded(noise(), "JPEG", exif=exif), "image/jpeg", CLEAN)
    loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    yield case("exif-loop", encoded(noise(), "JPEG", exif=loop), "image/jpeg", CLEAN)
    huge = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0" + struct.pack("<II", 2**32 - 1, 8)
    yield case("exif-tag-of-2^32", encoded(noise(), "JPEG", exif=huge), "image/jpeg", CLEAN)
    yield case("exif-noise", encoded(noise(), "JPEG", exif=b"Exif\0\0" + Random(2).randbytes(400)), "image/jpeg", CLEAN)
    yield case("png-no-width", png(0, 10, zlib.compress(b"")), "image/png", BROKEN)
    yield case("png-bad-depth", png(8, 8, zlib.compress(bytes(200)), depth=3), "image/png", BROKEN)
    yield case("png-bad-color", png(8, 8, zlib.compress(bytes(200)), color=9), "image/png", BROKEN)
    yield case("png-bad-checksum", flipped(WHOLE["PNG"], 30), "image/png", BROKEN)
    yield case("png-chunk-of-2^32", WHOLE["PNG"][:33] + chunk(b"tEXt", b"", length=2**32 - 1), "image/png", TRUNCATED)
    yield case("png-no-pixels", WHOLE["PNG"][:33] + chunk(b"IEND", b""), "image/png", BROKEN)
    yield case("png-a-million-chunks", WHOLE["PNG"][:33] + chunk(b"aaAA", b"") * 1_000_001, "image/png", BROKEN)
    yield case("jpeg-no-size", b"\xff\xd8\xff\xc0\x00\x0b\x08\0\0\0\0\x01\x01\x11\0\xff\xd9", "image/jpeg", BROKEN)
    jpeg_huge = b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0" + WHOLE["JPEG"][20:]
    yield case("jpeg-65535-square", jpeg_huge, "image/jpeg", BROKEN)
    yield case("jpeg-markers-only", b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5_000, "image/jpeg", BROKEN)
    yield case("jpeg-many-scans", many_scans(), "image/jpeg", CLEAN)
    yield case("webp-size-lies", WHOLE["WEBP"][:4] + b"\xff\xff\xff\x7f" + WHOLE["WEBP"][8:], "image/webp", TRUNCATED)
    yield case("webp-chunk-lies", WHOLE["WEBP"][:16] + b"\xff\xff\xff\x7f" + WHOLE["WEBP"][20:], "image/webp", BROKEN)
    yield case("gif-no-frames", gif([]), "image/gif", BROKEN)
    yield case("gif-bad-codes", gif([(0, 0, 8, 8)], codes=b"\xff" * 60), "image/gif", BROKEN)
    yield case("gif-code-size", gif([(0, 0, 8, 8)], code_size=255), "image/gif", BROKEN)
    for seed in range(12):
        for kind, content in WHOLE.items():
            yield case(f"{kind}-damaged-{seed}", damaged(content, seed), TYPES[kind], CLEAN, *CUT, PIXELS, EXPANDS)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def damaged(content: bytes, seed: int) -> bytes:
    """Some bytes behind the signature replaced."""
    random = Random(seed)
    data = bytearray(content)
    for _ in range(1 + seed):
        data[random.randrange(16, len(data))] = random.randrange(256)
    return bytes(data)


def many_scans() -> bytes:
    """A progressive JPEG that goes over its pixels again and again."""
    content = encoded(Image.new("L", (512, 512)), "JPEG", progressive=True)
    scan = content.rindex(b"\xff\xda")
    return content[:scan] + content[scan:-2] * 3_000 + b"\xff\xd9"


def gif(
    frames: list[tuple[int, int, int, int]],
    *,
    canvas: tuple[int, int] = (8, 8),
    codes: bytes = b"\x44\x01",
    code_size: int = 2,
) -> bytes:
    """Frames as left, top, width, height; each says one pixel, and ends."""
    blocks = bytes([len(codes)]) + codes + b"\0"
    body = b"".join(b"," + struct.pack("<HHHH", *frame) + b"\0" + bytes([code_size]) + blocks for frame in frames)
    return b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes(6) + body + b";"


def bmp(width: int, height: int, *, bits: int = 24, compression: int = 0, colors: int = 0, data: bytes = b"") -> bytes:
    palette = bytes(1024) if bits == 8 else b""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, colors, 0)
    start = 14 + len(info) + len(palette)
    body = info + palette + data
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, start) + body


def ifd(
    width: int, height: int, *, offset: int | None = None, count: int | None = None, tag_count: int = 1
) -> list[tuple[int, int, int, int]]:
    """Tag, type, count, value; an offset of None is where the one strip is."""
    return [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (270, 2, tag_count, 8),
        (273, 4, 1, -1 if offset is None else offset),
        (277, 3, 1, 1),
        (278, 4, 1, height & 0xFFFFFFFF),
        (279, 4, 1, 64 if count is None else count),
    ]


def tiff(directories: list[list[tuple[int, int, int, int]]], *, last_points_to: int = 0) -> bytes:
    """Directories one behind the other, all over the same strip of 64 bytes at the end."""
    size = 2 + 12 * len(directories[0]) + 4
    strip = 8 + size * len(directories)
    parts = [b"II*\0" + struct.pack("<I", 8)]
    for number, entries in enumerate(directories, start=1):
        following = last_points_to if number == len(directories) else 8 + size * number
        tags = b"".join(struct.pack("<HHII", tag, kind, n, strip if v < 0 else v) for tag, kind, n, v in entries)
        parts.append(struct.pack("<H", len(entries)) + tags + struct.pack("<I", following))
    return b"".join(parts) + bytes(range(64))


def packed_tiff(packed: bytes, side: int) -> bytes:
    """Of one deflated strip."""
    entries = ifd(side, side, count=len(packed))
    entries[3] = (259, 3, 1, 8)
    return tiff([entries])[:-64] + packed


def webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP that claims a canvas, with a small picture in it."""
    body = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0"
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + WHOLE["WEBP"][12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@cache
def pictures() -> list[Case]:
    made = [one for maker in (cut, lying, two_at_once, malware, bombs, odd) for one in maker()]
    assert len({one.name for one in made}) == len(made)
    return made
