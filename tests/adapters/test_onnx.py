"""Models: the built-in graph against its builder and against NumPy, sessions by digest, and files that are refused."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sightline.adapters import builtin
from sightline.adapters.onnx import Session, SessionCache
from sightline.adapters.onnx_check import ModelRefused, check

TOOL = Path(__file__).parents[2] / "tools" / "build_depth_proxy.py"
MANIFEST = builtin.manifests()["depth-heuristic"]
BYTES = builtin.model_path(MANIFEST).read_bytes()

Plane = NDArray[np.float64]


@pytest.fixture(scope="module")
def depth() -> Session:
    return SessionCache().get(builtin.model_path(MANIFEST), MANIFEST.sha256)


# The graph again, in float64 and in plain words.

GRID = 128


def resize_weights(size: int, to: int) -> Plane:
    """Rows of a linear filter, widened when it shrinks so that every input counts; the border repeats outwards."""
    scale = max(size / to, 1.0)
    outside = int(scale) + 2
    inputs = np.arange(-outside, size + outside)
    centres = (np.arange(to) + 0.5) * size / to
    weights = np.maximum(0, 1 - np.abs(inputs[None] + 0.5 - centres[:, None]) / scale)
    result = np.zeros((to, size))
    np.add.at(result.T, inputs.clip(0, size - 1), (weights / weights.sum(axis=1, keepdims=True)).T)
    return result


def resized(plane: Plane, height: int, width: int) -> Plane:
    return resize_weights(plane.shape[0], height) @ plane @ resize_weights(plane.shape[1], width).T


def windows(plane: Plane, cells: int, of: Callable[..., Plane]) -> Plane:
    padded = np.pad(plane, cells // 2, constant_values=np.nan)
    return of(np.lib.stride_tricks.sliding_window_view(padded, (cells, cells)), axis=(2, 3))


def mean(plane: Plane, cells: int) -> Plane:
    return windows(plane, cells, np.nanmean)


def contrast(luma: Plane) -> Plane:
    around = np.pad(luma, 1, mode="edge")
    sides = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    squared: Plane = (sides / 4 - luma) ** 2
    return squared


def reference(picture: NDArray[np.float32]) -> Plane:
    red, green, blue = picture[0].astype(np.float64)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    channels = np.stack([resized(plane, GRID, GRID) for plane in (red, green, blue)])
    guide, fine = resized(luma, GRID, GRID), resized(contrast(luma), GRID, GRID)

    energies = [np.sqrt(mean(energy, cells)) for energy in (fine, contrast(guide)) for cells in (5, 15, 31)]
    total = np.mean(energies, axis=0)
    sharp = total / (total + total.mean() + 0.004)
    lowest, highest = channels.min(axis=0), channels.max(axis=0)
    dark = windows(1 - lowest, 9, np.nanmax)
    colour = mean((highest - lowest) / (highest + 0.1), 9)
    low = ((np.arange(GRID) + 0.5) / GRID)[:, None]
    cues = 0.4 * sharp + 0.4 * low + 0.2 * (0.6 * dark + 0.4 * colour)

    guide_mean, cue_mean = mean(guide, 17), mean(cues, 17)
    slope = (mean(guide * cues, 17) - guide_mean * cue_mean) / (mean(guide * guide, 17) - guide_mean**2 + 0.004)
    slope, offset = mean(slope, 17), mean(cue_mean - slope * guide_mean, 17)
    ordered = np.sort(slope * guide + offset, axis=None)
    outliers = round(0.02 * GRID * GRID)
    bottom, top = ordered[outliers - 1], ordered[-outliers]
    span = max(top - bottom, 0.05)
    full = [resized(plane / span, *luma.shape) for plane in (slope, offset - bottom)]
    found: Plane = np.clip(full[0] * luma + full[1], 0, 1)
    return found


def picture_of(height: int, width: int, seed: int = 5) -> NDArray[np.float32]:
    """Noise that is coarse above and fine below, under a gradient: something for every cue to see."""
    random = np.random.default_rng(seed)
    coarse = np.kron(random.random((3, height // 8 + 1, width // 8 + 1)), np.ones((8, 8)))[:, :height, :width]
    fine = random.random((3, height, width))
    share = np.linspace(0, 1, height)[None, :, None]
    return (share * fine + (1 - share) * (0.3 * coarse + 0.6))[None].astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (7, 5), (128, 128), (200, 333), (480, 200)])
def test_the_graph_computes_what_it_says(depth: Session, size: tuple[int, int]) -> None:
    picture = picture_of(*size)
    found = depth.run({"image": picture})["depth"]
    assert found.shape == (1, 1, *size)
    assert np.abs(found[0, 0] - reference(picture)).max() < 1e-4


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_picture_is_nearer_below(depth: Session, value: float) -> None:
    picture = np.full((1, 3, 90, 60), value, np.float32)
    found = depth.run({"image": picture})["depth"][0, 0]
    assert np.abs(found - reference(picture)).max() < 1e-4
    assert found[0].max() < 0.05
    assert found[-1].min() > 0.95


def test_sharp_is_nearer_than_blurred(depth: Session) -> None:
    texture = picture_of(256, 256)[0]
    texture[:, :, :128] = texture[:, :, :128].mean(axis=(1, 2), keepdims=True)
    found = depth.run({"image": texture[None]})["depth"][0, 0]
    assert found[:, 160:].mean() > found[:, :96].mean() + 0.2


def test_the_committed_files_are_what_the_tool_builds(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-P", TOOL, tmp_path], check=True, stdout=subprocess.DEVNULL)
    for name in ("depth-heuristic.onnx", "depth-heuristic.json"):
        assert (tmp_path / name).read_bytes() == (builtin.DIRECTORY / name).read_bytes(), name


def test_the_manifest_describes_the_file() -> None:
    assert hashlib.sha256(BYTES).hexdigest() == MANIFEST.sha256
    assert len(BYTES) == MANIFEST.size_bytes
    assert (MANIFEST.task, MANIFEST.depth_source) == ("depth", "heuristic")
    model = onnx.load_model_from_string(BYTES)
    assert [one.name for one in model.graph.input] == [one.name for one in MANIFEST.inputs]
    assert [one.name for one in model.graph.output] == [one.name for one in MANIFEST.outputs]


# Sessions


def doubler(tmp_path: Path, name: str = "a") -> tuple[Path, str]:
    """A model of one operator, whose bytes differ by `name`."""
    data = model_bytes([helper.make_node("Add", ["x", "x"], ["y"], name=name)])
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def model_bytes(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto] | None = None, **more: object
) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    graph = helper.make_graph(nodes, "g", [x], [y], initializers or [])
    more.setdefault("opset_imports", [helper.make_opsetid("", 18)])
    model = helper.make_model(graph, ir_version=9, **more)
    return bytes(model.SerializeToString())


def test_a_session_is_loaded_once_and_says_where_it_runs(tmp_path: Path) -> None:
    cache = SessionCache()
    path, digest = doubler(tmp_path)
    session = cache.get(path, digest, intra_op_threads=1)
    path.unlink()
    assert cache.get(path, digest, intra_op_threads=1) is session
    assert session.execution_provider in {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert session.run({"x": np.array([1.5], np.float32)})["y"].tolist() == [3.0]


def test_the_cache_is_bounded_and_forgets_the_least_recently_used(tmp_path: Path) -> None:
    cache = SessionCache(capacity=2)
    models = [doubler(tmp_path, name) for name in ("a", "b", "c")]
    first = cache.get(*models[0])
    second = cache.get(*models[1])
    assert cache.get(*models[0]) is first
    cache.get(*models[2])
    assert len(cache) == 2
    assert cache.get(*models[0]) is first
    assert cache.get(*models[1]) is not second


def test_other_bytes_than_registered_are_refused(tmp_path: Path) -> None:
    path, digest = doubler(tmp_path)
    path.write_bytes(path.read_bytes() + b"\x72\x00")
    with pytest.raises(ModelRefused) as refused:
        SessionCache().get(path, digest)
    assert refused.value.code == "model_digest_mismatch"


def test_feeds_that_do_not_fit_are_an_error_of_ours(tmp_path: Path) -> None:
    session = SessionCache().get(*doubler(tmp_path))
    with pytest.raises(RuntimeError):
        session.run({"x": np.zeros((2, 2, 2), np.int64)})


# Files that are refused


def nested(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """`node` in both branches of an If."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    branch = helper.make_graph([node], "branch", [], [y])
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(1, np.bool_)))
    return [condition, helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]


