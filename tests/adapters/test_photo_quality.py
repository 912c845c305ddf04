"""The built-in classifier: against its tool, against NumPy, and what it says of photographs that were spoilt."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sightline.adapters import builtin
from sightline.adapters.onnx import Session, SessionCache

TOOL = Path(__file__).parents[2] / "tools" / "build_photo_quality.py"
NAME = "photo-quality-heuristic"
MANIFEST = builtin.manifests()[NAME]
PORTRAIT = Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg")

Plane = NDArray[np.float64]


@pytest.fixture(scope="module")
def quality() -> Session:
    return SessionCache().get(builtin.model_path(MANIFEST), MANIFEST.sha256)


def scores_of(quality: Session, picture: Image.Image) -> dict[str, float]:
    values = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    found = quality.run({"image": values})["scores"]
    assert found.shape == (1, len(MANIFEST.labels))
    return dict(zip(MANIFEST.labels, map(float, found[0]), strict=True))


def window_mean(plane: Plane, size: int) -> Plane:
    padded = np.pad(plane, size // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return np.asarray(np.nanmean(windows, axis=(2, 3)))


def reference(picture: Image.Image) -> dict[str, float]:
    luma = np.asarray(picture.convert("RGB"), np.float64) @ [0.299, 0.587, 0.114] / 255
    fine, coarse = window_mean(luma, 3), window_mean(luma, 9)
    ratio = ((luma - fine) ** 2).mean() / (((fine - coarse) ** 2).mean() + 1e-5)
    sharp = ratio**2 / (ratio**2 + 0.08**2)
    dark, bright = (1 / (1 + np.exp(-by / 0.03)) for by in (0.2 - luma.mean(), luma.mean() - 0.8))
    return {
        "sharp": sharp,
        "blurred": 1 - sharp,
        "well_exposed": 1 - dark - bright,
        "dark": dark,
        "bright": bright,
    }


def portrait() -> Image.Image:
    with Image.open(PORTRAIT) as image:
        return image.convert("RGB")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (5, 3), (160, 90)])
def test_the_graph_computes_what_it_says(quality: Session, size: tuple[int, int]) -> None:
    for picture in (noise(*size), portrait().resize(size)):
        assert scores_of(quality, picture) == pytest.approx(reference(picture), abs=1e-4)


def likeliest(quality: Session, picture: Image.Image) -> tuple[str, str]:
    """Of each of the two groups; their scores add up to 1."""
    scores = scores_of(quality, picture)
    groups = [{name: scores[name] for name in names} for names in (MANIFEST.labels[:2], MANIFEST.labels[2:])]
    for group in groups:
        assert sum(group.values()) == pytest.approx(1, abs=1e-5)
    first, second = (max(group, key=group.__getitem__) for group in groups)
    return first, second


def test_what_it_says_of_a_photograph_and_of_what_was_done_to_it(quality: Session) -> None:
    picture = portrait()
    assert likeliest(quality, picture) == ("sharp", "well_exposed")
    for radius in (1.5, 3, 6):
        assert likeliest(quality, picture.filter(ImageFilter.GaussianBlur(radius)))[0] == "blurred"
    assert likeliest(quality, picture.point(lambda value: value * 0.4)) == ("sharp", "dark")
    assert likeliest(quality, picture.point(lambda value: 215 + value * 0.15)) == ("sharp", "bright")


def test_a_sharp_head_before_a_soft_background_is_sharp(quality: Session) -> None:
    sharp = portrait()
    soft = sharp.filter(ImageFilter.GaussianBlur(6))
    soft.paste(sharp.crop((180, 100, 340, 300)), (180, 100))
    assert likeliest(quality, soft)[0] == "sharp"


@pytest.mark.parametrize(("value", "exposure"), [(0, "dark"), (128, "well_exposed"), (255, "bright")])
def test_a_picture_of_nothing_is_not_sharp(quality: Session, value: int, exposure: str) -> None:
    assert likeliest(quality, Image.new("L", (64, 48), value)) == ("blurred", exposure)


def test_the_committed_files_are_what_the_tool_builds(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-P", TOOL, tmp_path], check=True, stdout=subprocess.DEVNULL)
    for name in (f"{NAME}.onnx", f"{NAME}.json"):
        assert (tmp_path / name).read_bytes() == (builtin.DIRECTORY / name).read_bytes(), name


def test_the_manifest_says_that_it_is_a_heuristic() -> None:
    assert (MANIFEST.task, MANIFEST.label_source) == ("inspect", "heuristic")
    assert "not a trained network" in MANIFEST.description
    assert builtin.model_path(MANIFEST).stat().st_size == MANIFEST.size_bytes
