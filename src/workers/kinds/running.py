"""What kinds that run a model share: its session, what it says of itself, its receipt, and a stopwatch."""

import time
from pathlib import Path
from typing import Any

from ...adapters import onnx
from ...adapters.onnx_check import ModelRefused
from . import KindFailed, ModelFile, Receipt

# One process, one cache: the runner child runs one job at a time, and the next one most often has the same model.
SESSIONS = onnx.SessionCache(capacity=3)


class Stopwatch:
    """Milliseconds from one lap to the next."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps_ms[name] = (now - self._since) * 1000
        self._since = now


def session_for(model: ModelFile, intra_op_threads: int) -> onnx.Session:
    """Raises KindFailed with the loader's code: the same bytes will be refused again."""
    try:
        return SESSIONS.get(Path(model.path), model.sha256, intra_op_threads=intra_op_threads)
    except ModelRefused as refused:
        raise KindFailed(refused.code, f"the model was refused: {refused}") from refused
    except FileNotFoundError as error:
        raise KindFailed("model_missing", "the model is not in this worker's cache", retryable=True) from error


def manifest_of(model: ModelFile, session: onnx.Session) -> dict[str, Any]:
    """What came with the model, or what lies beside its graph, in the same file; nothing where neither is there.

    Raises:
        KindFailed: `model_malformed`.
    """
    try:
        return model.manifest or session.manifest
    except ModelRefused as refused:
        raise KindFailed(refused.code, f"the model was refused: {refused}") from refused


def receipt_of(session: onnx.Session, batch_size: int = 1) -> Receipt:
    return Receipt(
        execution_provider=session.execution_provider,
        runtime=onnx.RUNTIME,
        runtime_version=onnx.runtime_version(),
        model_sha256=session.sha256,
        batch_size=batch_size,
        intra_op_threads=session.intra_op_threads,
    )
