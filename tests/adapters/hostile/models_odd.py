"""More models: tensors that lie about themselves, graphs that are none, operators asked for the impossible."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tests.adapters.hostile.case import CLEAN, Case
from tests.adapters.hostile.models import (
    AXES,
    BROKEN,
    BUILTIN,
    DEPTH,
    DIED,
    FAILED,
    IMAGE,
    LARGE,
    MALFORMED,
    MEMORY,
    TOO_MUCH,
    UNLOADABLE,
    added,
    answering,
    array,
    built,
    constant,
    elsewhere,
    endless,
    field,
    foreign,
    model,
    no_models,
    node,
    serialized,
    value,
    varint,
    words_of,
)

FLOAT = TensorProto.FLOAT


def tensors() -> Iterator[Case]:
    """Sizes, types and data that do not fit each other."""

    def weight(title: str, *codes: str, **fields: Any) -> Case:
        tensor = TensorProto(**{"name": "w", "data_type": FLOAT, "dims": [1], **fields})
        return model(f"tensor-{title}", serialized(built([added("w")], initializers=[tensor])), *codes)

    yield weight("of-2^40", LARGE, dims=[2**20, 2**20])
    yield weight("that-overflows", LARGE, dims=[2**32, 2**32])
    yield weight("that-overflows-to-one", LARGE, dims=[2**63 - 1, 2**63 - 1, 3])
    yield weight("of-minus-one", LARGE, dims=[-1])
    yield weight("of-100-sides", LARGE, dims=[1] * 100, raw_data=bytes(4))
    yield weight("of-a-thousand-sides", LARGE, dims=[1] * 1_000, raw_data=bytes(4))
    yield weight("without-data", *BROKEN, dims=[1_000])
    yield weight("of-2^30-without-data", *TOO_MUCH, dims=[2**30])
    yield weight("with-too-much-data", *BROKEN, raw_data=bytes(4_000))
    yield weight("of-no-type", *BROKEN, data_type=0, raw_data=bytes(4))
    yield weight("of-an-unknown-type", *BROKEN, data_type=999, raw_data=bytes(4))
    yield weight("of-text", *BROKEN, data_type=TensorProto.STRING, string_data=[b"a" * 10_000])
    yield weight("of-broken-text", *BROKEN, data_type=TensorProto.STRING, string_data=[b"\xff\xfe"])
    yield weight("of-two-kinds-of-data", *BROKEN, CLEAN, raw_data=bytes(4), float_data=[1.0, 2.0])
    yield weight("of-other-numbers", *BROKEN, data_type=TensorProto.INT64, raw_data=bytes(8))
    yield weight("of-half-bytes", *BROKEN, data_type=TensorProto.INT4, dims=[7], raw_data=bytes(1))
    yield weight("empty", *BROKEN, dims=[0])
    yield weight("without-a-name", *BROKEN, name="", raw_data=bytes(4))
    for name, size, indices, code in (
        ("of-2^62", 2**62, [0], (LARGE,)),
        ("of-2^30", 2**30, [0], TOO_MUCH),
        ("outside", 4, [2**40], BROKEN),
        ("before", 4, [-5], BROKEN),
    ):
        sparse = onnx.SparseTensorProto(dims=[size])
        sparse.values.CopyFrom(array(np.ones(1, np.float32)))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices)))
        made = built([node("ReduceSum", ["w"], ["x"], keepdims=0), added("x")])
        made.graph.sparse_initializer.append(sparse)
        yield model(f"sparse-{name}", serialized(made), *code)


def graphs() -> Iterator[Case]:
    """No graph that anybody could walk."""
    weights = [AXES]
    cycle = [node("Add", ["image", "b"], ["a"]), node("Neg", ["a"], ["b"]), node("Neg", ["b"], ["depth"])]
    yield model("a-cycle", serialized(built(cycle)), UNLOADABLE)
    yield model("a-node-of-itself", serialized(built([node("Neg", ["depth"], ["depth"])])), UNLOADABLE)
    yield model("two-of-a-name", serialized(built([DEPTH, DEPTH], initializers=weights)), UNLOADABLE)
    yield model("two-weights-of-a-name", serialized(built([DEPTH], initializers=weights * 2)), UNLOADABLE, CLEAN)
    yield model("nodes-backwards", serialized(built([node("Neg", ["a"], ["depth"]), node("Neg", ["image"], ["a"])])),
                UNLOADABLE, FAILED)  # fmt: skip
    yield model("an-input-of-nobody", serialized(built([added("nobody")])), UNLOADABLE)
    yield model("an-unknown-operator", serialized(built([node("Depth", ["image"], ["depth"])])), UNLOADABLE)
    yield model("no-nodes", serialized(built([])), UNLOADABLE)
    yield model("no-outputs", serialized(built([DEPTH], initializers=weights, outputs=[])), UNLOADABLE, FAILED)
    yield model("no-inputs", serialized(built([constant("depth", [[[[0.5]]]], np.float32)], inputs=[])), FAILED)
    more = [IMAGE, value("mask", shape=[1])]
    yield model("another-input", serialized(built([DEPTH], initializers=weights, inputs=more)), FAILED)
    words = [value("image", TensorProto.STRING, [1])]
    yield model("an-input-of-words", serialized(built([constant("depth", [0.5], np.float32)], inputs=words)), *BROKEN)
    two = [value("depth"), value("again")]
    both = [DEPTH, node("Identity", ["depth"], ["again"])]
    yield model("two-outputs", serialized(built(both, initializers=weights, outputs=two)), FAILED)
    for name, number in (("0", 0), ("negative", -1), ("million", 1_000_000)):
        opsets = {"": number}
        yield model(f"opset-{name}", serialized(built([DEPTH], initializers=weights, opsets=opsets)), UNLOADABLE)
    yield model("ir-version-99999", serialized(built([DEPTH], initializers=weights, ir_version=99_999)), UNLOADABLE)
    yield model("ir-version-0", serialized(built([DEPTH], initializers=weights, ir_version=0)), UNLOADABLE, CLEAN)
    made = built([DEPTH], initializers=weights)
    del made.opset_import[:]
    yield model("no-opset", serialized(made), UNLOADABLE)
    yield model("two-graphs", BUILTIN + BUILTIN, UNLOADABLE)
    yield model("a-name-of-ten-megabytes", BUILTIN + field(2, b"a" * 10_000_000), CLEAN)
    broken_name = field(7, field(1, field(4, b"Neg") + field(1, b"\xff\xfe") + field(2, b"\0")))
    yield model("names-of-no-characters", BUILTIN + broken_name, UNLOADABLE)
    unknown = varint(3_000 << 3 | 2) + varint(3) + b"abc"
    yield model("unknown-fields", BUILTIN + unknown, CLEAN)


def answers() -> Iterator[Case]:
    """Well-formed, but what comes out is no depth."""
    mean = node("ReduceMean", ["image", "axes"], ["mean"], keepdims=1)

    def said(name: str, nodes: list[NodeProto], kind: int | None, *codes: str) -> Case:
        outputs = [value("depth", kind)] if kind is not None else [helper.make_empty_tensor_value_info("depth")]
        return model(f"answer-{name}", serialized(built([mean, *nodes], initializers=[AXES], outputs=outputs)), *codes)

    def cast(kind: int) -> list[NodeProto]:
        return [node("Cast", ["mean"], ["depth"], to=kind)]

    for name in ("DOUBLE", "FLOAT16", "INT32", "UINT8", "BOOL"):
        yield said(name, cast(getattr(TensorProto, name)), getattr(TensorProto, name), CLEAN)
    yield said("STRING", cast(TensorProto.STRING), TensorProto.STRING, FAILED)
    for name in ("BFLOAT16", "FLOAT8E4M3FN", "INT4"):
        yield said(name, cast(getattr(TensorProto, name)), getattr(TensorProto, name), *BROKEN, CLEAN)
    yield said("of-another-shape", [node("Identity", ["image"], ["depth"])], FLOAT, FAILED)
    yield said("scalar", [constant("depth", 0.5, np.float32)], FLOAT, FAILED)
    yield said("nan", [constant("n", np.nan, np.float32), node("Add", ["mean", "n"], ["depth"])], FLOAT, FAILED)
    yield said("infinite", [constant("n", np.inf, np.float32), node("Add", ["mean", "n"], ["depth"])], FLOAT, FAILED)
    yield said("beyond", [constant("n", 1e30, np.float32), node("Mul", ["mean", "n"], ["depth"])], FLOAT, CLEAN)
    made = built([mean, node("SequenceConstruct", ["mean", "mean"], ["depth"])], initializers=[AXES])
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_sequence_value_info("depth", FLOAT, None))
    yield model("answer-list", serialized(made), FAILED)
    flat = [constant("shape", [1, -1]), node("Reshape", ["mean", "shape"], ["flat"])]
    zipped = node("ZipMap", ["part"], ["depth"], domain="ai.onnx.ml", classlabels_int64s=[1])
    parts = [
        constant("a", [0]),
        constant("z", [1]),
        constant("i", [1]),
        node("Slice", ["flat", "a", "z", "i"], ["part"]),
    ]
    made = built([mean, *flat, *parts, zipped], initializers=[AXES])
    del made.graph.output[:]
    entry = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    made.graph.output.append(helper.make_value_info("depth", helper.make_sequence_type_proto(entry)))
    yield model("answer-dictionaries", serialized(made), FAILED)


def operators() -> Iterator[Case]:
    """Standard operators, asked for what cannot be."""

    def op(title: str, kind: str, given: list[str], before: list[NodeProto], *codes: str, **attributes: Any) -> Case:
        weights = [array(np.ones((4, 3, 3, 3), np.float32)), array(np.ones(3, np.float32), "three")]
        made = [*before, node(kind, given, ["x"], **attributes)]
        return model(f"{kind}-{title}", answering(made, weights), *(codes or BROKEN))

    far, ints, huge = 2**40, [constant("i", [2**40])], [constant("i", [2**62])]
    yield op("outside", "Gather", ["image", "i"], ints)
    yield op("outside", "GatherElements", ["three", "i"], ints)
    yield op("outside", "GatherND", ["image", "i"], [constant("i", [[far, far]])])
    yield op("outside", "ScatterND", ["three", "i", "u"], [constant("i", [[far]]), constant("u", [1], np.float32)])
    yield op("outside", "ScatterElements", ["three", "i", "u"], [*ints, constant("u", [1], np.float32)])
    yield op("to-2^62", "Reshape", ["image", "i"], huge)
    yield op("negative", "Reshape", ["image", "i"], [constant("i", [-7])])
    yield op("far-axis", "Concat", ["image", "image"], [], axis=2**31)
    yield op("far-axis", "Softmax", ["image"], [], axis=-(2**31))
    yield op("far-axis", "Unsqueeze", ["image", "i"], ints)
    yield op("one-way", "Transpose", ["image"], [], perm=[0, 0, 0, 0])
    yield op("too-many", "TopK", ["three", "i"], ints)
    yield op("uneven", "Split", ["three", "i"], [constant("i", [far, -far])])
    yield op("steps-of-zero", "Slice", ["three", "a", "z", "a", "a"], [constant("a", [0]), constant("z", [1])])
    yield op("steps-of-zero", "Range", ["a", "z", "a"], [constant("a", 0), constant("z", 9)], *BROKEN, *TOO_MUCH)
    yield op("strides-of-zero", "Conv", ["image", "w"], [], strides=[0, 0])
    yield op("negative-pads", "Conv", ["image", "w"], [], pads=[-(2**31)] * 4)
    yield op("no-groups", "Conv", ["image", "w"], [], *BROKEN, DIED, group=0)
    yield op("dilated", "Conv", ["image", "w"], [], dilations=[2**31, 2**31])
    yield op("strides-of-zero", "MaxPool", ["image"], [], kernel_shape=[2, 2], strides=[0, 0])
    yield op("kernel-of-2^31", "AveragePool", ["image"], [], kernel_shape=[2**31, 2**31])
    yield op("no-number", "Resize", ["image", "", "s"], [constant("s", [1, 1, np.nan, np.nan], np.float32)])
    yield op("negative", "Resize", ["image", "", "s"], [constant("s", [1, 1, -1, -1], np.float32)])
    yield op("negative", "ConstantOfShape", ["i"], [constant("i", [-5])])
    yield op("nonsense", "Einsum", ["image", "image"], [], equation="a...b..,->->")
    yield op("other-sizes", "MatMul", ["image", "three"], [])
    yield op("no-groups", "GroupNormalization", ["image", "three", "three"], [], *BROKEN, DIED, num_groups=0)
    yield op("far", "CumSum", ["three", "i"], [constant("i", 2**31)])
    minus = [constant("i", [far]), constant("d", [-3]), constant("v", [0, 1], np.float32)]
    yield op("of-minus-three", "OneHot", ["i", "d", "v"], minus, *BROKEN, DIED)  # an assertion of the runtime's own
    lstm: dict[str, Any] = {"hidden_size": 2**31 - 1}
    yield op("hidden-2^31", "LSTM", ["image", "w", "w"], [], *BROKEN, *TOO_MUCH, **lstm)
    yield op("block-of-2^31", "DepthToSpace", ["image"], [], blocksize=2**31 - 1)
    yield op("block-of-zero", "SpaceToDepth", ["image"], [], *BROKEN, DIED, blocksize=0)
    quantised = [constant("q", [1, 2, 3], np.int8), constant("s", [0, 0, 0], np.float32)]
    yield op("blocks-of-2^40", "DequantizeLinear", ["q", "s"], quantised, *BROKEN, CLEAN, block_size=far)
    yield op("far-axis", "DequantizeLinear", ["q", "s"], quantised, *BROKEN, axis=2**20)
    yield op("scale-of-zero", "QuantizeLinear", ["three", "s"], [constant("s", 0, np.float32)], *BROKEN, CLEAN)
    yield op("no-pattern", "RegexFullMatch", ["t"], [text()], *BROKEN, pattern="((((")
    yield op("slow-pattern", "RegexFullMatch", ["t"], [text()], CLEAN, pattern="(a*)*(a*)*b")
    yield op("no-locale", "StringNormalizer", ["t"], [text()], *BROKEN, case_change_action="LOWER", locale="../../x")


def text() -> NodeProto:
    return node("Constant", [], ["t"], value=words_of(b"a" * 5_000))


def trees() -> Iterator[Case]:
    """Trees that are no trees, and tables whose columns have other lengths than they must."""
    whole = {
        "n_targets": 1,
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [0, 0, 0],
        "nodes_values": [0.5, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights": [0.2, 0.8],
    }

    def tree(name: str, *codes: str, **changed: Any) -> Case:
        attributes = {**whole, **changed}
        flat = [constant("shape", [-1, 1]), node("Reshape", ["image", "shape"], ["flat"])]
        grown = node("TreeEnsembleRegressor", ["flat"], ["x"], domain="ai.onnx.ml", **attributes)
        return model(f"tree-{name}", answering([*flat, grown]), *codes)

    branches = ["BRANCH_LEQ"] * 3
    yield tree("honest", CLEAN)
    yield tree("in-a-circle", *BROKEN, DIED, nodes_modes=branches, nodes_truenodeids=[1, 0, 0],
               nodes_falsenodeids=[2, 0, 0])  # fmt: skip
    yield tree("of-itself", *BROKEN, DIED, nodes_modes=branches, nodes_truenodeids=[0, 0, 0],
               nodes_falsenodeids=[0, 0, 0])  # fmt: skip
    yield tree("outside", *BROKEN, DIED, nodes_truenodeids=[99, 0, 0], nodes_falsenodeids=[-99, 0, 0])
    yield tree("of-few-columns", *BROKEN, DIED, nodes_values=[0.5])
    yield tree("of-far-features", *BROKEN, DIED, CLEAN, nodes_featureids=[2**40, 0, 0])
    yield tree("of-far-targets", *BROKEN, DIED, target_ids=[2**31, 0])
    yield tree("of-many-targets", *BROKEN, MEMORY, n_targets=2**40)
    yield tree("of-no-mode", *BROKEN, nodes_modes=["FELL", "LEAF", "LEAF"])
    labels: dict[str, Any] = {"keys_int64s": [1, 2], "values_floats": [1.0]}
    encoder = node("LabelEncoder", ["i"], ["x"], domain="ai.onnx.ml", **labels)
    yield model("labels-without-values", answering([constant("i", [1]), encoder]), *BROKEN)
    machine: dict[str, Any] = {
        "coefficients": [1.0],
        "support_vectors": [1.0] * 7,
        "n_supports": 2**30,
        "kernel_type": "RBF",
    }
    flat = [constant("shape", [-1, 1]), node("Reshape", ["image", "shape"], ["flat"])]
    svm = node("SVMRegressor", ["flat"], ["x"], domain="ai.onnx.ml", **machine)
    yield model("a-machine-of-2^30-vectors", answering([*flat, svm]), *BROKEN, *TOO_MUCH, DIED)
    picked = node("ArrayFeatureExtractor", ["flat", "i"], ["x"], domain="ai.onnx.ml")
    yield model("features-outside", answering([*flat, constant("i", [2**40]), picked]), *BROKEN)
    scaled = node("Scaler", ["flat"], ["x"], domain="ai.onnx.ml", offset=[1.0] * 9, scale=[1.0])
    yield model("scales-of-another-length", answering([*flat, scaled]), *BROKEN)


def models(canary: Path) -> list[Case]:
    """All of them; `canary` is a file that none of them may have opened."""
    makers = (
        no_models(),
        foreign(),
        elsewhere(canary),
        endless(),
        tensors(),
        graphs(),
        answers(),
        operators(),
        trees(),
    )
    made = [model("the-built-in-one", BUILTIN, CLEAN), *chain(*makers)]
    assert len({one.name for one in made}) == len(made)
    assert MALFORMED in {code for one in made for code in one.codes}
    return made
