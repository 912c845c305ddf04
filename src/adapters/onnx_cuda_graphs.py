"""CUDA graphs: the kernels of a run recorded once for each shape and replayed, so that launching them costs nothing.

A replay reads and writes the addresses that were recorded: inputs and outputs lie in buffers that stay. Off unless it
is asked for, since every shape takes memory of its own, and a graph with control flow, or whose operators are not all
on the GPU, cannot be recorded.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

SHAPES_MAX = 8  # recorded for one session; the least recently used one is forgotten
GRAPH_OPTIONS = {"enable_cuda_graph": "1"}
NOT_RECORDED = -1  # as the runtime has it: run, and record nothing

Key = tuple[Any, ...]


class CapturedShapes:
    """Runs of one session, each shape in buffers of its own. For one thread.

    Args:
        session: of the runtime, made with GRAPH_OPTIONS.
        device: `cuda`; with `cpu` the same buffers are used and nothing is recorded.
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        self._kept: OrderedDict[Key, tuple[int, dict[str, Any], list[Any], Any]] = OrderedDict()
        self._number = 0

    def run(self, feeds: Mapping[str, NDArray[np.generic]], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """The outputs of these names."""
        key = (tuple(names), *((name, feeds[name].dtype.str, feeds[name].shape) for name in sorted(feeds)))
        kept = self._kept.pop(key, None)
        if kept is None:
            kept = self._prepared(feeds, names)
        else:
            for name, value in kept[1].items():
                value.update_inplace(feeds[name])
        self._kept[key] = kept
        while len(self._kept) > SHAPES_MAX:
            self._kept.popitem(last=False)
        number, _, outputs, binding = kept
        self._session.run_with_iobinding(binding, self._options(number))
        return [value.numpy().copy() for value in outputs]  # the buffers are the next run's

    def _prepared(
        self, feeds: Mapping[str, NDArray[np.generic]], names: Sequence[str]
    ) -> tuple[int, dict[str, Any], list[Any], Any]:
        """Buffers for this shape. A first run, not recorded, tells how large the outputs are."""
        of_array = onnxruntime.OrtValue.ortvalue_from_numpy
        # Copies: on the CPU a value is the array itself, and the next run would write over its caller's.
        inputs = {name: of_array(np.array(value, order="C"), self._device, 0) for name, value in feeds.items()}
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding, self._options(NOT_RECORDED))
        outputs = [of_array(found, self._device, 0) for found in binding.copy_outputs_to_cpu()]
        binding.clear_binding_outputs()
        for name, value in zip(names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        self._number += 1
        return self._number, inputs, outputs, binding

    def _options(self, number: int) -> Any:
        options = onnxruntime.RunOptions()
        if self._device != "cpu":
            options.add_run_config_entry("gpu_graph_id", str(number))
        return options
