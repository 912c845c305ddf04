"""Models that hurt, lie, or are merely odd; made by code, so that everybody can see what is in them.

Each claims to estimate depth: it is given a picture as `image` (1 × 3 × height × width), and asked for `depth`.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tests.adapters.hostile.case import CLEAN, Case, case

from sightline.adapters import builtin

DOMAIN, EXTERNAL = "model_domain", "model_external_data"
MALFORMED, LARGE = "model_malformed", "model_too_large"
UNLOADABLE, FAILED = "model_unloadable", "model_failed"
MEMORY, TIME, DIED = "out_of_memory", "timeout", "runner_died"
# Where a release of the runtime may find it earlier or later.
BROKEN = (UNLOADABLE, FAILED)
TOO_MUCH = (MEMORY, UNLOADABLE, FAILED)

ANY = np.iinfo(np.int64).max
IMAGE = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, None, None])
BUILTIN = builtin.model_path(builtin.manifests()["depth-heuristic"]).read_bytes()
DEPTH = helper.make_node("ReduceMean", ["image", "axes"], ["depth"], keepdims=1)
AXES = numpy_helper.from_array(np.array([1]), "axes")

node = helper.make_node


def value(name: str, kind: int = TensorProto.FLOAT, shape: list[int | None] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, data: object, kind: type[np.generic] = np.int64) -> NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.array(data, kind)))


def built(
    nodes: list[NodeProto],
    *,
    initializers: list[TensorProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    inputs: list[onnx.ValueInfoProto] | None = None,
    opsets: dict[str, int] | None = None,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """A graph that ends in `depth`, unchecked."""
    graph = helper.make_graph(
        nodes,
        "g",
        [IMAGE] if inputs is None else inputs,
        [value("depth", shape=[1, 1, None, None])] if outputs is None else outputs,
        initializers or [],
    )
    imported = [helper.make_opsetid(name, version) for name, version in (opsets or {"": 21, "ai.onnx.ml": 3}).items()]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=imported)


def answering(nodes: list[NodeProto], initializers: list[TensorProto] | None = None, **more: object) -> bytes:
    """A model whose depth is the picture's mean and the first element of what `nodes` leave in `x`."""
    shown = [
        constant("one", [1]),
        node("Cast", ["x"], ["x_float"], to=TensorProto.FLOAT),
        node("Reshape", ["x_float", "all"], ["x_flat"]),
        constant("all", [-1]),
        constant("first", [0]),
        node("Slice", ["x_flat", "first", "one"], ["x_first"]),
        node("Mul", ["x_first", "none"], ["x_nothing"]),
        constant("none", [0], np.float32),
        node("ReduceMean", ["image", "axes"], ["mean"], keepdims=1),
        node("Add", ["mean", "x_nothing"], ["depth"]),
    ]
    ordered = sorted([*nodes, *shown], key=lambda one: bool(one.input))
    return serialized(built(ordered, initializers=[AXES, *(initializers or [])], **more))  # type: ignore[arg-type]  # built()'s own


