"""How far two files lie apart: every sort of file, honest ones and others, measured in a confined child."""

import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from sightline.adapters import difference_meter
from sightline.adapters.differences import JSON_BYTES_MAX, OUT_OF_MEMORY, Measured, Meter, Question

pytestmark = pytest.mark.asyncio(loop_scope="module")

LITTLE_BYTES = 256 * 1024 * 1024  # what the child's libraries take, and hardly more
Measure = Literal["numbers", "picture"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def meter() -> AsyncIterator[Meter]:
    async with Meter() as opened:
        yield opened


async def measured(
    meter: Meter, directory: Path, first: bytes, second: bytes, measure: Measure, unsaid: tuple[str, ...] = ()
) -> Measured:
    paths = [directory / "first", directory / "second"]
    for path, content in zip(paths, (first, second), strict=True):
        path.write_bytes(content)
    return await meter.measure(paths[0], paths[1], measure, unsaid=unsaid)


def array(values: Any, **more: Any) -> bytes:
    written = io.BytesIO()
    np.save(written, np.asarray(values, **more), allow_pickle=True)
    return written.getvalue()


def picture(pixels: Any, mode: str | None = None, kind: str = "PNG", **more: Any) -> bytes:
    written = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image.convert(mode) if mode else image).save(written, kind, **more)
    return written.getvalue()


def said(value: Any) -> bytes:
    return json.dumps(value).encode()


GREY = np.full((8, 10), 100, np.uint8)
BRIGHTER = GREY.copy()
BRIGHTER[2, 3] = 110


@pytest.mark.parametrize(
    ("first", "second", "distance_max"),
    [
        (array([1.0, 2.0]), array([1.0, 2.25]), 0.25),
        (array([[1, 2], [3, 4]]), array([[1.0, 2.0], [3.5, 4.0]]), 0.5),
        (array([np.nan, np.inf, 1.0]), array([np.nan, np.inf, 1.0], dtype=np.float32), 0.0),
        (array([]), array([]), 0.0),
        (array(3.0), array(1.0), 2.0),
        (array([True, False]), array([True, True]), 1.0),
        (array(np.zeros((3, 2), order="F")), array(np.ones((3, 2))), 1.0),
        (said({"score": [0.5, 1]}), said({"score": [0.25, 1.0]}), 0.25),
    ],
)
async def test_numbers(meter: Meter, tmp_path: Path, first: bytes, second: bytes, distance_max: float) -> None:
    assert await measured(meter, tmp_path, first, second, "numbers") == Measured(distance_max)
    assert await measured(meter, tmp_path, second, first, "numbers") == Measured(distance_max)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (array([1.0]), array([1.0, 2.0]), "shapes [1] and [2]"),
        (array([1.0]), array([np.nan]), "where one is a number, the other is none, or infinite"),
        (array([np.inf]), array([-np.inf]), "where one is a number, the other is none, or infinite"),
        (array(["a"]), array(["b"]), "the array holds no numbers"),
        (array([1.0]), said([1.0]), "one is an array, the other is not"),
        (array([1.0])[:70], array([1.0]), "no array that we can read"),
        (array([{}], dtype=object), array([{}], dtype=object), "no array that we can read"),
        (said({"a": "x"}), said({"a": "y"}), "they differ at $.a"),
        (b"[" * 100_000, b"[]", "nested too deeply"),
        (b"{", b"{}", "no JSON that we can read"),
        (b"\xff", b"{}", "no JSON that we can read"),
        (b" " * (JSON_BYTES_MAX + 1), b"{}", f"JSON of more than {JSON_BYTES_MAX} bytes"),
    ],
)
async def test_numbers_that_have_no_distance(
    meter: Meter, tmp_path: Path, first: bytes, second: bytes, reason: str
) -> None:
    assert await measured(meter, tmp_path, first, second, "numbers") == Measured(reason=reason)


