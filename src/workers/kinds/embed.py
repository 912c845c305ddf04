"""Texts as vectors of length 1: `embeddings.npy` or `embeddings.json`, in the order in which the texts came.

The texts of several jobs share runs of the model. What a text shares a run with may change the last bits of its
vector: alone the same job gives the same bytes again, beside others it gives them within 1e-6.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...adapters.embedder import Embedder, EmbeddingFailed, Tokens, Vectors
from ...adapters.onnx_check import ModelRefused
from ...domain.kernel import storable
from ...domain.kinds import Embed
from ...domain.models import NAME_CHARS_MAX
from . import JobInput, JobOutput, KindFailed, ModelFile, OutputFile, Progress, params_of
from .running import Stopwatch, manifest_of, receipt_of, session_for

TOKENISED_PERCENT, EMBEDDED_PERCENT = 5, 95
CONTENT_TYPES = {"npy": "application/octet-stream", "json": "application/json"}

# The one that ran last, with its tokeniser: to read that again takes longer than to embed a sentence.
_last: list[Embedder] = []


def run(job: JobInput, progress: Progress) -> JobOutput:
    """Tokenise, embed, write.

    Raises:
        KindFailed: `rule_violated`, `model_failed`, or why the model was refused.
    """
    return _together([job], progress)[0]


def run_many(jobs: Sequence[JobInput], progress: Progress) -> list[JobOutput | KindFailed]:
    """The same of many, the texts of all that have the same model together; timings are those of the whole.

    Raises:
        KindFailed: as run(), of one of them.
    """
    numbers: dict[tuple[str, int], list[int]] = {}
    for n, job in enumerate(jobs):
        numbers.setdefault((job.model.sha256 if job.model else "", job.intra_op_threads), []).append(n)
    done: dict[int, JobOutput] = {}
    for same in numbers.values():
        done.update(zip(same, _together([jobs[n] for n in same], progress), strict=True))
    return [done[n] for n in range(len(jobs))]


def _together(jobs: Sequence[JobInput], progress: Progress) -> list[JobOutput]:
    """Jobs whose model is the same."""
    model = jobs[0].model
    if model is None:
        raise KindFailed("rule_violated", "a model that embeds texts is needed")
    asked = [params_of(job, Embed) for job in jobs]
    watch = Stopwatch()
    embedder = embedder_for(model, jobs[0].intra_op_threads)
    watch.lap("model_ms")
    progress(0, "tokenising")
    tokens = embedder.tokenise([text for one in asked for text in one.texts])
    watch.lap("tokenise_ms")

    def embedded(count: int) -> None:
        share = (EMBEDDED_PERCENT - TOKENISED_PERCENT) * count // len(tokens)
        progress(TOKENISED_PERCENT + share, f"{count} of {len(tokens)} texts")

    try:
        embeddings = embedder.embed(tokens, embedded)
    except EmbeddingFailed as error:
        raise KindFailed("model_failed", str(error)) from error
    watch.lap("infer_ms")

    known = manifest_of(model, embedder.session)
    done = []
    first = 0
    for job, params in zip(jobs, asked, strict=True):
        own = slice(first, first + len(params.texts))
        first = own.stop
        manifest = _manifest(job, model, known, tokens[own], embeddings.vectors)
        output = _write(Path(job.output_dir), params, embeddings.vectors[own], manifest)
        receipt = receipt_of(embedder.session, max(embeddings.batch_sizes[own]))
        done.append(JobOutput([output], manifest, dict(watch.laps_ms), receipt))
    progress(100, "done")
    return done


def embedder_for(model: ModelFile, intra_op_threads: int) -> Embedder:
    """Raises KindFailed: why the model was refused."""
    session = session_for(model, intra_op_threads)
    if not _last or _last[0].session is not session:
        try:
            _last[:] = [Embedder(session)]
        except ModelRefused as refused:
            raise KindFailed(refused.code, f"the model was refused: {refused}") from refused
    return _last[0]


def _manifest(
    job: JobInput, model: ModelFile, described: dict[str, Any], tokens: Sequence[Tokens], vectors: Vectors
) -> dict[str, Any]:
    return {
        "kind": job.kind,
        "count": len(tokens),
        "dimensions": vectors.shape[1],
        "tokens": sum(len(one.ids) for one in tokens),
        "truncated": [n for n, one in enumerate(tokens) if one.truncated],
        "model": {"name": storable(str(described.get("name", "")), NAME_CHARS_MAX), "sha256": model.sha256},
    }


def _write(directory: Path, params: Embed, vectors: Vectors, manifest: dict[str, Any]) -> OutputFile:
    path = directory / f"embeddings.{params.format}"
    if params.format == "npy":
        np.save(path, vectors)
    else:
        path.write_bytes(msgspec.json.encode({**manifest, "embeddings": vectors.tolist()}))
    return OutputFile(path.name, CONTENT_TYPES[params.format])
