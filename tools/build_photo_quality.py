"""Build the ONNX graph that `inspect` judges a photograph with where nobody brought a classifier, and its manifest.

    python tools/build_photo_quality.py [DIRECTORY]

A heuristic, not a trained network, and about two things only:

- *sharp* or *blurred*: how much of the picture's fine contrast (within 3 pixels) is left beside its coarse contrast
  (within 9 pixels). Blur takes the first and leaves the second. One sharp edge is enough: a portrait before a soft
  background is sharp. Noise counts as fine contrast, and a picture of nothing is blurred.
- *well_exposed*, *dark* or *bright*: the mean of its luma.

The scores of each group add up to 1. The bytes are the same on every machine: a test rebuilds them.
"""

import hashlib
import sys
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper

from sightline.adapters.onnx_graph import Graph

NAME = "photo-quality-heuristic"
DESTINATION = Path(__file__).parents[1] / "src" / "adapters" / "builtin"
OPSET = 18
IR_VERSION = 9

LABELS = ["sharp", "blurred", "well_exposed", "dark", "bright"]
SIZE_PX_MAX = 1024  # of the longer side: how a person looks at it, and not through a magnifying glass
LUMA = (0.299, 0.587, 0.114)
FINE_PX, COARSE_PX = 3, 9
# Fine over coarse contrast where a picture is as sharp as it is blurred. Photographs at SIZE_PX_MAX have 0.3 to 4; a
# Gaussian blur of 1 pixel leaves about 0.07, one of 2 pixels 0.025.
RATIO_HALF = 0.08
CONTRAST_FLOOR = 1e-5  # below it there is nothing to be sharp
DARK_BELOW, BRIGHT_ABOVE, EXPOSURE_SOFTNESS = 0.2, 0.8, 0.03


def quality(graph: Graph) -> None:
    """From `image` to `scores`."""
    graph.constant("luma_weights", np.array(LUMA, np.float32).reshape(1, 3, 1, 1))
    luma = graph.add("Conv", "image", "luma_weights", to="luma")
    parts = [*sharpness(graph, luma), *exposure(graph, luma)]
    joined = graph.add("Concat", *parts, to="joined", axis=1)
    graph.add("Flatten", joined, to="scores", axis=1)


def sharpness(graph: Graph, luma: str) -> tuple[str, str]:
    fine, coarse = graph.window_mean(luma, FINE_PX, "fine"), graph.window_mean(luma, COARSE_PX, "coarse")
    small = contrast(graph, luma, fine, "fine_contrast")
    large = contrast(graph, fine, coarse, "coarse_contrast")
    floored = graph.add("Add", large, graph.number("contrast_floor", CONTRAST_FLOOR), to="coarse_floored")
    ratio = graph.add("Div", small, floored, to="ratio")
    square = graph.add("Mul", ratio, ratio, to="ratio_square")
    whole = graph.add("Add", square, graph.number("half_square", RATIO_HALF**2), to="ratio_whole")
    sharp = graph.add("Div", square, whole, to="sharp")
    return sharp, graph.add("Sub", graph.number("one", 1.0), sharp, to="blurred")


def contrast(graph: Graph, near: str, far: str, to: str) -> str:
    difference = graph.add("Sub", near, far, to=f"{to}_difference")
    square = graph.add("Mul", difference, difference, to=f"{to}_square")
    return everywhere(graph, square, to)


def everywhere(graph: Graph, source: str, to: str) -> str:
    return graph.add("ReduceMean", source, graph.ints("height_and_width", 2, 3), to=to, keepdims=1)


def exposure(graph: Graph, luma: str) -> tuple[str, str, str]:
    mean = everywhere(graph, luma, "mean")
    softness = graph.number("softness", EXPOSURE_SOFTNESS)
    below = graph.add("Sub", graph.number("dark_below", DARK_BELOW), mean, to="below")
    above = graph.add("Sub", mean, graph.number("bright_above", BRIGHT_ABOVE), to="above")
    dark = graph.add("Sigmoid", graph.add("Div", below, softness, to="below_scaled"), to="dark")
    bright = graph.add("Sigmoid", graph.add("Div", above, softness, to="above_scaled"), to="bright")
    lit = graph.add("Sub", graph.number("one", 1.0), dark, to="lit")
    return graph.add("Sub", lit, bright, to="well_exposed"), dark, bright


def model_bytes() -> bytes:
    """The serialised model; the same bytes every time."""
    graph = Graph()
    quality(graph)
    picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])
    result = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, len(LABELS)])
    return graph.serialised(NAME, inputs=[picture], outputs=[result], opset=OPSET, ir_version=IR_VERSION)


def manifest_bytes(model: bytes) -> bytes:
    """What the loader needs to know of the model, as JSON."""
    manifest = {
        "name": NAME,
        "version": "1",
        "task": "inspect",
        "framework": "onnx",
        "file": f"{NAME}.onnx",
        "sha256": hashlib.sha256(model).hexdigest(),
        "size_bytes": len(model),
        "description": (
            "Sharp or blurred, by fine beside coarse contrast; well exposed, dark or bright, by mean luma. "
            "A heuristic, not a trained network."
        ),
        "label_source": "heuristic",
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, "height", "width"]}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": [1, len(LABELS)]}],
        "preprocessing": {"color": "RGB", "layout": "NCHW", "scale": 1 / 255, "size_max": SIZE_PX_MAX},
        "postprocessing": {"activation": "none"},
        "labels": LABELS,
    }
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def main(destination: Path = DESTINATION) -> None:
    """Write both files into `destination`."""
    model = model_bytes()
    destination.mkdir(parents=True, exist_ok=True)
    (destination / f"{NAME}.onnx").write_bytes(model)
    (destination / f"{NAME}.json").write_bytes(manifest_bytes(model))
    print(f"{destination / NAME}.onnx: {len(model)} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
