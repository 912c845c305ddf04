"""Any picture as upright RGB."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.workers.kinds import KindFailed
from sightline.workers.kinds.pictures import read_rgb, write_png

HALVES = np.zeros((20, 30, 3), np.uint8)
HALVES[:, :15] = (200, 40, 10)


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(HALVES).save(tmp_path / "in.png", exif=exif)
    pixels, original = read_rgb(tmp_path / "in.png", 100)
    assert original == (20, 30)
    assert (pixels == np.rot90(HALVES, -1)).all()


@pytest.mark.parametrize(("size", "wanted"), [((600, 300), (100, 50)), ((2, 3000), (1, 100)), ((90, 50), (90, 50))])
def test_only_larger_pictures_are_shrunk(tmp_path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "in.png")
    pixels, original = read_rgb(tmp_path / "in.png", 100)
    assert original == size
    assert pixels.shape == (wanted[1], wanted[0], 3)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    assert read_rgb(tmp_path / "clear.png", 100)[0][0, 0].tolist() == [255, 255, 255]
    assert read_rgb(tmp_path / "half.png", 100)[0][0, 0].tolist() == pytest.approx([255, 127, 127], abs=1)


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "in.png")
    pixels, _ = read_rgb(tmp_path / "in.png", 100)
    assert np.abs(pixels[..., 0].astype(float) - ramp / 257).max() <= 1


def test_floats_use_the_range_they_have(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)).save(tmp_path / "in.tiff")
    assert read_rgb(tmp_path / "in.tiff", 100)[0][0, :, 0].tolist() == [0, 128, 255]


def test_four_inks_are_read_as_colours(tmp_path: Path) -> None:
    Image.fromarray(HALVES).convert("CMYK").save(tmp_path / "in.jpg", quality=95)
    pixels, _ = read_rgb(tmp_path / "in.jpg", 100)
    assert np.abs(pixels[10, 5].astype(int) - HALVES[10, 5]).max() < 20
    assert pixels[10, 25].max() < 20


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_of_an_animation_the_first_frame(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"in.{kind}", save_all=True, append_images=frames[1:])
    pixels, _ = read_rgb(tmp_path / f"in.{kind}", 100)
    assert pixels[4, 4].tolist() == pytest.approx([255, 0, 0], abs=8)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (1000, 1000)).save(tmp_path / "in.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900_000)
    with pytest.raises(KindFailed) as failed:
        read_rgb(tmp_path / "in.png", 100)
    assert failed.value.code == "image_too_many_pixels"


def test_png_is_written_with_the_channels_given(tmp_path: Path) -> None:
    for channels, mode in ((None, "L"), (3, "RGB"), (4, "RGBA")):
        pixels = np.arange(64 if channels is None else 64 * channels, dtype=np.uint8)
        write_png(tmp_path / "out.png", pixels.reshape((8, 8) if channels is None else (8, 8, channels)))
        with Image.open(tmp_path / "out.png") as image:
            assert image.mode == mode
