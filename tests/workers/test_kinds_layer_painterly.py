"""One photograph into painted layers: every style, the same bytes for the same seed, and any picture will do."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from tests.workers.test_kinds_layer_photo_realistic import (
    MODEL,
    ODD,
    PORTRAIT,
    composed,
    job,
    layers_of,
    opened,
    psnr_db,
    quiet,
)

from sightline.domain.kinds import PaintingStyle
from sightline.workers.kinds import JobInput, JobOutput, KindFailed, layer_painterly, layer_photo_realistic
from sightline.workers.kinds.painterly_styles import STYLES, painted
from sightline.workers.runner_client import Runner

PHOTO_PSNR_DB = 35.0  # at least so like the photograph, and it has not been painted
LIKENESS_MIN = 0.7


def asked(path: Path, directory: Path, **params: Any) -> JobInput:
    return replace(job(path, directory, **({"max_size": 256, "num_layers": 3} | params)), kind="layer-painterly")


def made(path: Path, directory: Path, **params: Any) -> JobOutput:
    return layer_painterly.run(asked(path, directory, **params), quiet)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def pixels(path: Path) -> NDArray[np.float64]:
    return np.asarray(opened(path).convert("RGB"), np.float64)


def coarse(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is light and what is dark, at arm's length."""
    image = Image.fromarray(picture.astype(np.uint8)).convert("L").resize((24, 24), Image.Resampling.BOX)
    return np.asarray(image, np.float64).ravel()


def photo(size: int = 256) -> NDArray[np.float64]:
    image = opened(PORTRAIT).convert("RGB")
    scale = size / max(image.size)
    shape = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(shape, Image.Resampling.LANCZOS), np.float64)


def test_every_style_that_may_be_asked_for_can_be_painted() -> None:
    assert list(STYLES) == list(get_args(PaintingStyle))


@pytest.mark.parametrize("style", STYLES)
def test_each_style_paints_the_picture_and_its_layers_compose(tmp_path: Path, style: str) -> None:
    output = made(PORTRAIT, tmp_path, style=style)
    composite = pixels(tmp_path / "composite.png")
    layers = layers_of(output, tmp_path)
    assert len(layers) == 3
    assert np.abs(composite - composed(layers)).max() <= 1
    assert psnr_db(composite, photo()) < PHOTO_PSNR_DB
    assert np.corrcoef(coarse(composite), coarse(photo()))[0, 1] > LIKENESS_MIN
    # The control: not any picture passes for this one.
    assert abs(np.corrcoef(coarse(composite[::-1]), coarse(photo()))[0, 1]) < LIKENESS_MIN


def test_no_two_styles_paint_alike() -> None:
    picture = photo(128).astype(np.uint8)
    visible = np.ones(picture.shape[:2], bool)
    paintings = {style: painted(picture, visible, style=style, strength=0.5, seed=1, band=0) for style in STYLES}
    for one, painting in paintings.items():
        for other, another in paintings.items():
            assert one == other or psnr_db(painting.astype(float), another.astype(float)) < 30, (one, other)


ELSEWHERE = """
import msgspec, sys
from sightline.workers.kinds import JobInput, layer_painterly
for line in sys.stdin:
    layer_painterly.run(msgspec.json.decode(line, type=JobInput), lambda percent, message: None)
"""


