"""Texts to vectors: tokenised, sorted by length, and run in batches of a bounded number of tokens.

The model brings its own tokeniser and manifest, as texts beside its graph, see `minilm.py`. Needs the package
`tokenizers`, of the extra `embed`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .onnx import Session
from .onnx_check import ModelRefused

TOKENIZER = "tokenizer.json"  # the name of the text beside the graph, as the package `tokenizers` writes it
PADDED_TOKENS_MAX = 4096  # of one run, padding included: 50 MB of attention scores at 256 tokens a text
TOKENS_MAX_DEFAULT = 512
TOKENS_MAX_MAX = 4096

Vectors = NDArray[np.float32]  # texts × dimensions


class _Preprocessing(Struct, frozen=True):
    tokens_max: Annotated[int, Meta(ge=3, le=TOKENS_MAX_MAX)] = TOKENS_MAX_DEFAULT  # two of them begin and end a text
    pad_id: Annotated[int, Meta(ge=0, lt=2**31)] = 0


class _Manifest(Struct, frozen=True):
    preprocessing: _Preprocessing = _Preprocessing()


class Tokens(Struct, frozen=True):
    """One text as the model's words.

    Attributes:
        truncated: there were more than the model takes; the rest is left out.
    """

    ids: list[int]
    truncated: bool


class Embeddings(Struct, frozen=True):
    """What was asked for, in its order.

    Attributes:
        batch_sizes: how many texts the run had that each text was in.
    """

    vectors: Vectors
    batch_sizes: list[int]


class EmbeddingFailed(Exception):
    """The model failed on these texts, or did not answer with one vector for each."""


class Embedder:
    """A session, and the tokeniser that belongs to it.

    Raises:
        ModelRefused: `model_without_tokenizer`, or `model_malformed`: what it brings cannot be read.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        try:
            manifest = msgspec.convert(session.manifest, _Manifest)
        except msgspec.ValidationError as error:
            raise ModelRefused("model_malformed", f"its manifest cannot be read: {error}") from error
        texts = session.metadata
        if TOKENIZER not in texts:
            raise ModelRefused("model_without_tokenizer", f"it has no {TOKENIZER} beside its graph")
        self._pad_id = manifest.preprocessing.pad_id
        try:
            self._tokenizer = Tokenizer.from_str(texts[TOKENIZER])
        except Exception as error:  # that package raises nothing more precise
            raise ModelRefused("model_malformed", f"its tokeniser cannot be read: {str(error)[:200]}") from error
        self._tokenizer.no_padding()  # each batch is padded to its own longest text
        self._tokenizer.enable_truncation(manifest.preprocessing.tokens_max)

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        found = self._tokenizer.encode_batch_fast(list(texts))
        return [Tokens(one.ids, bool(one.overflowing)) for one in found]

    def embed(self, tokens: Sequence[Tokens], done: Callable[[int], None] = lambda _: None) -> Embeddings:
        """One vector for each text. `done` is told how many there are, after each run.

        Raises:
            EmbeddingFailed: the model failed, or answered nonsense.
            MemoryError: a batch does not fit.
        """
        lengths = [len(one.ids) for one in tokens]
        vectors: Vectors | None = None
        sizes = [0] * len(tokens)
        count = 0
        for batch in batches(lengths, PADDED_TOKENS_MAX):
            answer = self._run([tokens[n].ids for n in batch])
            if vectors is None:
                vectors = np.empty((len(tokens), answer.shape[1]), np.float32)
            if answer.shape[1] != vectors.shape[1]:
                raise EmbeddingFailed("the model's vectors are of different lengths")
            vectors[batch] = answer
            for n in batch:
                sizes[n] = len(batch)
            count += len(batch)
            done(count)
        return Embeddings(np.empty((0, 0), np.float32) if vectors is None else vectors, sizes)

    def _run(self, ids: list[list[int]]) -> Vectors:
        longest = max(map(len, ids))
        padded = np.full((len(ids), longest), self._pad_id, np.int64)
        mask = np.zeros_like(padded)
        for row, one in enumerate(ids):
            padded[row, : len(one)] = one
            mask[row, : len(one)] = 1
        feeds: dict[str, NDArray[np.generic]] = {
            "input_ids": padded,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(padded),
        }
        try:
            answers = self.session.run({name: feeds[name] for name in self.session.input_names})
        except (RuntimeError, KeyError) as error:
            raise EmbeddingFailed(f"the model failed on these texts: {error}") from error
        answer = next(iter(answers.values())) if len(answers) == 1 else None
        # A stranger's model may answer with lists, texts, dictionaries, or several things at once.
        if not isinstance(answer, np.ndarray) or answer.dtype != np.float32 or answer.ndim != 2:  # noqa: PLR2004  # rows of numbers
            raise EmbeddingFailed("the model did not answer with one array of vectors")
        if len(answer) != len(ids) or not np.isfinite(answer).all():
            raise EmbeddingFailed("the model did not answer with one vector for each text")
        return answer


def batches(lengths: Sequence[int], padded_max: int) -> Iterator[list[int]]:
    """Indices of texts that run together: shortest first, as many as fit `padded_max` tokens once padded, at least
    one. Texts of like length are padded little.
    """
    batch: list[int] = []
    for n in sorted(range(len(lengths)), key=lengths.__getitem__):  # a stable sort: the same texts, the same batches
        if batch and (len(batch) + 1) * lengths[n] > padded_max:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch
