"""Small models of real graphs, each for one thing that may happen, and what asks them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sightline.adapters.inference.messages import NAMES, Tensor
from sightline.adapters.inference.model import ModelFile, Serving
from sightline.adapters.inference.server import Capacity, InferenceServer

WIDTH = 3
PLAIN = Serving()
Array = NDArray[Any]


def laid(directory: Path, label: str, graph: Any, serving: Serving = PLAIN) -> ModelFile:
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
    data = bytes(model.SerializeToString())
    sha256 = hashlib.sha256(data).hexdigest()
    path = directory / f"{sha256}.onnx"
    path.write_bytes(data)
    return ModelFile(sha256, str(path), len(data), label, serving)


def port(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def scaled(directory: Path, factor: float, *, rows: str = "batch", serving: Serving = PLAIN) -> ModelFile:
    """y = x × factor."""
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    graph = helper.make_graph([node], "g", [port("x", rows, WIDTH)], [port("y", rows, WIDTH)], [constant])
    return laid(directory, f"scaled-{factor:g}", graph, serving)


def longer(directory: Path, serving: Serving = PLAIN) -> ModelFile:
    """y = x + x for texts of any length."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "g", [port("x", "batch", "length")], [port("y", "batch", "length")])
    return laid(directory, "longer", graph, serving)


def looked_up(directory: Path) -> ModelFile:
    """y = table[i]: one index out of its ten rows and the whole run fails."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [10], [float(n) for n in range(10)])
    node = helper.make_node("Gather", ["table", "i"], ["y"])
    ports = [port("i", "batch", 1, kind=TensorProto.INT64)], [port("y", "batch", 1)]
    return laid(directory, "looked-up", helper.make_graph([node], "g", *ports, [table]))


def summed(directory: Path) -> ModelFile:
    """One row, whatever came in, although its output says that it has as many."""
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1, noop_with_empty_axes=0)
    graph = helper.make_graph([node], "g", [port("x", "batch", WIDTH)], [port("y", "batch", "other")])
    return laid(directory, "summed", graph)


def greedy(directory: Path) -> ModelFile:
    """y = as many zeros as x says: a few bytes ask for gigabytes."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    node = helper.make_node("ConstantOfShape", ["n"], ["y"], value=value)
    ports = [port("n", 1, kind=TensorProto.INT64)], [port("y", "many")]
    return laid(directory, "greedy", helper.make_graph([node], "g", *ports))


def tensor(name: str, array: Array) -> Tensor:
    whole = np.ascontiguousarray(array)
    return Tensor(name, NAMES[whole.dtype.name], array.shape, memoryview(whole.tobytes()))


def rows_of(value: float, rows: int = 1) -> list[Tensor]:
    return [tensor("x", np.full((rows, WIDTH), value, np.float32))]


def array_of(found: Tensor) -> Array:
    return np.frombuffer(found.data, np.float32).reshape(found.shape)


def server_of(directory: Path, **changed: Any) -> InferenceServer:
    more = {name: changed.pop(name) for name in ("module", "environ") if name in changed}
    return InferenceServer(Capacity(**changed), readable=[directory], **more)