def serialized(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def model(name: str, content: bytes, *codes: str) -> Case:
    return case(name, content, "application/octet-stream", *codes)


def no_models() -> Iterator[Case]:
    """Bytes that are no model, or not a whole one."""
    yield model("empty", b"", MALFORMED)
    yield model("png", b"\x89PNG\r\n\x1a\n" * 20, MALFORMED)
    yield model("pickle", b"\x80\x04cposix\nsystem\n(S'true'\ntR.", MALFORMED)
    yield model("zip", b"PK\x03\x04" + bytes(60), MALFORMED)
    yield model("text", b"hello, world\n" * 10, MALFORMED)
    for seed in range(4):
        yield model(f"noise-{seed}", Random(seed).randbytes(4_000), MALFORMED)
    for share in (0.01, 0.2, 0.5, 0.9, 0.999):
        yield model(f"cut-{share}", BUILTIN[: int(len(BUILTIN) * share)], MALFORMED)
    yield model("no-graph", field(2, b"somebody"), MALFORMED)
    yield model("length-of-2^63", varint(7 << 3 | 2) + varint(2**63) + b"x", MALFORMED)
    yield model("number-without-end", b"\x08" + b"\xff" * 50, MALFORMED)
    yield model("group", b"\x3b\x3c", MALFORMED)
    yield model("graph-is-a-number", varint(7 << 3) + b"\x01", MALFORMED)
    yield model("runtime-format", b"\x14\0\0\0ORTM" + bytes(200), MALFORMED)
    yield model("runtime-format-and-onnx", field(2, b"xxORTM") + BUILTIN, MALFORMED)


def foreign() -> Iterator[Case]:
    """Operators that are not of the standard, wherever one may be named."""
    opsets = {"": 21, "com.microsoft": 1}
    gelu = node("Gelu", ["image"], ["depth"], domain="com.microsoft")
    yield model("foreign-node", serialized(built([gelu])), DOMAIN)
    yield model("foreign-opset", serialized(built([DEPTH], initializers=[AXES], opsets=opsets)), DOMAIN)
    for name in ("ai.onnx.training", "ai.onnx.preview.training", "local", "ai.onnx\0", "AI.ONNX.ML", "x" * 10_000):
        yield model(f"domain-{name[:24]!a}", serialized(built([node("A", ["image"], ["depth"], domain=name)])), DOMAIN)
    for place in ("If", "Loop", "Scan"):
        yield model(f"foreign-in-{place}", serialized(built([*inside(place, gelu)])), DOMAIN)
    local = helper.make_function("local", "F", ["a"], ["b"], [node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 21)])
    for name, domain in (("function", "local"), ("function-of-the-standard", "")):
        local.domain = domain
        made = built([node("F", ["image"], ["depth"], domain=domain)])
        made.functions.append(local)
        yield model(name, serialized(made), DOMAIN)
    endless = helper.make_function("", "F", ["a"], ["b"], [node("F", ["a"], ["b"])], [helper.make_opsetid("", 21)])
    made = built([node("F", ["image"], ["depth"])])
    made.functions.append(endless)
    yield model("function-that-calls-itself", serialized(made), DOMAIN)
    # The last one of a repeated field wins; messages that come twice are merged.
    plain = serialized(built([DEPTH], initializers=[AXES]))
    twice = field(1, serialized(DEPTH) + field(7, b"") + field(7, b"com.microsoft"))
    yield model("domain-said-twice", plain + field(7, twice), DOMAIN)
    made = built([DEPTH], initializers=[AXES])
    training = made.training_info.add()
    training.algorithm.node.append(gelu)
    yield model("foreign-in-training", serialized(made), DOMAIN)


def inside(place: str, one: NodeProto) -> list[NodeProto]:
    """`one`, which reads `image` and makes `depth`, in a graph within the graph."""
    result = value("depth")
    if place == "If":
        branch = helper.make_graph([one], "b", [], [result])
        return [constant("c", 1, np.bool_), node("If", ["c"], ["depth"], then_branch=branch, else_branch=branch)]
    if place == "Loop":
        going = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])]
        body = helper.make_graph([node("Identity", ["go"], ["on"]), one], "b", going, [value("on", 9, []), result])
        return [constant("n", 1), constant("c", 1, np.bool_), node("Loop", ["n", "c"], ["depth"], body=body)]
    body = helper.make_graph([one], "b", [value("part")], [result])
    return [node("Scan", ["image"], ["depth"], body=body, num_scan_inputs=1)]


def elsewhere(canary: Path) -> Iterator[Case]:
    """Tensors that lie in files of ours: `canary` is one that may never be opened."""
    locations = {
        "passwd": "/etc/passwd",
        "canary": str(canary),
        "above": "../" * 12 + str(canary).lstrip("/"),
        "name": canary.name,
        "url": f"file://{canary}",
        "http": "http://127.0.0.1:1/weights",
        "link": "link",
        "descriptor": "/proc/self/fd/0",
        "environment": "/proc/self/environ",
        "nul": f"{canary}\0.bin",
        "empty": "",
    }
    for name, location in locations.items():
        yield model(f"external-{name}", serialized(built([added("w")], initializers=[external(location)])), EXTERNAL)
    outside = external(str(canary))
    in_node = node("Constant", [], ["w"], value=outside)
    yield model("external-constant", serialized(built([in_node, added("w")])), EXTERNAL)
    for place in ("If", "Loop", "Scan"):
        content = serialized(built(inside(place, node("Constant", [], ["depth"], value=outside))))
        yield model(f"external-in-{place}", content, EXTERNAL)
    listed = node("Identity", ["image"], ["depth"])
    listed.attribute.append(helper.make_attribute("many", [outside, outside]))
    yield model("external-in-a-list", serialized(built([listed])), EXTERNAL)
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(outside)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4)))
    made = built([added("w")])
    made.graph.sparse_initializer.append(sparse)
    yield model("external-sparse", serialized(made), EXTERNAL)
    unflagged = external(str(canary))
    unflagged.data_location = TensorProto.DEFAULT
    yield model("external-unflagged", serialized(built([added("w")], initializers=[unflagged])), EXTERNAL)
    flag_only = numpy_helper.from_array(np.ones(1, np.float32), "w")
    flag_only.data_location = TensorProto.EXTERNAL
    yield model("external-flag-only", serialized(built([added("w")], initializers=[flag_only])), EXTERNAL)


