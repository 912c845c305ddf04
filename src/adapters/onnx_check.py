"""What an ONNX file may hold before a runtime sees it: standard operators only, and nothing outside the file.

A walk over the protobuf itself, along the few fields that matter (field numbers from onnx.proto), since the `onnx`
package is not needed to serve. It does not bound what a graph may ask for at run time: a file of a hundred bytes can
ask for gigabytes. That is bounded by the process that runs it (address space, time), see `child.py`.
"""

from collections.abc import Iterator

DOMAINS = frozenset({b"", b"ai.onnx.ml"})
DEPTH_MAX = 32  # of graphs within graphs
FIELDS_MAX = 2_000_000
VARINT_BYTES_MAX = 10

VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5

# Where to look further: message → field number → message.
CHILDREN = {
    "Model": {7: "Graph", 8: "OperatorSet", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "Function": {7: "Node", 9: "OperatorSet", 11: "Attribute"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "OperatorSet": {},
    "Tensor": {},
}
DOMAIN_FIELDS = {"Node": 7, "OperatorSet": 1, "Function": 10}
EXTERNAL_DATA_FIELDS = {13, 14}  # of a tensor: where it lies, and whether (0: here, 1: elsewhere)


class ModelRefused(ValueError):
    """A model that we do not load.

    Attributes:
        code: `model_domain`, `model_external_data` or `model_malformed`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check(model: bytes) -> None:
    """Say nothing about a model that may be loaded.

    Raises:
        ModelRefused: an operator of another domain, a tensor that lies in another file, or no protobuf at all.
    """
    waiting: list[tuple[str, memoryview, int]] = [("Model", memoryview(model), 0)]
    fields = 0
    graphs = 0
    while waiting:
        message, data, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise ModelRefused("model_malformed", f"nested more than {DEPTH_MAX} deep")
        for number, wire, value in _fields(data):
            fields += 1
            if fields > FIELDS_MAX:
                raise ModelRefused("model_malformed", f"more than {FIELDS_MAX} fields")
            if number == DOMAIN_FIELDS.get(message) and bytes(_body(wire, value)) not in DOMAINS:
                name = bytes(_body(wire, value))[:100].decode(errors="replace")
                raise ModelRefused("model_domain", f"it needs operators of the domain {name!r}")
            if message == "Tensor" and number in EXTERNAL_DATA_FIELDS and value != 0:
                raise ModelRefused("model_external_data", "a tensor lies outside the file")
            if (child := CHILDREN[message].get(number)) is not None:
                graphs += message == "Model" and child == "Graph"
                waiting.append((child, _body(wire, value), depth + 1))
    if not graphs:
        raise ModelRefused("model_malformed", "it holds no graph")


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
