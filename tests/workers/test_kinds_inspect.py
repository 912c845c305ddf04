"""A picture through a classifier: the one that ships, others by their manifests, and what strangers send."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image, PngImagePlugin

from sightline.adapters import builtin
from sightline.adapters.onnx import MANIFEST as BESIDE
from sightline.adapters.onnx_graph import Graph
from sightline.domain.kinds import InvalidParameters, parse
from sightline.workers.kinds import InputFile, JobInput, JobOutput, KindFailed, ModelFile
from sightline.workers.kinds.inspect import Preprocessing, fit, run
from sightline.workers.runner_client import Runner

QUALITY = builtin.manifests()["photo-quality-heuristic"]
MODEL = ModelFile(str(builtin.model_path(QUALITY)), QUALITY.sha256, msgspec.to_builtins(QUALITY))
PORTRAIT = Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg")
MEMORY_BYTES = 4096 * 1024 * 1024


def quiet(percent: int, message: str) -> None:
    """Nobody listens."""


def job(path: Path, directory: Path, model: ModelFile | None = MODEL, **params: Any) -> JobInput:
    directory.mkdir(exist_ok=True)
    return JobInput("j", "inspect", params, [InputFile(str(path), "image/any")], model, str(directory))


def colour(path: Path, *rgb: int, size: tuple[int, int] = (40, 30)) -> Path:
    Image.new("RGB", size, rgb).save(path)
    return path


def scores(output: JobOutput) -> dict[str, float]:
    return {one["label"]: one["score"] for one in output.manifest["labels"]}


def test_what_is_written(tmp_path: Path) -> None:
    heard: list[int] = []
    output = run(job(PORTRAIT, tmp_path), lambda percent, _: heard.append(percent))
    assert [(one.name, one.content_type) for one in output.outputs] == [("inspection.json", "application/json")]
    assert json.loads((tmp_path / "inspection.json").read_text()) == output.manifest
    labels = output.manifest.pop("labels")
    assert [one["label"] for one in labels] == ["well_exposed", "sharp", "blurred", "dark", "bright"]
    assert output.manifest == {
        "kind": "inspect",
        "heuristic": True,
        "image": {"width_px": 512, "height_px": 600},
        "original": {"width_px": 512, "height_px": 600},
        "model": {"name": "photo-quality-heuristic", "sha256": QUALITY.sha256},
    }
    assert output.receipt is not None
    assert output.receipt.model_sha256 == QUALITY.sha256
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0, 100)


def test_as_many_labels_as_were_asked_for(tmp_path: Path) -> None:
    assert list(scores(run(job(PORTRAIT, tmp_path, top_k=1), quiet))) == ["well_exposed"]
    assert list(scores(run(job(PORTRAIT, tmp_path, score_min=0.5), quiet))) == ["well_exposed", "sharp"]
    assert scores(run(job(colour(tmp_path / "c.png", 9, 9, 9), tmp_path, score_min=1), quiet)) == {"blurred": 1.0}


# Classifiers of others


def classifier(
    directory: Path,
    *,
    manifest: dict[str, Any] | str,
    layout: str = "NCHW",
    make: Callable[[Graph], str] | None = None,
    kind: int = TensorProto.FLOAT,
) -> ModelFile:
    """The mean of each channel, each a class; its manifest lies beside its graph."""
    graph = Graph()
    axes = graph.ints("axes", *((2, 3) if layout == "NCHW" else (1, 2)))
    graph.add("ReduceMean", "image", axes, to="means", keepdims=0)
    output = make(graph) if make else "means"
    shape: list[int | str] = [1, 3, "h", "w"] if layout == "NCHW" else [1, "h", "w", 3]
    data = graph.serialised(
        "m",
        inputs=[helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        outputs=[helper.make_tensor_value_info(output, kind, ["rows", "classes"])],
        opset=20,
        ir_version=10,
        metadata={BESIDE: manifest if isinstance(manifest, str) else json.dumps(manifest)},
    )
    path = directory / f"{hashlib.sha256(data).hexdigest()}.onnx"
    path.write_bytes(data)
    return ModelFile(str(path), path.stem)


RGB = {"labels": ["red", "green", "blue"], "postprocessing": {"activation": "none"}}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_channels_come_as_the_manifest_says(tmp_path: Path, layout: str, color: str) -> None:
    model = classifier(tmp_path, manifest=RGB | {"preprocessing": {"layout": layout, "color": color}}, layout=layout)
    found = scores(run(job(colour(tmp_path / "c.png", 255, 51, 0), tmp_path, model), quiet))
    red, green, blue = (1.0, 0.2, 0.0) if color == "RGB" else (0.0, 0.2, 1.0)
    assert found == pytest.approx({"red": red, "green": green, "blue": blue}, abs=1e-5)


def test_mean_and_deviation_are_taken_off_in_order(tmp_path: Path) -> None:
    wanted = {"scale": 1 / 255, "mean": [0.5, 0.0, 0.1], "std": [0.5, 1.0, 2.0]}
    model = classifier(tmp_path, manifest=RGB | {"preprocessing": wanted})
    found = scores(run(job(colour(tmp_path / "c.png", 204, 51, 255), tmp_path, model), quiet))
    assert found == pytest.approx({"red": 0.6, "green": 0.2, "blue": 0.45}, abs=1e-5)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("softmax", np.exp([1.0, 0.2, 0.0]) / np.exp([1.0, 0.2, 0.0]).sum()),
        ("sigmoid", 1 / (1 + np.exp([-1.0, -0.2, 0.0]))),
        ("none", [1.0, 0.2, 0.0]),
    ],
)
def test_answers_become_scores(tmp_path: Path, activation: str, expected: list[float]) -> None:
    model = classifier(tmp_path, manifest={"labels": RGB["labels"], "postprocessing": {"activation": activation}})
    found = scores(run(job(colour(tmp_path / "c.png", 255, 51, 0), tmp_path, model), quiet))
    assert list(found.values()) == pytest.approx(list(expected), abs=1e-6)


def test_a_learned_model_says_so_and_one_without_labels_counts(tmp_path: Path) -> None:
    picture = colour(tmp_path / "c.png", 0, 255, 0)
    learned = run(job(picture, tmp_path, classifier(tmp_path, manifest={"label_source": "learned"})), quiet)
    assert (learned.manifest["heuristic"], next(iter(scores(learned)))) == (False, "1")
    silent = run(job(picture, tmp_path, classifier(tmp_path, manifest={})), quiet)
    assert silent.manifest["heuristic"] is True


def pattern(width: int, height: int) -> NDArray[np.uint8]:
    """Columns in the first channel, rows in the second."""
    rows, columns = np.indices((height, width))
    planes = [columns * 255 // max(1, width - 1), rows * 255 // max(1, height - 1), columns * 0]
    return np.stack(planes, axis=-1).astype(np.uint8)


def extremes(picture: NDArray[np.uint8], channel: int) -> tuple[int, int]:
    return int(picture[..., channel].min()), int(picture[..., channel].max())


def test_a_picture_is_cut_or_stretched() -> None:
    wide = pattern(400, 100)
    cut = fit(wide, Preprocessing(size=(50, 50)))
    assert cut.shape == (50, 50, 3)
    assert extremes(cut, 0) == pytest.approx((96, 159), abs=2)
    assert extremes(fit(wide, Preprocessing(size=(50, 50), crop_share=0.5)), 1) == pytest.approx((64, 191), abs=3)
    assert extremes(fit(wide, Preprocessing(size=(50, 50), fit="stretch")), 0) == pytest.approx((0, 255), abs=4)
    for size in ((1, 1), (1, 3000), (3000, 1)):
        assert fit(pattern(*size), Preprocessing(size=(8, 16))).shape == (8, 16, 3)


def _texts(graph: Graph) -> str:
    return graph.cast("means", TensorProto.STRING, to="out")


def _too_few(graph: Graph) -> str:
    return graph.add("ReduceMax", "means", graph.ints("last", 1), to="out")


def _nothing(graph: Graph) -> str:
    ends = graph.ints("zero", 0)
    return graph.add("Slice", "means", ends, ends, ends, to="out")


def _no_number(graph: Graph) -> str:
    return graph.add("Log", graph.add("Neg", "means", to="n"), to="out")


def _beyond(graph: Graph) -> str:
    return graph.add("Add", "means", graph.number("two", 2.0), to="out")


@pytest.mark.parametrize("make", [_too_few, _nothing, _no_number, _beyond])
def test_a_model_may_answer_anything(tmp_path: Path, make: Callable[[Graph], str]) -> None:
    model = classifier(tmp_path, manifest=RGB, make=make)
    with pytest.raises(KindFailed) as failed:
        run(job(colour(tmp_path / "c.png", 9, 9, 9), tmp_path / "out", model), quiet)
    assert failed.value.code == "model_failed"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_answers_in_words_is_refused(tmp_path: Path) -> None:
    model = classifier(tmp_path, manifest=RGB, make=_texts, kind=TensorProto.STRING)
    with pytest.raises(KindFailed) as failed:
        run(job(colour(tmp_path / "c.png", 9, 9, 9), tmp_path, model), quiet)
    assert failed.value.code == "model_failed"


@pytest.mark.parametrize(
    "manifest",
    [
        "{",
        "[]",
        {"labels": "red"},
        {"preprocessing": {"size": [0, 10]}},
        {"preprocessing": {"size": [10, 10_000_000]}},
        {"preprocessing": {"mean": [1, 2]}},
        {"preprocessing": {"crop_share": 0}},
        {"preprocessing": {"layout": "HWC"}},
        {"postprocessing": {"activation": "exec"}},
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, manifest: dict[str, Any] | str) -> None:
    model = classifier(tmp_path, manifest=manifest)
    with pytest.raises(KindFailed) as failed:
        run(job(colour(tmp_path / "c.png", 9, 9, 9), tmp_path, model), quiet)
    assert failed.value.code == "model_malformed"


def test_a_deviation_of_nothing_is_refused_and_warns_nobody(tmp_path: Path) -> None:
    model = classifier(tmp_path, manifest=RGB | {"preprocessing": {"std": [0, 0, 0]}})
    with pytest.raises(KindFailed) as failed:
        run(job(colour(tmp_path / "c.png", 9, 9, 9), tmp_path, model), quiet)
    assert failed.value.code == "model_failed"


def test_labels_of_strangers_are_fit_for_the_log(tmp_path: Path) -> None:
    model = classifier(tmp_path, manifest=RGB | {"labels": ["r\0d\n", "x" * 500, "blue"], "name": "n\0"})
    output = run(job(colour(tmp_path / "c.png", 255, 51, 0), tmp_path, model), quiet)
    assert list(scores(output)) == ["r d", "x" * 200, "blue"]
    assert output.manifest["model"]["name"] == "n"


# Pictures of strangers


def _bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


def _text_bomb(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * 80_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(path, "PNG", pnginfo=info)


def _cut_off(path: Path) -> None:
    path.write_bytes(PORTRAIT.read_bytes()[:5000])


def _no_picture(path: Path) -> None:
    path.write_bytes(b"not a picture")


@pytest.mark.parametrize(
    ("make", "codes"),
    [
        (_bomb, {"image_too_many_pixels"}),
        (_text_bomb, {"image_undecodable"}),
        (_cut_off, {"image_undecodable"}),
        (_no_picture, {"image_undecodable"}),
    ],
)
def test_pictures_that_are_refused(tmp_path: Path, make: Callable[[Path], None], codes: set[str]) -> None:
    make(tmp_path / "in")
    with pytest.raises(KindFailed) as failed:
        run(job(tmp_path / "in", tmp_path / "out"), quiet)
    assert failed.value.code in codes
    assert str(tmp_path) not in failed.value.message


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_any_mode_of_picture_will_do(tmp_path: Path, mode: str) -> None:
    Image.linear_gradient("L").convert("L" if mode == "I;16" else mode).convert(mode).save(tmp_path / "in.tiff")
    assert len(scores(run(job(tmp_path / "in.tiff", tmp_path / "out"), quiet))) == 5


@pytest.mark.parametrize(
    "params", [{"top_k": 0}, {"top_k": 101}, {"score_min": 1.5}, {"score_min": "x"}, {"top_k": 1.5}, {"more": 1}]
)
def test_what_the_domain_refuses_and_the_kind_too(tmp_path: Path, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameters):
        parse("inspect", params)
    with pytest.raises(KindFailed) as failed:
        run(job(PORTRAIT, tmp_path, **params), quiet)
    assert failed.value.code == "rule_violated"


async def test_through_the_confined_child(tmp_path: Path) -> None:
    runner = Runner(memory_bytes_max=MEMORY_BYTES)
    try:
        answer = await runner.run(job(PORTRAIT, tmp_path / "out"), 60)
        _no_picture(tmp_path / "in")
        with pytest.raises(KindFailed) as failed:
            await runner.run(job(tmp_path / "in", tmp_path / "out2"), 60)
    finally:
        await runner.close()
    assert answer.manifest["heuristic"] is True
    assert failed.value.code == "image_undecodable"