async def test_members_that_say_what_ran_are_left_out(meter: Meter, tmp_path: Path) -> None:
    first, second = said({"model": "a", "in": {"model": 1}}), said({"model": "b", "in": {"model": 2}})
    found = await measured(meter, tmp_path, first, second, "numbers", ("model",))
    assert found == Measured(1.0), "at the top alone"
    assert (await measured(meter, tmp_path, first, second, "numbers")).distance_max is None, "the control"


async def test_pictures(meter: Meter, tmp_path: Path) -> None:
    found = await measured(meter, tmp_path, picture(GREY), picture(BRIGHTER), "picture")
    # Three of four channels of one of eighty pixels, by the definition.
    mean = 3 * 10**2 / (4 * 80)
    assert found.distance_max == 10
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 / mean))


async def test_the_same_pixels_in_other_bytes_are_no_distance_apart(meter: Meter, tmp_path: Path) -> None:
    others = [picture(GREY, compress_level=0), picture(GREY, "RGB"), picture(GREY, "RGBA"), picture(GREY, "P")]
    for other in others:
        assert await measured(meter, tmp_path, picture(GREY), other, "picture") == Measured(0.0)


async def test_what_is_transparent_in_one_alone_is_different(meter: Meter, tmp_path: Path) -> None:
    clear = np.dstack([GREY, GREY, GREY, np.zeros_like(GREY)])
    found = await measured(meter, tmp_path, picture(GREY), picture(clear), "picture")
    assert found.distance_max == 255


def bomb() -> bytes:
    """Larger than is compared, in few bytes."""
    written = io.BytesIO()
    Image.new("1", (40_000, 1_000)).save(written, "PNG")
    return written.getvalue()


def deep() -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(written, "PNG")
    return written.getvalue()


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (lambda: picture(GREY[:4]), "10 × 8 and 10 × 4 pixels"),
        (bomb, "more than 32000000 pixels"),
        (deep, "pixels of mode I;16 are not compared"),
        (lambda: picture(GREY)[:45], "no picture that we can read"),
        (lambda: b"", "no picture that we can read"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture that we can read"),
    ],
)
async def test_pictures_that_have_no_distance(
    meter: Meter, tmp_path: Path, second: Callable[[], bytes], reason: str
) -> None:
    assert await measured(meter, tmp_path, picture(GREY), second(), "picture") == Measured(reason=reason)


async def test_what_takes_too_long_or_too_much_is_an_answer(tmp_path: Path) -> None:
    large = array(np.zeros(2_000_000))
    async with Meter(timeout_s=0.0001) as hasty:
        found = await measured(hasty, tmp_path, large, large, "numbers")
        assert "not compared within" in found.reason or "comparing them" in found.reason
    many = said([[n] for n in range(400_000)])
    async with Meter(memory_bytes_max=LITTLE_BYTES) as poor:
        found = await measured(poor, tmp_path, many, many[:-2] + b"0]]", "numbers")
        assert found == Measured(reason=OUT_OF_MEMORY)
        assert (await measured(poor, tmp_path, said(1), said(2), "numbers")).distance_max == 1.0


async def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference_meter, "FILE_BYTES_MAX", 10)
    path = tmp_path / "file"
    path.write_bytes(b"[1, 2, 3, 4, 5]")
    question = Question(str(path), str(path), "numbers", [], 1.0)
    assert difference_meter.measured(question) == Measured(reason="larger than 10 bytes")


async def test_an_answer_that_cannot_be_read_is_an_answer_too(tmp_path: Path) -> None:
    """Of a child that was taken over. It is asked nothing more: each question has another one."""
    async with Meter(module="hostile_meter", environ={"PYTHONPATH": str(Path(__file__).parent)}) as meter:
        children = set()
        for _ in range(2):
            found = await measured(meter, tmp_path, b"1", b"2", "numbers")
            assert found == Measured(reason="comparing them brought an answer that cannot be read")
            children.add(meter._child.pid)
        assert children == {None}
