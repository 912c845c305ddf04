"""ONNX Runtime sessions, loaded once and kept: digests checked, threads explicit, the device what it really is."""

import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

from .onnx_check import ModelRefused, check

RUNTIME = "onnxruntime"
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that works
MODEL_BYTES_MAX = 2 * 1024**3 - 1  # protobuf's own limit
# What goes wrong is raised as well; printed, a model's own words (names of nodes, say) would be lines of our log.
FATAL_ONLY = 4
REASON_CHARS_MAX = 300

onnxruntime.disable_telemetry_events()  # where this is no child of ours, which knows it from its environment


class Session:
    """A loaded model.

    Attributes:
        sha256: of the bytes that were loaded.
        providers: what the runtime settled on; it lists CUDA where there is none, so only this is to be believed.
        intra_op_threads: cores that one operator may use.
    """

    def __init__(self, model: bytes, sha256: str, *, intra_op_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would eat the cores
        options.add_session_config_entry("session.load_model_format", "ONNX")  # it would guess: only this was checked
        offered = set(onnxruntime.get_available_providers())
        wanted = [provider for provider in PROVIDERS if provider in offered]
        if PROVIDERS[0] in offered:
            onnxruntime.preload_dlls()  # CUDA's libraries come as wheels, where the loader does not look
        self._session = onnxruntime.InferenceSession(model, options, providers=wanted)
        self.sha256 = sha256
        self.providers: list[str] = self._session.get_providers()
        self.intra_op_threads = intra_op_threads

    @property
    def execution_provider(self) -> str:
        """`CUDAExecutionProvider` and its like; operators that it lacks fall back to the ones behind it."""
        return self.providers[0]

    @property
    def input_names(self) -> list[str]:
        return [one.name for one in self._session.get_inputs()]

    def run(self, feeds: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """Every output by its name.

        Raises:
            MemoryError: the graph asks for more than there is.
            RuntimeError: the runtime refuses the feeds, or fails on them.
        """
        names = [one.name for one in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:
            raise _as_ours(error) from error


class SessionCache:
    """At most `capacity` sessions, the least recently used one let go first. For one thread.

    Args:
        capacity: models kept loaded.
    """

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self._sessions: OrderedDict[tuple[str, int], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, path: Path, sha256: str, *, intra_op_threads: int = 1) -> Session:
        """The session for the model whose digest is `sha256`, loaded from `path` if it is not here.

        Raises:
            ModelRefused: `model_digest_mismatch`, one of `onnx_check`'s codes, or `model_unloadable`.
            OSError: there is no such file.
            MemoryError: it does not fit.
        """
        key = (sha256, intra_op_threads)
        session = self._sessions.pop(key, None)
        if session is None:
            session = _load(path, sha256, intra_op_threads)
        self._sessions[key] = session
        while len(self._sessions) > self._capacity:
            self._sessions.popitem(last=False)
        return session


def runtime_version() -> str:
    return str(onnxruntime.__version__)


def _load(path: Path, sha256: str, intra_op_threads: int) -> Session:
    """Read once: what is hashed and checked is what is loaded, whatever happens to the file meanwhile."""
    if path.stat().st_size > MODEL_BYTES_MAX:
        raise ModelRefused("model_too_large", f"larger than {MODEL_BYTES_MAX} bytes")
    model = path.read_bytes()
    found = hashlib.sha256(model).hexdigest()
    if found != sha256:
        raise ModelRefused("model_digest_mismatch", f"sha256 {found}, registered as {sha256}")
    check(model)
    try:
        return Session(model, sha256, intra_op_threads=intra_op_threads)
    except Exception as error:
        ours = _as_ours(error)
        if isinstance(ours, MemoryError):
            raise ours from error
        raise ModelRefused("model_unloadable", str(ours)) from error


def _as_ours(error: Exception) -> Exception:
    """The runtime's exceptions share no base of their own, and say only in words that memory ran out."""
    text = str(error)
    said = "".join(char if char.isprintable() else " " for char in text[:REASON_CHARS_MAX])
    if "bad_alloc" in text or "Failed to allocate" in text or "bad allocation" in text:
        return MemoryError(said)
    return RuntimeError(said)
