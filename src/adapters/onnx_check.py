"""What an ONNX file may hold before a runtime sees it: standard operators only, nothing outside the file, and no more
nodes, tensors and nesting than a runtime gets through.

A walk over the protobuf itself, along the few fields that matter (field numbers from onnx.proto), since the `onnx`
package is not needed to serve. It does not bound what a graph may ask for at run time: a file of a hundred bytes can
ask for gigabytes. That is bounded by the process that runs it (address space, time), see `child.py`.
"""

import math
from collections.abc import Iterator

DOMAINS = frozenset({b"", b"ai.onnx.ml"})
DEPTH_MAX = 32  # of messages within messages; a graph within a graph is three
FIELDS_MAX = 1_000_000
MESSAGES_MAX = 200_000  # nodes, their attributes, tensors: the largest published graphs have some ten thousand nodes
DIMENSIONS_MAX = 64
ELEMENTS_MAX = 2**31  # of one tensor inside the file, as it says itself; sparse ones are unpacked to this
VARINT_BYTES_MAX = 10

VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5

# Where to look further: message → field number → message.
CHILDREN = {
    "Model": {7: "Graph", 8: "OperatorSet", 20: "Training"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "OperatorSet": {},
    "Tensor": {},
}
DOMAIN_FIELDS = {"Node": 7, "OperatorSet": 1}
FUNCTIONS_FIELD = 25  # of a model: operators of its own, which may take a standard one's name, or call themselves
DIMENSION_FIELDS = {"Tensor": 1, "SparseTensor": 3}
DOMAIN_CHARS_SHOWN = 100
# ONNX Runtime's own format is told by these bytes at this place, where a protobuf may have them too.
FLATBUFFER_MARK, FLATBUFFER_MARK_AT = b"ORTM", slice(4, 8)
EXTERNAL_DATA_FIELDS = {13, 14}  # of a tensor: where it lies, and whether (0: here, 1: elsewhere)


class ModelRefused(ValueError):
    """A model that we do not load.

    Attributes:
        code: `model_domain`, `model_external_data`, `model_too_large` or `model_malformed`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check(model: bytes) -> None:
    """Say nothing about a model that may be loaded.

    Raises:
        ModelRefused: an operator of another domain, a tensor that lies in another file, more of something than is
            allowed, or no ONNX at all.
    """
    if model[FLATBUFFER_MARK_AT] == FLATBUFFER_MARK:
        raise ModelRefused("model_malformed", "it is of the runtime's own format, not ONNX")
    waiting: list[tuple[str, memoryview, int]] = [("Model", memoryview(model), 0)]
    fields = messages = graphs = 0
    while waiting:
        message, data, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise ModelRefused("model_too_large", f"nested more than {DEPTH_MAX} deep")
        shape: list[int] = []
        for number, wire, value in _fields(data):
            fields += 1
            if fields > FIELDS_MAX:
                raise ModelRefused("model_too_large", f"more than {FIELDS_MAX} fields")
            if number == DIMENSION_FIELDS.get(message):
                shape += _dimensions(value)
                _require_elements(shape)
            else:
                _require_allowed(message, number, wire, value)
            if (child := CHILDREN[message].get(number)) is not None:
                messages += 1
                if messages > MESSAGES_MAX:
                    raise ModelRefused("model_too_large", f"more than {MESSAGES_MAX} nodes, attributes and tensors")
                graphs += message == "Model" and child == "Graph"
                waiting.append((child, _body(wire, value), depth + 1))
    if not graphs:
        raise ModelRefused("model_malformed", "it holds no graph")


def _require_allowed(message: str, number: int, wire: int, value: int | memoryview) -> None:
    if number == DOMAIN_FIELDS.get(message) and _body(wire, value) not in DOMAINS:
        name = bytes(_body(wire, value)[:DOMAIN_CHARS_SHOWN]).decode(errors="replace")
        raise ModelRefused("model_domain", f"it needs operators of the domain {name!r}")
    if message == "Model" and number == FUNCTIONS_FIELD:
        raise ModelRefused("model_domain", "it defines operators of its own")
    if message == "Tensor" and number in EXTERNAL_DATA_FIELDS and value != 0:
        raise ModelRefused("model_external_data", "a tensor lies outside the file")


def _dimensions(value: int | memoryview) -> list[int]:
    """Of a shape, which comes packed, or number by number."""
    if isinstance(value, int):
        return [value]
    found: list[int] = []
    at = 0
    while at < len(value) and len(found) <= DIMENSIONS_MAX:
        number, at = _varint(value, at)
        found.append(number)
    return found


def _require_elements(shape: list[int]) -> None:
    """A negative size has the highest bit set: it is as good as too large."""
    if len(shape) > DIMENSIONS_MAX or math.prod(shape) > ELEMENTS_MAX or max(shape, default=0) > ELEMENTS_MAX:
        raise ModelRefused("model_too_large", f"a tensor has over {ELEMENTS_MAX} elements, or {DIMENSIONS_MAX} sides")


def _body(wire: int, value: int | memoryview) -> memoryview:
    if wire != LENGTH or isinstance(value, int):
        raise ModelRefused("model_malformed", "a field is of the wrong type")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of each field of one message; fixed-size values are skipped as 0."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        value: int | memoryview = 0
        if wire == VARINT:
            value, at = _varint(data, at)
        elif wire == LENGTH:
            length, at = _varint(data, at)
            value = data[at : at + length]
            at += length
        elif wire in {FIXED_64, FIXED_32}:
            at += 8 if wire == FIXED_64 else 4
        else:
            raise ModelRefused("model_malformed", f"wire type {wire}")
        if at > len(data):
            raise ModelRefused("model_malformed", "it ends inside a field")
        yield key >> 3, wire, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(VARINT_BYTES_MAX):
        if at >= len(data):
            break
        byte = data[at]
        value |= (byte & 0x7F) << (7 * shift)
        at += 1
        if not byte & 0x80:
            return value, at
    raise ModelRefused("model_malformed", "a number does not end")
