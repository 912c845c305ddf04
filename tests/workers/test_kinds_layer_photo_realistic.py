"""One photograph into layers: what is written, that it composes back, and that any picture will do."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sightline.adapters import builtin
from sightline.adapters.onnx import RUNTIME, runtime_version
from sightline.workers.kinds import InputFile, JobInput, JobOutput, KindFailed, ModelFile
from sightline.workers.kinds.layer_photo_realistic import LAYER_NAMES, run
from sightline.workers.runner_client import Runner

MANIFEST = builtin.manifests()["depth-heuristic"]
MODEL = ModelFile(str(builtin.model_path(MANIFEST)), MANIFEST.sha256, msgspec.to_builtins(MANIFEST))
PORTRAIT = Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg")
PSNR_DB_MIN = 35.0


def quiet(percent: int, message: str) -> None:
    """Nobody listens."""


def job(path: Path, directory: Path, model: ModelFile | None = MODEL, **params: Any) -> JobInput:
    directory.mkdir(exist_ok=True)
    inputs = [InputFile(str(path), "image/any")]
    return JobInput("j", "layer-photo-realistic", params, inputs, model, str(directory))


def made(path: Path, directory: Path, **params: Any) -> JobOutput:
    return run(job(path, directory, **params), quiet)


def landscape(path: Path, width: int = 480, height: int = 320) -> Path:
    """Sky, a pale ridge, and rough grass before them."""
    random = np.random.default_rng(4)
    down = np.linspace(0, 1, height)[:, None, None]
    along = np.linspace(0, 6, width)[None, :, None]
    picture = np.array([190, 210, 235]) + 20 * down + 0 * along
    for top, color, rough in ((0.45, (170, 185, 200), 2), (0.7, (60, 100, 40), 40)):
        ridge = down > top + 0.08 * np.sin(along * (2 + 3 * top))
        picture = np.where(ridge, np.array(color) + random.normal(0, rough, (height, width, 1)), picture)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    return path


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def layers_of(output: JobOutput, directory: Path) -> list[Image.Image]:
    return [opened(directory / one.name) for one in output.outputs if one.name.startswith("Layer_")]


def composed(layers: list[Image.Image]) -> NDArray[np.float64]:
    """As any viewer lays them over each other."""
    result = layers[0].convert("RGBA")
    for layer in layers[1:]:
        result = Image.alpha_composite(result, layer)
    return np.asarray(result.convert("RGB"), np.float64)


def psnr_db(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    error = float(np.mean((one - other) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


@pytest.mark.parametrize("num_layers", [2, 3, 4, 5])
@pytest.mark.parametrize("source", ["portrait", "landscape"])
def test_layers_compose_back_and_the_background_alone_does_not(tmp_path: Path, source: str, num_layers: int) -> None:
    path = PORTRAIT if source == "portrait" else landscape(tmp_path / "in.png")
    output = made(path, tmp_path / "out", num_layers=num_layers)
    original = np.asarray(opened(path).convert("RGB"), np.float64)
    layers = layers_of(output, tmp_path / "out")
    assert len(layers) == num_layers
    assert psnr_db(composed(layers), original) >= PSNR_DB_MIN
    for missing in range(1, num_layers):  # the control: no layer is there for nothing
        assert psnr_db(composed(layers[:missing]), original) < PSNR_DB_MIN
    composite = np.asarray(opened(tmp_path / "out" / "composite.png"), np.float64)
    assert np.abs(composite - composed(layers)).max() <= 1


@pytest.mark.parametrize("feather_radius", [1, 5])
def test_any_feather_composes_back(tmp_path: Path, feather_radius: int) -> None:
    output = made(PORTRAIT, tmp_path, feather_radius=feather_radius)
    original = np.asarray(opened(PORTRAIT), np.float64)
    layers = layers_of(output, tmp_path)
    assert psnr_db(composed(layers), original) >= PSNR_DB_MIN
    alpha = np.asarray(layers[2])[..., 3]
    assert ((alpha > 0) & (alpha < 255)).any()


def test_what_is_written_is_what_the_seed_names(tmp_path: Path) -> None:
    output = made(PORTRAIT, tmp_path, num_layers=3)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(one.name for one in output.outputs)
    assert [one.name for one in output.outputs] == [
        "Layer_1_background.png",
        "Layer_2_midground.png",
        "Layer_3_foreground.png",
        "composite.png",
        "depth_map.png",
        "layer_manifest.json",
    ]
    sizes = {opened(path).size for path in tmp_path.glob("*.png")}
    assert sizes == {opened(PORTRAIT).size}
    assert opened(tmp_path / "depth_map.png").mode == "L"


def test_the_manifest_tells_the_truth(tmp_path: Path) -> None:
    output = made(PORTRAIT, tmp_path, num_layers=5, max_size=300)
    manifest = json.loads((tmp_path / "layer_manifest.json").read_text())
    assert manifest == msgspec.to_builtins(output.manifest)
    layers = manifest["layers"]
    assert sum(layer["coverage_percent"] for layer in layers) == pytest.approx(100, abs=0.5)
    assert all(layer["coverage_percent"] > 0 for layer in layers)
    assert [layer["order"] for layer in layers] == [1, 2, 3, 4, 5]
    assert [layer["is_opaque"] for layer in layers] == [True, False, False, False, False]
    assert (layers[0]["depth_range"][0], layers[-1]["depth_range"][1]) == (0, 1)
    assert all(back["depth_range"][1] == front["depth_range"][0] for back, front in pairwise(layers))
    assert all((tmp_path / layer["file"]).exists() for layer in layers)
    assert manifest["image"] == {"width_px": 256, "height_px": 300}
    assert manifest["original"] == {"width_px": 512, "height_px": 600}
    assert manifest["params"] == {"num_layers": 5, "max_size": 300, "feather_radius": 2, "export_layers": True}
    assert manifest["depth_source"] == "heuristic"
    assert manifest["model"] == {"name": "depth-heuristic", "sha256": MANIFEST.sha256}


def test_depth_ranges_are_those_of_the_depth_map(tmp_path: Path) -> None:
    output = made(PORTRAIT, tmp_path, num_layers=3)
    depth = np.asarray(opened(tmp_path / "depth_map.png"), np.float64) / 255
    for layer in output.manifest["layers"]:
        low, high = layer["depth_range"]
        share = 100 * float(np.mean((depth >= low) & (depth < high + (high == 1))))
        assert layer["coverage_percent"] == pytest.approx(share, abs=3)  # specks were swallowed by their surroundings


def test_without_layers_only_the_rest_is_written(tmp_path: Path) -> None:
    output = made(PORTRAIT, tmp_path, export_layers=False)
    names = ["composite.png", "depth_map.png", "layer_manifest.json"]
    assert [one.name for one in output.outputs] == names
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    assert {layer["file"] for layer in output.manifest["layers"]} == {None}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for directory in ("a", "b"):
        made(PORTRAIT, tmp_path / directory)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_different_photographs_give_different_layers(tmp_path: Path) -> None:
    one = made(PORTRAIT, tmp_path / "a", num_layers=3)
    other = made(landscape(tmp_path / "in.png"), tmp_path / "b", num_layers=3)
    for name in ("Layer_1_background.png", "Layer_2_midground.png", "Layer_3_foreground.png", "depth_map.png"):
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()
    coverages = [[layer["coverage_percent"] for layer in output.manifest["layers"]] for output in (one, other)]
    assert coverages[0] != coverages[1]


ODD: dict[str, Callable[[Path], Image.Image]] = {
    "grey": lambda _: opened(PORTRAIT).convert("L"),
    "one pixel": lambda _: Image.new("RGB", (1, 1), "red"),
    "two pixels": lambda _: Image.new("RGB", (2, 1), "red"),
    "flat": lambda _: Image.new("RGB", (200, 150), (120, 130, 140)),
    "black": lambda _: Image.new("RGB", (64, 64)),
    "strip": lambda _: opened(PORTRAIT).resize((2, 3000)),
    "wide strip": lambda _: opened(PORTRAIT).resize((3000, 2)),
    "palette": lambda _: opened(PORTRAIT).convert("P"),
    "one bit": lambda _: opened(PORTRAIT).convert("1"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures(tmp_path: Path, name: str) -> None:
    image = ODD[name](tmp_path)
    image.save(tmp_path / "in.png")
    output = made(tmp_path / "in.png", tmp_path / "out", num_layers=5)
    layers = layers_of(output, tmp_path / "out")
    height, width = max(1, round(image.height * min(1, 1024 / max(image.size)))), layers[0].width
    assert layers[0].size == (width, height)
    wanted = image.convert("RGB").resize(layers[0].size, Image.Resampling.LANCZOS)
    assert psnr_db(composed(layers), np.asarray(wanted, np.float64)) >= PSNR_DB_MIN
    coverage = [layer["coverage_percent"] for layer in output.manifest["layers"]]
    assert sum(coverage) == pytest.approx(100, abs=0.5)
    assert all(coverage) == (image.width * image.height >= len(LAYER_NAMES[5]))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"num_layers": 6}, "rule_violated"),
        ({"num_layers": 1}, "rule_violated"),
        ({"max_size": "big"}, "rule_violated"),
        ({"unknown": 1}, "rule_violated"),
        ({"model": None}, "rule_violated"),
        ({"model": ModelFile(MODEL.path, "0" * 64)}, "model_digest_mismatch"),
        ({"model": ModelFile("/absent.onnx", "1" * 64)}, "model_missing"),
    ],
)
def test_what_it_refuses(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    with pytest.raises(KindFailed) as failed:
        run(job(PORTRAIT, tmp_path, **change), quiet)
    assert failed.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_broken_picture_is_refused_without_naming_our_paths(tmp_path: Path) -> None:
    (tmp_path / "in.jpg").write_bytes(PORTRAIT.read_bytes()[:5000])
    (tmp_path / "no.jpg").write_bytes(b"not a picture")
    for name in ("in.jpg", "no.jpg"):
        with pytest.raises(KindFailed) as failed:
            made(tmp_path / name, tmp_path / "out")
        assert failed.value.code == "image_undecodable"
        assert str(tmp_path) not in failed.value.message


async def test_through_the_runner_with_progress_and_a_receipt(tmp_path: Path) -> None:
    heard: list[int] = []
    runner = Runner(memory_bytes_max=4096 * 1024 * 1024)
    try:
        asked = job(PORTRAIT, tmp_path / "out")
        answer = await runner.run(asked, 60, lambda percent, _: heard.append(percent))
    finally:
        await runner.close()
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0, 100)
    assert answer.receipt is not None
    assert answer.receipt.execution_provider in {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert (answer.receipt.runtime, answer.receipt.runtime_version) == (RUNTIME, runtime_version())
    assert (answer.receipt.model_sha256, answer.receipt.batch_size) == (MANIFEST.sha256, 1)
    assert answer.receipt.intra_op_threads == 1
    assert all(name.endswith("_ms") for name in answer.timings)
    assert {output.name: output.size_bytes for output in answer.outputs} == {
        path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()
    }
