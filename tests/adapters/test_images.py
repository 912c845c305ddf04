"""The scanner: what it lets pass, what it refuses and under which code, and that no file ever hurts its caller."""

import asyncio
import io
import os
import signal
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio
from PIL import Image

from sightline.adapters.images import EICAR, IMAGE_TYPES, MEBIBYTE_BYTES, ImageScanner

PIXELS_MAX = 4_000_000
FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scanner() -> AsyncIterator[ImageScanner]:
    async with ImageScanner(pixels_max=PIXELS_MAX, timeout_s=10, concurrency=1) as made:
        yield made


def noise(width: int = 96, height: int = 64, mode: str = "RGB", seed: int = 1) -> Image.Image:
    """A picture that does not compress, so that cutting its file cuts its pixels."""
    pixel_bytes = len(Image.new(mode, (1, 1)).tobytes())
    return Image.frombytes(mode, (width, height), Random(seed).randbytes(width * height * pixel_bytes))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that claims a size, with as many rows as given."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def written(directory: Path, data: bytes) -> Path:
    path = directory / "upload"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("kind", "content_type"), FORMATS.items())
@pytest.mark.parametrize("declare", [True, False])
async def test_a_whole_picture_passes(
    scanner: ImageScanner, tmp_path: Path, kind: str, content_type: str, declare: bool
) -> None:
    path = written(tmp_path, encoded(noise(), kind))
    verdict = await scanner.scan(path, content_type if declare else "application/octet-stream")
    assert (verdict.ok, verdict.code, verdict.content_type) == (True, "", content_type)
    assert (verdict.width_px, verdict.height_px) == (96, 64)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (noise(mode="L"), "PNG"),
        (noise(mode="RGBA"), "PNG"),
        (noise(mode="I;16"), "PNG"),
        (noise(mode="CMYK"), "JPEG"),
        (noise(1, 1), "PNG"),
        (noise(2, 3000), "PNG"),
    ],
)
async def test_odd_but_honest_pictures_pass(
    scanner: ImageScanner, tmp_path: Path, image: Image.Image, kind: str
) -> None:
    verdict = await scanner.scan(written(tmp_path, encoded(image, kind)), FORMATS[kind])
    assert verdict.ok, verdict
    assert (verdict.width_px, verdict.height_px) == image.size