def external() -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


FOREIGN = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
ADD = helper.make_node("Add", ["x", "x"], ["y"])
FOREIGN_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
FUNCTION = helper.make_function("local", "F", ["x"], ["y"], [ADD], [helper.make_opsetid("", 18)])


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (lambda: model_bytes([FOREIGN]), "model_domain"),
        (lambda: model_bytes([ADD], opset_imports=FOREIGN_OPSETS), "model_domain"),
        (lambda: model_bytes(nested(FOREIGN)), "model_domain"),
        (lambda: model_bytes([ADD], functions=[FUNCTION]), "model_domain"),
        (lambda: model_bytes([ADD], [external()]), "model_external_data"),
        (lambda: model_bytes(nested(helper.make_node("Constant", [], ["y"], value=external()))), "model_external_data"),
        (lambda: b"", "model_malformed"),
        (lambda: b"\x89PNG\r\n\x1a\n" * 20, "model_malformed"),
        (lambda: BYTES[:-20], "model_malformed"),
    ],
)
def test_refused_before_the_runtime_sees_it(model: Callable[[], bytes], code: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model())
    with pytest.raises(ModelRefused) as refused:
        SessionCache().get(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert refused.value.code == code


def test_the_runtime_itself_would_take_a_foreign_domain() -> None:
    """The control: without our check the same file loads."""
    data = model_bytes([FOREIGN], opset_imports=FOREIGN_OPSETS)
    with pytest.raises(ModelRefused):
        check(data)
    onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def test_nested_standard_operators_pass() -> None:
    check(model_bytes(nested(ADD)))
    check(BYTES)


def test_damage_is_refused_or_loads_but_never_escapes() -> None:
    random = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        data = bytearray(BYTES)
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(256)
        try:
            check(bytes(data))
        except ModelRefused:
            refused += 1
    assert 0 < refused < 300


def test_what_the_runtime_cannot_load_has_a_code(tmp_path: Path) -> None:
    data = model_bytes([helper.make_node("NoSuchOperator", ["x"], ["y"])])
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelRefused) as refused:
        SessionCache().get(path, hashlib.sha256(data).hexdigest())
    assert refused.value.code == "model_unloadable"


def test_serving_needs_no_onnx_package() -> None:
    code = "import sys; import sightline.adapters.onnx; sys.exit('onnx' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
