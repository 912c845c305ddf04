"""R16, pictures: every one gets its code, in bounded time and memory, and the child that looks at them outlives all."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image
from structlog.testing import capture_logs
from tests.adapters.hostile.case import case, deflated_zeros, png
from tests.adapters.hostile.pictures import PIXELS, encoded, noise, pictures
from tests.adapters.hostile.run import PICTURE_MEMORY_BYTES_MAX, PIXELS_MAX, Told, scanned
from tests.adapters.hostile.watch import address_space_bytes_max, memory_bytes

from sightline.adapters.images import MEBIBYTE_BYTES, ImageScanner

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS_MAX = 120.0  # a guard: each takes less than a second, on a machine of its own
GROWTH_BYTES_MAX = 64 * MEBIBYTE_BYTES


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scanner() -> AsyncIterator[ImageScanner]:
    async with ImageScanner(
        pixels_max=PIXELS_MAX, timeout_s=SECONDS_MAX, memory_bytes_max=PICTURE_MEMORY_BYTES_MAX, concurrency=1
    ) as made:
        yield made


async def test_every_picture_gets_its_code_and_nothing_else_happens(scanner: ImageScanner, tmp_path: Path) -> None:
    cases = pictures()
    assert len(cases) >= 200
    assert await _is_well(scanner, tmp_path)
    before, [pid] = memory_bytes("self", "VmRSS"), scanner.pids
    with capture_logs() as logged:
        told = [await scanned(scanner, one, tmp_path) for one in cases]
    assert [(one.case.name, one.code, one.detail) for one in told if not one.is_right] == []
    assert [one.case.name for one in told if one.seconds >= SECONDS_MAX] == []
    assert max(one.peak_bytes for one in told) <= PICTURE_MEMORY_BYTES_MAX
    assert memory_bytes("self", "VmRSS") - before <= GROWTH_BYTES_MAX
    assert scanner.pids == [pid]  # no picture took the child with it
    assert logged == []
    assert not any(str(tmp_path) in one.detail for one in told)
    assert await _is_well(scanner, tmp_path)


async def test_each_code_is_somebodys() -> None:
    """A check that no case reaches would be missed by nobody."""
    reached = {code for one in pictures() for code in one.codes}
    assert reached == {
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
    }


async def test_a_picture_that_takes_too_long_is_left(tmp_path: Path) -> None:
    """A progressive JPEG of 16 megapixels, gone over three thousand times."""
    content = encoded(Image.new("L", (4_096, 4_096)), "JPEG", progressive=True)
    scan = content.rindex(b"\xff\xda")
    slow = case("scans", content[:scan] + content[scan:-2] * 3_000 + b"\xff\xd9", "image/jpeg", "scan_timed_out")
    async with ImageScanner(pixels_max=PIXELS_MAX, timeout_s=1.0, concurrency=1) as hurried:
        told = await scanned(hurried, slow, tmp_path)
        assert told.is_right, told.code
        assert told.seconds < SECONDS_MAX
        hurried._timeout_s = SECONDS_MAX  # the next one is not about time
        assert await _is_well(hurried, tmp_path)


# Negative controls: with a limit off, the same checks turn red.


async def test_without_a_limit_on_memory_the_check_on_memory_is_red(tmp_path: Path) -> None:
    large = case("large", png(8_000, 7_900, deflated_zeros(7_900 * 24_001)), "image/png")
    cap = 200 * MEBIBYTE_BYTES
    async with ImageScanner(pixels_max=PIXELS_MAX, memory_bytes_max=0, concurrency=1) as free:
        told = await scanned(free, large, tmp_path)
        assert told.code == ""
        assert told.peak_bytes > cap
        assert address_space_bytes_max(free.pids[0]) == "unlimited"
    async with ImageScanner(pixels_max=PIXELS_MAX, memory_bytes_max=cap, concurrency=1) as bound:
        assert "memory" in (await scanned(bound, large, tmp_path)).detail
        assert await _is_well(bound, tmp_path)
        assert address_space_bytes_max(bound.pids[0]) == str(cap)
        assert memory_bytes(bound.pids[0], "VmPeak") <= cap


async def test_without_a_limit_on_pixels_the_corpus_is_red(tmp_path: Path) -> None:
    bomb = case("bomb", png(9_000, 9_000, deflated_zeros(9_000 * 27_001)), "image/png", PIXELS)
    async with ImageScanner(pixels_max=10**9, concurrency=1) as free:
        assert not (await scanned(free, bomb, tmp_path)).is_right
    async with ImageScanner(pixels_max=PIXELS_MAX, concurrency=1) as bound:
        assert (await scanned(bound, bomb, tmp_path)).is_right


BLIND = """
from sightline.adapters import image_decoder, images
images.EICAR = image_decoder.EICAR = bytes(range(68))
image_decoder.EXPANSION_MAX = 10**9
image_decoder.FRAMES_MAX = 10**6
image_decoder.main()
"""


async def test_with_the_checks_of_the_decoder_off_the_corpus_is_red(
    tmp_path: Path,
) -> None:
    (tmp_path / "blind_decoder.py").write_text(BLIND)
    async with ImageScanner(pixels_max=PIXELS_MAX, timeout_s=SECONDS_MAX, concurrency=1) as blind:
        blind._children[0]._module = "blind_decoder"
        blind._children[0]._environ["PYTHONPATH"] = str(tmp_path)
        named = {"eicar-alone", "eicar-zTXt", "webp-1001-frames", "gif-canvas-below"}
        red = [await scanned(blind, one, tmp_path) for one in pictures() if one.name in named]
    assert {one.case.name for one in red if not one.is_right} == named


async def _is_well(scanner: ImageScanner, directory: Path) -> bool:
    whole: Told = await scanned(scanner, case("whole", encoded(noise(), "PNG"), "image/png"), directory)
    return whole.is_right