def test_the_same_seed_gives_the_same_bytes_again_and_in_another_process(tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    opened(PORTRAIT).resize((150, 176)).save(source)
    elsewhere = []
    for style in STYLES:
        made(source, tmp_path / f"here-{style}", style=style, seed=7)
        elsewhere.append(msgspec.json.encode(asked(source, tmp_path / f"there-{style}", style=style, seed=7)))
    subprocess.run(
        [sys.executable, "-P", "-c", ELSEWHERE],
        input=b"\n".join(elsewhere),
        check=True,
        timeout=120,
        # NumPy as on a processor of 2010: what it adds up must not hang on how wide its registers are.
        env={"PYTHONHASHSEED": "99", "OMP_NUM_THREADS": "2", "NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3"},
    )
    for style in STYLES:
        assert digests(tmp_path / f"here-{style}") == digests(tmp_path / f"there-{style}"), style
        made(source, tmp_path / f"again-{style}", style=style, seed=7)
        assert digests(tmp_path / f"here-{style}") == digests(tmp_path / f"again-{style}"), style


@pytest.mark.parametrize("style", STYLES)
def test_another_seed_paints_otherwise(style: str) -> None:
    picture = photo(96).astype(np.uint8)
    visible = np.ones(picture.shape[:2], bool)
    asked = {"style": style, "strength": 0.5, "band": 0}
    one, same, other = (painted(picture, visible, seed=seed, **asked) for seed in (1, 1, 2))  # type: ignore[arg-type]  # a dictionary of several types
    assert (one == same).all()
    assert (one != other).any()


def test_chance_that_does_not_come_from_the_seed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = np.random.PCG64
    monkeypatch.setattr(np.random, "PCG64", lambda _: seeded())
    for directory in ("a", "b"):
        made(PORTRAIT, tmp_path / directory)
    assert digests(tmp_path / "a") != digests(tmp_path / "b")


def test_without_strength_the_layers_are_those_of_the_photograph(tmp_path: Path) -> None:
    made(PORTRAIT, tmp_path / "painted", strength=0)
    plain = job(PORTRAIT, tmp_path / "plain", max_size=256, num_layers=3)
    layer_photo_realistic.run(plain, quiet)
    one, other = digests(tmp_path / "painted"), digests(tmp_path / "plain")
    assert one.pop("layer_manifest.json") != other.pop("layer_manifest.json")
    assert one == other
    assert psnr_db(pixels(tmp_path / "painted" / "composite.png"), photo()) >= PHOTO_PSNR_DB


def test_more_strength_leaves_less_of_the_photograph(tmp_path: Path) -> None:
    found = []
    for strength in (0.05, 0.2, 0.5, 1.0):
        made(PORTRAIT, tmp_path / str(strength), strength=strength, export_layers=False)
        found.append(psnr_db(pixels(tmp_path / str(strength) / "composite.png"), photo()))
    assert found == sorted(found, reverse=True)


def test_the_manifest_says_how_it_was_painted(tmp_path: Path) -> None:
    output = made(PORTRAIT, tmp_path, style="ink", seed=2**32 - 1, strength=0.25)
    manifest = json.loads((tmp_path / "layer_manifest.json").read_text())
    assert manifest == msgspec.to_builtins(output.manifest)
    assert manifest["kind"] == "layer-painterly"
    painting = manifest["painting"]
    assert (painting["style"], painting["strength"], painting["seed"]) == ("ink", 0.25, 2**32 - 1)
    assert "no generative model" in painting["method"]
    assert painting["versions"].keys() == {"numpy", "pillow"}
    assert manifest["params"]["style"] == "ink"
    assert [layer["name"] for layer in manifest["layers"]] == ["background", "midground", "foreground"]


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures(tmp_path: Path, name: str) -> None:
    ODD[name](tmp_path).save(tmp_path / "in.png")
    output = made(tmp_path / "in.png", tmp_path / "out", num_layers=5, max_size=1024 if "strip" in name else 256)
    composite = pixels(tmp_path / "out" / "composite.png")
    assert np.abs(composite - composed(layers_of(output, tmp_path / "out"))).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "I;16"])
def test_pictures_of_other_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("in.tiff" if mode == "CMYK" else "in.png")
    opened(PORTRAIT).resize((90, 120)).convert("L" if mode == "I;16" else "RGB").convert(mode).save(path)
    made(path, tmp_path / "out")
    assert opened(tmp_path / "out" / "composite.png").size == (90, 120)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (20, 700)])
def test_no_size_is_too_small_for_any_style(style: str, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    visible = np.zeros(shape, bool)
    visible[-1, -1] = True
    for strength in (0.01, 1.0):
        done = painted(picture, visible, style=style, strength=strength, seed=0, band=4)
        assert (done.shape, done.dtype) == (picture.shape, picture.dtype)


def test_what_cannot_be_seen_is_not_painted() -> None:
    picture = photo(128).astype(np.uint8)
    done = painted(picture, np.zeros(picture.shape[:2], bool), style="oil", strength=1, seed=0, band=1)
    assert (done == picture).all()


@pytest.mark.parametrize(
    "params",
    [
        {"style": "cubist"},
        {"strength": 1.01},
        {"strength": -0.1},
        {"seed": -1},
        {"seed": 2**32},
        {"num_layers": 6},
        {"negative_prompt": "blurry"},
    ],
)
def test_what_it_refuses(tmp_path: Path, params: dict[str, Any]) -> None:
    with pytest.raises(KindFailed) as failed:
        made(PORTRAIT, tmp_path, **params)
    assert failed.value.code == "rule_violated"
    assert list(tmp_path.iterdir()) == []


async def test_through_the_runner_with_progress_and_a_receipt(tmp_path: Path) -> None:
    heard: list[int] = []
    runner = Runner(memory_bytes_max=4096 * 1024 * 1024)
    try:
        answer = await runner.run(asked(PORTRAIT, tmp_path), 60, lambda percent, _: heard.append(percent))
    finally:
        await runner.close()
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0, 100)
    assert answer.receipt is not None
    assert answer.receipt.model_sha256 == MODEL.sha256
    assert len(answer.outputs) == 6