def added(name: str) -> NodeProto:
    return node("Add", ["image", name], ["depth"])


def external(location: str, length: int = 4) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, said in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=said)
    return tensor


def endless() -> Iterator[Case]:
    """Small files that ask for much: of memory, of time, of nesting."""
    huge = [constant("shape", [100_000, 100_000])]
    plain = built(
        [huge[0], node("ConstantOfShape", ["shape"], ["depth"])], outputs=[value("depth", shape=[])], inputs=[]
    )
    yield model("forty-gigabytes-and-nothing-else", serialized(plain), *TOO_MUCH)
    yield model("forty-gigabytes", answering([*huge, node("ConstantOfShape", ["shape"], ["x"])]), *TOO_MUCH)
    yield model(
        "expand", answering([*huge, constant("a", [1], np.float32), node("Expand", ["a", "shape"], ["x"])]), MEMORY
    )
    yield model(
        "tile", answering([*huge, constant("a", [[1]], np.float32), node("Tile", ["a", "shape"], ["x"])]), *TOO_MUCH
    )
    counted = [constant("from", 0), constant("to", 10**10), constant("step", 1)]
    yield model("range", answering([*counted, node("Range", ["from", "to", "step"], ["x"])]), *TOO_MUCH)
    yield model("random", answering([node("RandomNormal", [], ["x"], shape=[100_000, 100_000])]), *TOO_MUCH)
    hot = [constant("i", [0]), constant("depth_of", [10**10]), constant("off_on", [0, 1], np.float32)]
    yield model("one-hot", answering([*hot, node("OneHot", ["i", "depth_of", "off_on"], ["x"])]), *TOO_MUCH)
    pads = [constant("pads", [0, 0, 0, 0, 0, 0, 10**5, 10**5])]
    yield model("pad", answering([*pads, node("Pad", ["image", "pads"], ["x"])]), *TOO_MUCH)
    scale = [constant("scales", [1, 1, 1e5, 1e5], np.float32)]
    yield model("resize", answering([*scale, node("Resize", ["image", "", "scales"], ["x"])]), *TOO_MUCH)
    yield model("window", answering([constant("n", 10**11), node("HannWindow", ["n"], ["x"])]), *TOO_MUCH)
    square = [constant("s", [40_000, 1]), constant("r", [1, 40_000])]
    square += [node("ConstantOfShape", ["s"], ["a"]), node("ConstantOfShape", ["r"], ["b"])]
    yield model("outer-product", answering([*square, node("MatMul", ["a", "b"], ["x"])]), *TOO_MUCH)
    yield model("quantised", answering(quantised()), *TOO_MUCH)
    yield model("wide-convolution", answering([node("ConvTranspose", ["image", "w"], ["x"], strides=[9_000, 9_000])],
                [numpy_helper.from_array(np.ones((3, 1, 1, 1), np.float32), "w")]), *TOO_MUCH)  # fmt: skip
    yield model("a-loop-without-end", looping([node("Identity", ["go"], ["on"])]), TIME)
    yield model("a-loop-in-a-loop", looping([*nested_loop(), node("Identity", ["go"], ["on"])]), TIME)
    yield model("a-loop-that-grows", growing(), MEMORY, TIME)
    yield model("a-loop-that-keeps", keeping(), MEMORY, TIME)
    yield model("a-loop-of-words", words(), MEMORY, TIME, *BROKEN)
    yield model("ifs-4-deep", serialized(built(nest(4), initializers=[AXES])), CLEAN)
    yield model("ifs-20-deep", serialized(built(nest(20), initializers=[AXES])), LARGE)
    deep = b""
    for _ in range(3_000):
        deep = field(6, field(1, field(5, deep)))  # an attribute's graph with one node with one attribute
    yield model("graphs-3000-deep", field(7, field(1, field(5, deep))), LARGE)
    kind = field(1, varint(1 << 3) + b"\x01")
    for _ in range(2_000):
        kind = field(4, field(1, kind))  # a sequence of sequences of …
    yield model("types-2000-deep", BUILTIN + field(7, field(11, field(1, b"v") + field(2, kind))), UNLOADABLE)
    yield model("a-million-nodes", field(7, field(1, b"") * 1_000_000), LARGE)
    yield model("a-million-initializers", field(7, field(5, b"") * 1_000_000), LARGE)
    yield model("a-million-fields", b"\x08\x0a" * 1_000_001, LARGE)
    chain = [node("Neg", ["image" if n == 0 else f"n{n}"], [f"n{n + 1}"]) for n in range(300)]
    yield model("300-nodes", serialized(built([*chain, node("ReduceMean", ["n300", "axes"], ["depth"])],
                initializers=[AXES])), CLEAN)  # fmt: skip


