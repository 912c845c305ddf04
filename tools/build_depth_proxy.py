"""Build the ONNX graph that `layer-photo-realistic` estimates depth with, and its manifest.

    python tools/build_depth_proxy.py [DIRECTORY]

A heuristic, not a trained network: three cues that people use on a single picture (what is sharp is near, what is
low in the picture is near, what is hazy or pale is far) are measured on a coarse grid, added up, and brought back to
full size by a guided filter (He, Sun, Tang: Guided Image Filtering, 2013), so that depth steps where the picture does.
Everything, normalisation included, is inside the graph. The bytes are the same on every machine: a test rebuilds them.
"""

import hashlib
import sys
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper

from sightline.adapters import onnx_graph

NAME = "depth-heuristic"
DESTINATION = Path(__file__).parents[1] / "src" / "adapters" / "builtin"

# Opset 18 is the first whose Resize averages when it shrinks (antialias); without that the cues would be noise.
OPSET = 18
IR_VERSION = 9

GRID_PX = 128  # cues are measured on GRID_PX × GRID_PX cells, whatever the picture's size and shape
LUMA = (0.299, 0.587, 0.114)
LAPLACIAN = ((0.0, 0.25, 0.0), (0.25, -1.0, 0.25), (0.0, 0.25, 0.0))
SHARPNESS_WINDOWS_CELLS = (5, 15, 31)
SHARPNESS_FLOOR = 0.004  # contrast below this is sensor noise, and a flat picture has none to compare
HAZE_WINDOW_CELLS = 9
SATURATION_FLOOR = 0.1  # dark pixels have no colour worth trusting
WEIGHTS = {"sharp": 0.4, "low": 0.4, "clear": 0.2}
DARK_SHARE_OF_CLEAR = 0.6
GUIDE_WINDOW_CELLS = 17
GUIDE_EPSILON = 0.004
OUTLIER_SHARE = 0.02  # at either end, so that one odd cell does not flatten all others
RANGE_MIN = 0.05


class Graph(onnx_graph.Graph):
    """With what pictures need."""

    def split(self, source: str, sizes: tuple[int, ...], to: list[str]) -> list[str]:
        """Channels of `source` apart, `sizes` of them each."""
        lengths = self.ints(f"{source}_channels", *sizes)
        self.nodes.append(helper.make_node("Split", [source, lengths], to, name=f"{source}_split", axis=1))
        return to

    def resize(self, source: str, sizes: str, to: str) -> str:
        return self.add("Resize", source, "", "", sizes, to=to, mode="linear", antialias=1)

    def weighted(self, to: str, *terms: tuple[str, float]) -> str:
        """The sum of `terms`, each times its weight."""
        parts = [self.add("Mul", term, self.floats(f"{to}_w{n}", weight), to=f"{to}_{n}")
                 for n, (term, weight) in enumerate(terms)]  # fmt: skip
        return self.add("Sum", *parts, to=to)


def contrast(graph: Graph, luma: str, to: str) -> str:
    """The squared Laplacian of `luma`: high where the picture is sharp."""
    graph.constant("laplacian", np.array(LAPLACIAN, np.float32)[None, None])
    padded = graph.add("Pad", luma, graph.ints("one_pixel", 0, 0, 1, 1, 0, 0, 1, 1), to=f"{to}_padded", mode="edge")
    edges = graph.add("Conv", padded, "laplacian", to=f"{to}_edges")
    return graph.add("Mul", edges, edges, to=to)


def sharpness(graph: Graph, fine: str, luma: str) -> str:
    """0..1, relative to the picture's own mean: defocused regions are low."""
    roots = []
    for scale, energy in (("fine", fine), ("coarse", contrast(graph, luma, "coarse_contrast"))):
        for cells in SHARPNESS_WINDOWS_CELLS:
            mean = graph.window_mean(energy, cells, f"{scale}_contrast_{cells}")
            roots.append(graph.add("Sqrt", mean, to=f"{scale}_sharpness_{cells}"))
    total = graph.add("Mean", *roots, to="contrast")
    usual = graph.add("ReduceMean", total, graph.ints("everywhere", 1, 2, 3), to="contrast_mean", keepdims=1)
    scale_ = graph.add("Sum", total, usual, graph.floats("sharpness_floor", SHARPNESS_FLOOR), to="contrast_scale")
    return graph.add("Div", total, scale_, to="sharp")


