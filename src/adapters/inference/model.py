"""A model as the inference server knows it: how its requests may be put together, and whether one fits it at all."""

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from ...domain.kernel import Rejection
from .messages import Loaded, Port, Tensor

# What exporters call a first dimension along which rows know nothing of each other. Any other name, and none, may be
# the height of a picture or the length of a text, where putting two requests together would change both answers.
BATCH_NAMES = re.compile(r"n|.*batch.*", re.IGNORECASE)
NAMES_SHOWN_MAX = 200
WAIT_MS_MAX = 1_000


class TensorRefused(Rejection):
    """The tensors are not such as the model takes."""

    code = "tensor_invalid"


class ModelUnusable(Rejection):
    """The model cannot be loaded, or not now, since it ended its process several times."""

    code = "model_unusable"


class ModelFailed(Rejection):
    """The model failed on this very input."""

    code = "model_failed"


class AnswerTooLarge(Rejection):
    """What came out is more than an answer may hold."""

    code = "answer_too_large"


class InferenceDied(Rejection):
    """The process under the request died. It may have been another's fault, so it may be asked again."""

    code = "inference_died"


class DeadlineExceeded(Rejection):
    """Not answered within the time that the caller gave; if it still waited, it will not be run."""

    code = "deadline_exceeded"


class Overloaded(Rejection):
    """Enough requests wait for this model, or every model that is loaded is busy."""

    code = "overloaded"


class Weight(Struct, frozen=True):
    """What a request weighs: the product of some dimensions of one of its inputs, tokens or pixels.

    Attributes:
        axes: of the input's shape.
        max: of all requests of one batch.
    """

    input: str
    axes: tuple[int, ...]
    max: int


class Serving(Struct, frozen=True):
    """What a model's manifest says, under `serving`, of how it wants to be asked.

    Attributes:
        batch_rows_max: of one run; 1: requests are never put together. Without it the server's limit, where the
            graph's first dimension is called a batch; saying it is a promise that rows know nothing of each other.
        wait_ms_max: how long the first request may wait for others; 0: it never does.
        warm_up: shapes of inputs for the first run.
    """

    batch_rows_max: int | None = None
    wait_ms_max: float = 0.0
    weight: Weight | None = None
    warm_up: dict[str, list[int]] = field(default_factory=dict)


class ModelFile(Struct, frozen=True):
    """Attributes:
    path: in the model cache.
    label: what metrics call it.
    serving: see Serving.
    """

    sha256: str
    path: str
    size_bytes: int
    label: str
    serving: Serving = Serving()


class Bounds(Struct, frozen=True):
    """Of one batch of one model."""

    rows_max: int
    size_bytes_max: int
    weight: Weight | None
    wait_s: float

    @property
    def weight_max(self) -> float:
        return math.inf if self.weight is None else self.weight.max


class Inferred(Struct, frozen=True):
    """Attributes:
    batch_rows: of the run that this was a part of.
    queue_s: from the request's arrival until it was sent to the device.
    """

    outputs: list[Tensor]
    execution_provider: str
    batch_rows: int
    queue_s: float
    infer_s: float


