"""Graphs written down node by node, as ONNX: for the models that we build ourselves.

Needs the package `onnx`, which serving does not: the extra `embed` has it.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

PRODUCER = "sightline"


class Graph:
    """Nodes and constants in the order in which they were asked for, which fixes the bytes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def number(self, name: str, value: float) -> str:
        """A scalar."""
        return self.constant(name, np.array(value, np.float32))

    def floats(self, name: str, *values: float) -> str:
        return self.constant(name, np.array(values, np.float32))

    def ints(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def add(self, operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [to], name=to, **attributes))
        return to

    def cast(self, source: str, kind: int, to: str) -> str:
        """`source` as numbers of another kind, one of onnx.TensorProto's; in `add` its attribute's name is taken."""
        self.nodes.append(helper.make_node("Cast", [source], [to], name=to, to=kind))
        return to

    def window_mean(self, source: str, cells: int, to: str) -> str:
        """Mean over a square window; beyond the border nothing is counted."""
        return self.add(
            "AveragePool", source, to=to, kernel_shape=[cells] * 2, pads=[cells // 2] * 4, count_include_pad=0
        )

    def serialised(
        self,
        name: str,
        *,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        opset: int,
        ir_version: int,
        metadata: dict[str, str] | None = None,
    ) -> bytes:
        """The checked model; the same bytes every time. `metadata` are texts that lie beside the graph, in its file."""
        body = helper.make_graph(self.nodes, name, inputs, outputs, list(self._constants.values()))
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], producer_name=PRODUCER)
        model.ir_version = ir_version
        if metadata:
            helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))