async def test_the_size_is_as_shown(scanner: ImageScanner, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    verdict = await scanner.scan(written(tmp_path, encoded(noise(), "JPEG", exif=exif)), "image/jpeg")
    assert (verdict.width_px, verdict.height_px) == (64, 96)


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
async def test_every_frame_of_an_animation_is_decoded(scanner: ImageScanner, tmp_path: Path, kind: str) -> None:
    frames = [noise(seed=seed) for seed in range(5)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)
    assert (await scanner.scan(written(tmp_path, data), FORMATS[kind])).ok
    cut = await scanner.scan(written(tmp_path, data[: len(data) * 3 // 4]), FORMATS[kind])
    assert cut.code in {"image_truncated", "image_undecodable"}


@pytest.mark.parametrize("declared", ["text/html", "image/svg+xml", "application/pdf", "video/mp4", "image/avif"])
async def test_a_type_that_we_do_not_take(scanner: ImageScanner, tmp_path: Path, declared: str) -> None:
    assert (await scanner.scan(written(tmp_path, encoded(noise(), "PNG")), declared)).code == "unsupported_media_type"


async def test_bytes_of_no_known_type(scanner: ImageScanner, tmp_path: Path) -> None:
    path = written(tmp_path, b"<svg onload=alert(1)>" * 10)
    assert (await scanner.scan(path, "image/png")).code == "content_type_mismatch"
    assert (await scanner.scan(path)).code == "unsupported_media_type"


async def test_a_lying_type(scanner: ImageScanner, tmp_path: Path) -> None:
    path = written(tmp_path, encoded(noise(), "PNG"))
    assert (await scanner.scan(path, "image/jpeg")).code == "content_type_mismatch"
    assert (await scanner.scan(path, "IMAGE/PNG; charset=x")).ok


async def test_no_bytes(scanner: ImageScanner, tmp_path: Path) -> None:
    assert (await scanner.scan(written(tmp_path, b""), "image/png")).code == "empty_file"


async def test_a_missing_file_is_the_callers_mistake(scanner: ImageScanner, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await scanner.scan(tmp_path / "absent", "image/png")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
async def test_a_truncated_picture(scanner: ImageScanner, tmp_path: Path, kind: str, share: float) -> None:
    data = encoded(noise(), kind)
    verdict = await scanner.scan(written(tmp_path, data[: int(len(data) * share)]), FORMATS[kind])
    assert verdict.code == "image_truncated", verdict


@pytest.mark.parametrize("content_type", sorted(IMAGE_TYPES))
async def test_a_signature_alone(scanner: ImageScanner, tmp_path: Path, content_type: str) -> None:
    kind = next(kind for kind, one in FORMATS.items() if one == content_type)
    verdict = await scanner.scan(written(tmp_path, encoded(noise(), kind)[:32]), content_type)
    assert verdict.code in {"image_truncated", "image_undecodable"}
    assert str(tmp_path) not in verdict.detail


async def test_a_bomb_by_pixels_is_refused_before_it_is_unpacked(scanner: ImageScanner, tmp_path: Path) -> None:
    bomb = png_header(20_000, 20_000, bytes(20_000 * 3 + 1) * 200)
    assert len(bomb) < 100_000
    assert (await scanner.scan(written(tmp_path, bomb), "image/png")).code == "image_too_many_pixels"
    assert (
        await scanner.scan(written(tmp_path, png_header(2_000_000, 1)), "image/png")
    ).code == "image_too_many_pixels"


async def test_the_limit_of_pixels_is_exact(scanner: ImageScanner, tmp_path: Path) -> None:
    allowed = encoded(Image.new("L", (2000, 2000)), "PNG")
    beyond = encoded(Image.new("L", (2000, 2001)), "PNG")
    assert (await scanner.scan(written(tmp_path, allowed), "image/png")).ok
    assert (await scanner.scan(written(tmp_path, beyond), "image/png")).code == "image_too_many_pixels"


async def test_a_bomb_by_frames(scanner: ImageScanner, tmp_path: Path) -> None:
    frames = [Image.new("P", (1000, 1000), n % 200) for n in range(30)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (await scanner.scan(written(tmp_path, data), "image/gif")).code == "image_too_many_pixels"


async def test_a_malware_signature_anywhere(scanner: ImageScanner, tmp_path: Path) -> None:
    picture = encoded(noise(), "PNG")
    for data in (EICAR, picture + EICAR, EICAR + picture):
        assert (await scanner.scan(written(tmp_path, data), "image/png")).code == "malware_signature"
    assert (await scanner.scan(written(tmp_path, picture + EICAR[:-1]), "image/png")).ok


async def test_random_damage_is_a_verdict_and_the_child_lives_on(scanner: ImageScanner, tmp_path: Path) -> None:
    random = Random(11)
    await scanner.scan(written(tmp_path, encoded(noise(), "PNG")))
    before = scanner.pids
    for kind, content_type in FORMATS.items():
        for _ in range(25):
            data = bytearray(encoded(noise(), kind))
            for _ in range(random.randint(1, 30)):
                data[random.randrange(8, len(data))] = random.randrange(256)
            assert (await scanner.scan(written(tmp_path, bytes(data)), content_type)).code in {
                "",
                "image_truncated",
                "image_undecodable",
                "image_too_many_pixels",
                "content_type_mismatch",
            }
    assert scanner.pids == before


async def test_too_little_memory_is_a_verdict(tmp_path: Path) -> None:
    path = written(tmp_path, encoded(Image.new("RGB", (8000, 8000)), "PNG"))
    async with ImageScanner(pixels_max=64_000_000, memory_bytes_max=200 * MEBIBYTE_BYTES, concurrency=1) as small:
        verdict = await small.scan(path, "image/png")
        assert verdict.code == "image_undecodable"
        assert "memory" in verdict.detail
        assert (await small.scan(written(tmp_path, encoded(noise(), "PNG")), "image/png")).ok
    path = written(tmp_path, encoded(Image.new("RGB", (8000, 8000)), "PNG"))
    async with ImageScanner(pixels_max=64_000_000, concurrency=1) as enough:  # the control
        assert (await enough.scan(path, "image/png")).ok


async def test_too_little_time_is_a_verdict_and_the_child_is_replaced(tmp_path: Path) -> None:
    slow = written(tmp_path, encoded(noise(3000, 1300), "PNG"))
    async with ImageScanner(pixels_max=PIXELS_MAX, timeout_s=0.002, concurrency=1) as hurried:
        assert (await hurried.scan(slow, "image/png")).code == "scan_timed_out"
        assert hurried.pids == []


async def test_a_killed_child_is_a_verdict_and_is_replaced(scanner: ImageScanner, tmp_path: Path) -> None:
    path = written(tmp_path, encoded(noise(), "PNG"))
    await scanner.scan(path, "image/png")
    [pid] = scanner.pids
    os.kill(pid, signal.SIGSTOP)
    task = asyncio.create_task(scanner.scan(path, "image/png"))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    assert (await task).code in {"image_undecodable", ""}  # "": it was seen to be dead before it was asked
    assert (await scanner.scan(path, "image/png")).ok
    assert scanner.pids != [pid]


async def test_many_at_once_share_few_children(tmp_path: Path) -> None:
    path = written(tmp_path, encoded(noise(), "PNG"))
    async with ImageScanner(pixels_max=PIXELS_MAX, concurrency=2) as shared:
        verdicts = await asyncio.gather(*(shared.scan(path, "image/png") for _ in range(50)))
        assert all(verdict.ok for verdict in verdicts)
        assert 1 <= len(shared.pids) <= 2


async def test_a_cancelled_scan_leaves_no_answer_for_the_next(scanner: ImageScanner, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(encoded(noise(1500, 1500), "PNG"))
    await scanner.scan(written(tmp_path, encoded(noise(), "GIF")), "image/gif")
    task = asyncio.create_task(scanner.scan(large, "image/png"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await scanner.scan(tmp_path / "upload", "image/gif")).content_type == "image/gif"