class Request:
    """One caller's tensors, waiting.

    Attributes:
        kind: requests of one kind can be put together.
        until_s: by `time.perf_counter`; it is not run afterwards.
    """

    __slots__ = ("future", "inputs", "kind", "outputs", "rows", "since_s", "size_bytes", "until_s", "weight")

    def __init__(
        self, inputs: Sequence[Tensor], outputs: tuple[str, ...], weight: int = 0, *, timeout_s: float = math.inf
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.kind = (outputs, *((one.name, one.datatype, one.shape[1:]) for one in inputs))
        self.rows = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        self.size_bytes = sum(one.data.nbytes for one in inputs)
        self.weight = weight
        self.since_s = time.perf_counter()
        self.until_s = self.since_s + timeout_s
        self.future: asyncio.Future[Inferred] = asyncio.get_running_loop().create_future()


def serving_of(manifest: Mapping[str, Any]) -> Serving:
    """What a manifest says of it.

    Raises:
        ModelUnusable: what it says makes no sense.
    """
    try:
        found = msgspec.convert(manifest.get("serving") or {}, Serving)
    except msgspec.ValidationError as error:
        raise ModelUnusable(f"its manifest says nothing sensible of serving it: {error}") from error
    rows_max, weight = found.batch_rows_max, found.weight
    if (
        (rows_max is not None and rows_max < 1)
        or (weight is not None and weight.max < 1)
        or not (0 <= found.wait_ms_max <= WAIT_MS_MAX)
    ):
        raise ModelUnusable("its manifest asks for a batch of no rows or weight, or for more than a second of waiting")
    return found


def bounds_of(loaded: Loaded, serving: Serving, *, rows_max: int, size_bytes_max: int) -> Bounds:
    """How much of this model's work may be put together: nothing, unless rows may come in any number everywhere."""
    ports = [*loaded.inputs, *loaded.outputs]
    names = {one.names[0] for one in ports if one.names}
    can = all(one.shape and one.shape[0] == -1 for one in ports) and len(names) == 1
    may = serving.batch_rows_max is not None or all(BATCH_NAMES.fullmatch(name or "") for name in names)
    rows = min(rows_max, serving.batch_rows_max or rows_max) if can and may else 1
    return Bounds(rows, size_bytes_max, serving.weight, serving.wait_ms_max / 1000)


def request_of(
    loaded: Loaded,
    bounds: Bounds,
    inputs: Sequence[Tensor],
    outputs: tuple[str, ...] = (),
    *,
    timeout_s: float = math.inf,
) -> Request:
    """A request for this model, its inputs in the graph's order.

    Raises:
        TensorRefused: a name, a type or a shape that the graph does not have, or more than one run may hold.
    """
    given = {one.name: one for one in inputs}
    wanted = [one.name for one in loaded.inputs]
    if len(given) != len(inputs) or given.keys() != set(wanted):
        raise TensorRefused(f"the model takes the inputs {_listed(wanted)}, each once")
    if outputs and (unknown := set(outputs) - {one.name for one in loaded.outputs}):
        raise TensorRefused(f"the model has no outputs {_listed(unknown)}")
    for port in loaded.inputs:
        _require_fit(port, given[port.name])
    request = Request([given[name] for name in wanted], outputs, _weight(bounds.weight, given), timeout_s=timeout_s)
    if bounds.rows_max > 1:
        if any(one.shape[0] != request.rows for one in inputs):
            raise TensorRefused("the inputs have different numbers of rows")
        if request.rows > bounds.rows_max:
            raise TensorRefused(f"at most {bounds.rows_max} rows at once")
    if request.size_bytes > bounds.size_bytes_max:
        raise TensorRefused(f"at most {bounds.size_bytes_max} bytes of tensors")
    if request.weight > bounds.weight_max:
        raise TensorRefused(f"it weighs {request.weight}, and at most {bounds.weight_max} run at once")
    return request


def _require_fit(port: Port, tensor: Tensor) -> None:
    if tensor.datatype != port.datatype:
        raise TensorRefused(f"{port.name} is {port.datatype}, not {tensor.datatype}")
    known = len(tensor.shape) == len(port.shape)
    if not known or any(wanted not in (-1, size) for wanted, size in zip(port.shape, tensor.shape, strict=True)):
        raise TensorRefused(f"{port.name} has the shape {list(port.shape)}, not {list(tensor.shape)}")


def _weight(weight: Weight | None, given: Mapping[str, Tensor]) -> int:
    if weight is None or weight.input not in given:
        return 0
    shape = given[weight.input].shape
    return math.prod(shape[axis] for axis in weight.axes if 0 <= axis < len(shape))


def _listed(names: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(names))[:NAMES_SHOWN_MAX] or "(none)"