def clearness(graph: Graph, picture: str) -> str:
    """0..1: haze lifts the darkest channel (the dark channel prior) and takes colour away; both are low far off."""
    channels = graph.ints("channels", 1)
    lowest = graph.add("ReduceMin", picture, channels, to="lowest", keepdims=1)
    highest = graph.add("ReduceMax", picture, channels, to="highest", keepdims=1)
    inverted = graph.add("Sub", graph.floats("one", 1.0), lowest, to="lowest_inverted")
    pads = [HAZE_WINDOW_CELLS // 2] * 4
    dark = graph.add("MaxPool", inverted, to="dark", kernel_shape=[HAZE_WINDOW_CELLS] * 2, pads=pads)
    spread = graph.add("Sub", highest, lowest, to="spread")
    bright = graph.add("Add", highest, graph.floats("saturation_floor", SATURATION_FLOOR), to="highest_floored")
    colour = graph.add("Div", spread, bright, to="saturation")
    colour = graph.window_mean(colour, HAZE_WINDOW_CELLS, "saturation_mean")
    return graph.weighted("clear", (dark, DARK_SHARE_OF_CLEAR), (colour, 1 - DARK_SHARE_OF_CLEAR))


def guided(graph: Graph, guide: str, cues: str) -> tuple[str, str]:
    """Slope and offset of the line that best maps `guide` to `cues` around each cell, smoothed once more."""

    def mean(of: str, to: str) -> str:
        return graph.window_mean(of, GUIDE_WINDOW_CELLS, to)

    guide_mean, cue_mean = mean(guide, "guide_mean"), mean(cues, "cue_mean")
    product = mean(graph.add("Mul", guide, cues, to="guide_cue"), "guide_cue_mean")
    square = mean(graph.add("Mul", guide, guide, to="guide_square"), "guide_square_mean")
    means = graph.add("Mul", guide_mean, cue_mean, to="means_product")
    covariance = graph.add("Sub", product, means, to="covariance")
    variance = graph.add("Sub", square, graph.add("Mul", guide_mean, guide_mean, to="mean_square"), to="variance")
    floored = graph.add("Add", variance, graph.floats("guide_epsilon", GUIDE_EPSILON), to="variance_floored")
    slope = graph.add("Div", covariance, floored, to="slope_raw")
    offset = graph.add("Sub", cue_mean, graph.add("Mul", slope, guide_mean, to="explained"), to="offset_raw")
    return mean(slope, "slope"), mean(offset, "offset")


def extreme(graph: Graph, flat: str, *, largest: bool) -> str:
    """The value beyond which OUTLIER_SHARE of the cells lie."""
    to = "high" if largest else "low_end"
    count = graph.ints("outliers", round(OUTLIER_SHARE * GRID_PX * GRID_PX))
    names = [f"{to}_values", f"{to}_places"]
    graph.nodes.append(
        helper.make_node("TopK", [flat, count], names, name=f"{to}_topk", axis=0, largest=int(largest), sorted=1)
    )
    reduce = "ReduceMin" if largest else "ReduceMax"
    return graph.add(reduce, names[0], graph.ints("flat_axis", 0), to=to, keepdims=1)


def depth(graph: Graph) -> None:
    """From `image` to `depth`."""
    graph.constant("luma_weights", np.array(LUMA, np.float32).reshape(1, 3, 1, 1))
    luma = graph.add("Conv", "image", "luma_weights", to="luma")
    measured = graph.add("Concat", "image", luma, contrast(graph, luma, "fine_contrast"), to="measured", axis=1)
    grid = graph.resize(measured, graph.ints("grid_size", 1, 5, GRID_PX, GRID_PX), "grid")
    picture, guide, fine = graph.split(grid, (3, 1, 1), ["grid_image", "grid_luma", "grid_contrast"])

    rows = ((np.arange(GRID_PX) + 0.5) / GRID_PX).astype(np.float32)
    low = graph.constant("low", rows.reshape(1, 1, GRID_PX, 1))
    cues = graph.weighted(
        "cues",
        (sharpness(graph, fine, guide), WEIGHTS["sharp"]),
        (low, WEIGHTS["low"]),
        (clearness(graph, picture), WEIGHTS["clear"]),
    )
    slope, offset = guided(graph, guide, cues)
    coarse = graph.add("Add", graph.add("Mul", slope, guide, to="coarse_slope"), offset, to="coarse_depth")

    flat = graph.add("Reshape", coarse, graph.ints("flat", -1), to="coarse_flat")
    bottom, top = extreme(graph, flat, largest=False), extreme(graph, flat, largest=True)
    span = graph.add("Sub", top, bottom, to="span_raw")
    span = graph.add("Max", span, graph.floats("range_min", RANGE_MIN), to="span")
    slope = graph.add("Div", slope, span, to="slope_scaled")
    offset = graph.add("Div", graph.add("Sub", offset, bottom, to="offset_from_0"), span, to="offset_scaled")

    shape = graph.add("Shape", "image", to="height_width", start=2)
    sizes = graph.add("Concat", graph.ints("one_of_two", 1, 2), shape, to="full_size", axis=0)
    line = graph.resize(graph.add("Concat", slope, offset, to="line", axis=1), sizes, "full_line")
    slope, offset = graph.split(line, (1, 1), ["full_slope", "full_offset"])
    full = graph.add("Add", graph.add("Mul", slope, luma, to="full_sloped"), offset, to="depth_raw")
    zero, one = graph.constant("zero", np.array(0, np.float32)), graph.constant("unit", np.array(1, np.float32))
    graph.add("Clip", full, zero, one, to="depth")


def model_bytes() -> bytes:
    """The serialised model; the same bytes every time."""
    graph = Graph()
    depth(graph)
    picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])
    result = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 1, "height", "width"])
    return graph.serialised(NAME, inputs=[picture], outputs=[result], opset=OPSET, ir_version=IR_VERSION)


def manifest_bytes(model: bytes) -> bytes:
    """What the loader needs to know of the model, as JSON."""
    manifest = {
        "name": NAME,
        "version": "1",
        "task": "depth",
        "framework": "onnx",
        "file": f"{NAME}.onnx",
        "sha256": hashlib.sha256(model).hexdigest(),
        "size_bytes": len(model),
        "description": (
            "Depth from defocus, height in the picture and haze, sharpened by a guided filter. "
            "A heuristic, not a trained network."
        ),
        "depth_source": "heuristic",
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, "height", "width"]}],
        "outputs": [{"name": "depth", "dtype": "float32", "shape": [1, 1, "height", "width"]}],
        "preprocessing": {"color": "RGB", "layout": "NCHW", "scale": 1 / 255, "range": [0.0, 1.0]},
        "postprocessing": {"range": [0.0, 1.0], "far": 0.0, "near": 1.0},
        "labels": [],
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
