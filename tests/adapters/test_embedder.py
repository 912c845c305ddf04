"""Texts in batches: each is embedded once, whatever stands beside it, and a stranger's model may answer anything."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, ValueInfoProto, helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sightline.adapters import minilm
from sightline.adapters.embedder import PADDED_TOKENS_MAX, TOKENIZER, Embedder, EmbeddingFailed, batches
from sightline.adapters.onnx import MANIFEST, Session, SessionCache
from sightline.adapters.onnx_check import ModelRefused
from sightline.adapters.onnx_graph import Graph

WORDS = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
WORDS.pre_tokenizer = Whitespace()


def of_type(name: str, kind: int, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def saved(directory: Path, graph: Graph, output: ValueInfoProto, metadata: dict[str, str]) -> Session:
    names = {name for node in graph.nodes for name in node.input} & {"input_ids", "attention_mask", "token_type_ids"}
    inputs = [of_type(name, TensorProto.INT64, "batch", "sequence") for name in sorted(names)]
    data = graph.serialised("m", inputs=inputs, outputs=[output], opset=20, ir_version=10, metadata=metadata)
    path = directory / "m.onnx"
    path.write_bytes(data)
    return SessionCache().get(path, hashlib.sha256(data).hexdigest())


def counting(directory: Path, **changed: str) -> Session:
    """A model whose vector is (how many tokens, what their ids add up to)."""
    graph = Graph()
    ids = graph.cast("input_ids", TensorProto.FLOAT, to="ids")
    mask = graph.cast("attention_mask", TensorProto.FLOAT, to="mask")
    last = graph.ints("last", 1)
    count = graph.add("ReduceSum", mask, last, to="count")
    total = graph.add("ReduceSum", graph.add("Mul", ids, mask, to="own"), last, to="total")
    graph.add("Concat", count, total, to="embedding", axis=1)
    texts = {TOKENIZER: WORDS.to_str(), MANIFEST: '{"preprocessing": {"tokens_max": 8, "pad_id": 2}}'} | changed
    return saved(directory, graph, of_type("embedding", TensorProto.FLOAT, "batch", 2), texts)


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 1000))
def test_batches_hold_each_text_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert sorted(n for batch in found for n in batch) == list(range(len(lengths)))
    for batch in found:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= budget
    assert found == list(batches(lengths, budget))


def test_texts_of_like_length_share_a_batch() -> None:
    assert list(batches([2, 256, 2, 256], 512)) == [[0, 2], [1, 3]]
    padded = sum(len(batch) * max(LENGTHS[n] for n in batch) for batch in batches(LENGTHS, PADDED_TOKENS_MAX))
    unsorted = len(LENGTHS) * max(LENGTHS)
    assert padded < 1.3 * sum(LENGTHS) < unsorted


LENGTHS = [int(n) for n in np.random.default_rng(1).integers(3, 256, 256)]


def test_each_vector_is_its_own_texts(tmp_path: Path) -> None:
    embedder = Embedder(counting(tmp_path))
    tokens = embedder.tokenise(["a", "b a b a b", "b", "a a"])
    told: list[int] = []
    found = embedder.embed(tokens, told.append)
    assert found.vectors.tolist() == [[1, 1], [5, 8], [1, 2], [2, 2]]
    assert found.batch_sizes == [4, 4, 4, 4]
    assert told == [4]


def test_the_manifest_says_how_many_tokens_there_may_be(tmp_path: Path) -> None:
    [fits, long] = Embedder(counting(tmp_path)).tokenise(["a " * 8, "a " * 9])
    assert (len(fits.ids), fits.truncated, len(long.ids), long.truncated) == (8, False, 8, True)


def test_what_stands_beside_a_text_changes_nothing_to_speak_of(minilm_path: Path) -> None:
    embedder = Embedder(SessionCache().get(minilm_path, minilm.SHA256))
    texts = ["short", "a text of some more words than that", "word " * 60]
    together = embedder.embed(embedder.tokenise(texts)).vectors
    alone = np.concatenate([embedder.embed(embedder.tokenise([text])).vectors for text in texts])
    assert np.abs(together - alone).max() < 1e-6
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
    assert np.array_equal(together, embedder.embed(embedder.tokenise(texts)).vectors)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({MANIFEST: "{"}, "model_malformed"),
        ({MANIFEST: "[]"}, "model_malformed"),
        ({MANIFEST: '{"preprocessing": {"tokens_max": 1}}'}, "model_malformed"),
        ({MANIFEST: '{"preprocessing": {"tokens_max": 1000000}}'}, "model_malformed"),
        ({TOKENIZER: "{}"}, "model_malformed"),
        ({TOKENIZER: "no JSON"}, "model_malformed"),
        ({TOKENIZER: msgspec.json.encode({"version": "1.0", "model": {"type": "Magic"}}).decode()}, "model_malformed"),
    ],
)
def test_what_a_model_brings_beside_its_graph_may_be_nonsense(
    tmp_path: Path, changed: dict[str, str], code: str
) -> None:
    with pytest.raises(ModelRefused) as refused:
        Embedder(counting(tmp_path, **changed))
    assert refused.value.code == code


def test_a_model_without_its_tokeniser_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    graph.cast("input_ids", TensorProto.FLOAT, to="embedding")
    session = saved(tmp_path, graph, of_type("embedding", TensorProto.FLOAT, "batch", "sequence"), {})
    with pytest.raises(ModelRefused) as refused:
        Embedder(session)
    assert refused.value.code == "model_without_tokenizer"


def _per_token(graph: Graph) -> ValueInfoProto:
    graph.add("Unsqueeze", graph.cast("input_ids", TensorProto.FLOAT, to="f"), graph.ints("a", 2), to="out")
    return of_type("out", TensorProto.FLOAT, "batch", "sequence", 1)


def _of_the_first(graph: Graph) -> ValueInfoProto:
    floats = graph.cast("input_ids", TensorProto.FLOAT, to="f")
    graph.add("Slice", floats, graph.ints("from", 0), graph.ints("to", 1), graph.ints("axis", 0), to="out")
    return of_type("out", TensorProto.FLOAT, 1, "sequence")


def _no_numbers(graph: Graph) -> ValueInfoProto:
    floats = graph.cast("input_ids", TensorProto.FLOAT, to="f")
    graph.add("Log", graph.add("Neg", floats, to="n"), to="out")
    return of_type("out", TensorProto.FLOAT, "batch", "sequence")


def _integers(graph: Graph) -> ValueInfoProto:
    graph.add("Identity", "input_ids", to="out")
    return of_type("out", TensorProto.INT64, "batch", "sequence")


def _failing(graph: Graph) -> ValueInfoProto:
    table = graph.constant("table", np.zeros((1, 3), np.float32))
    graph.add("ReduceMean", graph.add("Gather", table, "input_ids", to="g"), graph.ints("a", 1), to="out", keepdims=0)
    return of_type("out", TensorProto.FLOAT, "batch", 3)


@pytest.mark.parametrize("model", [_per_token, _of_the_first, _no_numbers, _integers, _failing])
def test_a_model_may_answer_anything(tmp_path: Path, model: Callable[[Graph], ValueInfoProto]) -> None:
    graph = Graph()
    output = model(graph)
    embedder = Embedder(saved(tmp_path, graph, output, {TOKENIZER: WORDS.to_str()}))
    with pytest.raises(EmbeddingFailed):
        embedder.embed(embedder.tokenise(["a a", "b b"]))


def test_a_model_whose_vectors_depend_on_the_batch_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    graph.cast("input_ids", TensorProto.FLOAT, to="out")
    session = saved(
        tmp_path, graph, of_type("out", TensorProto.FLOAT, "batch", "sequence"), {TOKENIZER: WORDS.to_str()}
    )
    embedder = Embedder(session)
    with pytest.raises(EmbeddingFailed, match="different lengths"):
        embedder.embed(embedder.tokenise(["a " * 300] * 8 + ["a " * 500] * 8))


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert Embedder(counting(tmp_path)).embed([]).vectors.shape == (0, 0)