def quantised() -> list[NodeProto]:
    """One byte and its scale, over ten billion elements."""
    small = [constant("q", [1], np.int8), constant("scale", 1, np.float32), constant("shape", [100_000, 100_000])]
    return [*small, node("Expand", ["q", "shape"], ["wide"]), node("DequantizeLinear", ["wide", "scale"], ["x"])]


def looping(body: list[NodeProto]) -> bytes:
    """`body`, which reads `go` and writes `on`, for as long as that is true."""
    going = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("was", shape=[1])]
    kept = [value("on", TensorProto.BOOL, []), value("is", shape=[1])]
    graph = helper.make_graph([*body, node("Neg", ["was"], ["is"])], "b", going, kept)
    start = [constant("n", ANY), constant("c", 1, np.bool_), constant("v", [1], np.float32)]
    return answering([*start, node("Loop", ["n", "c", "v"], ["x"], body=graph)])


def nested_loop() -> list[NodeProto]:
    inner_in = [value("j", TensorProto.INT64, []), value("go2", TensorProto.BOOL, []), value("w", shape=[1])]
    inner_out = [value("on2", TensorProto.BOOL, []), value("w2", shape=[1])]
    body = [node("Identity", ["go2"], ["on2"]), node("Neg", ["w"], ["w2"])]
    return [node("Loop", ["", "go", "was"], ["inner"], body=helper.make_graph(body, "c", inner_in, inner_out))]


def growing() -> bytes:
    """What it carries is twice as long after each round."""
    going = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("was", shape=[None])]
    kept = [value("on", TensorProto.BOOL, []), value("is", shape=[None])]
    doubled = [node("Identity", ["go"], ["on"]), node("Concat", ["was", "was"], ["is"], axis=0)]
    graph = helper.make_graph(doubled, "b", going, kept)
    start = [constant("n", ANY), constant("c", 1, np.bool_), constant("v", [1], np.float32)]
    return answering([*start, node("Loop", ["n", "c", "v"], ["x"], body=graph)])


def keeping() -> bytes:
    """A little more is kept in each round."""
    going = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])]
    kept = [value("on", TensorProto.BOOL, []), value("part", shape=[1_000_000])]
    made = [constant("s", [1_000_000]), node("ConstantOfShape", ["s"], ["part"]), node("Identity", ["go"], ["on"])]
    graph = helper.make_graph(made, "b", going, kept)
    start = [constant("n", ANY), constant("c", 1, np.bool_)]
    return answering([*start, node("Loop", ["n", "c"], ["x"], body=graph)])


def words() -> bytes:
    """A text that is twice as long after each round."""
    text = TensorProto.STRING
    going = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("was", text, [1])]
    kept = [value("on", TensorProto.BOOL, []), value("is", text, [1])]
    made = [node("Identity", ["go"], ["on"]), node("StringConcat", ["was", "was"], ["is"])]
    graph = helper.make_graph(made, "b", going, kept)
    word = node("Constant", [], ["v"], value=words_of(b"a" * 100))
    start = [constant("n", ANY), constant("c", 1, np.bool_), word]
    return answering([*start, node("Loop", ["n", "c", "v"], ["t"], body=graph), node("Shape", ["t"], ["x"])])


def words_of(text: bytes) -> TensorProto:
    return TensorProto(name="t", data_type=TensorProto.STRING, dims=[1], string_data=[text])


def nest(depth: int) -> list[NodeProto]:
    """An If in an If in an If, around the honest node."""
    nodes = [DEPTH]
    other = helper.make_graph([node("Identity", ["image"], ["depth"])], "o", [], [value("depth")])
    for level in range(depth):
        branch = helper.make_graph(nodes, f"b{level}", [], [value("depth")])
        condition = constant(f"c{level}", 1, np.bool_)
        nodes = [condition, node("If", [f"c{level}"], ["depth"], then_branch=branch, else_branch=other)]
    return nodes


def array(data: NDArray[np.generic], name: str = "w") -> TensorProto:
    return numpy_helper.from_array(data, name)
