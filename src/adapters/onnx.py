"""ONNX Runtime sessions, loaded once and kept: digests checked, threads explicit, the device what it really is."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
from msgspec import Struct
from numpy.typing import NDArray

from .onnx_check import ModelRefused, check
from .onnx_cuda_graphs import GRAPH_OPTIONS, CapturedShapes

RUNTIME = "onnxruntime"
MANIFEST = "sightline.manifest"  # the name of the text beside a graph that says what a loader needs to know of it
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that works
MODEL_BYTES_MAX = 2 * 1024**3 - 1  # protobuf's own limit
# What goes wrong is raised as well; printed, a model's own words (names of nodes, say) would be lines of our log.
FATAL_ONLY = 4
REASON_CHARS_MAX = 300
# As the runtime names element types, and as NumPy does. Texts, sequences and maps are not for tensors of bytes.
ELEMENT_TYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}

onnxruntime.disable_telemetry_events()  # where this is no child of ours, which knows it from its environment


class Port(Struct, frozen=True):
    """An input or an output of a graph.

    Attributes:
        type: as the runtime names it; see ELEMENT_TYPES.
        shape: a number, a name where any number will do, or None where it has no name either.
    """

    name: str
    type: str
    shape: list[int | str | None]


class Session:
    """A loaded model.

    Attributes:
        sha256: of the bytes that were loaded.
        providers: what the runtime settled on; it lists CUDA where there is none, so only this is to be believed.
        intra_op_threads: cores that one operator may use.
        inputs, outputs: as the graph declares them.
    """

    def __init__(self, model: bytes, sha256: str, *, intra_op_threads: int, cuda_graphs: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would eat the cores
        options.add_session_config_entry("session.load_model_format", "ONNX")  # it would guess: only this was checked
        offered = set(onnxruntime.get_available_providers())
        wanted: list[str | tuple[str, dict[str, str]]] = [provider for provider in PROVIDERS if provider in offered]
        if PROVIDERS[0] in offered:
            onnxruntime.preload_dlls()  # CUDA's libraries come as wheels, where the loader does not look
            if cuda_graphs:
                wanted[0] = (PROVIDERS[0], GRAPH_OPTIONS)
        self._session = onnxruntime.InferenceSession(model, options, providers=wanted)
        self.sha256 = sha256
        self.providers: list[str] = self._session.get_providers()
        self.intra_op_threads = intra_op_threads
        self.inputs = [Port(one.name, one.type, one.shape) for one in self._session.get_inputs()]
        self.outputs = [Port(one.name, one.type, one.shape) for one in self._session.get_outputs()]
        on_gpu = self.execution_provider == PROVIDERS[0]
        self._device = "cuda" if on_gpu else None  # where the feeds are bound to; None: they are used where they lie
        self._captured = CapturedShapes(self._session, "cuda") if on_gpu and cuda_graphs else None

    @property
    def execution_provider(self) -> str:
        """`CUDAExecutionProvider` and its like; operators that it lacks fall back to the ones behind it."""
        return self.providers[0]

    @property
    def input_names(self) -> list[str]:
        return [one.name for one in self.inputs]

    @property
    def metadata(self) -> dict[str, str]:
        """Texts beside the graph, by whoever made the model: as strange as the model itself.

        Raises:
            ModelRefused: `model_malformed`: they are none.
        """
        try:
            return dict(self._session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError as error:
            raise ModelRefused("model_malformed", "a text beside its graph is not UTF-8") from error

    @property
    def manifest(self) -> dict[str, Any]:
        """What the model says of itself, as `builtin/*.json` has it; nothing where it says nothing.

        Raises:
            ModelRefused: `model_malformed`.
        """
        try:
            return msgspec.json.decode(self.metadata.get(MANIFEST, "{}"), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ModelRefused(
                "model_malformed", f"its manifest cannot be read: {str(error)[:REASON_CHARS_MAX]}"
            ) from error

    def run(
        self, feeds: Mapping[str, NDArray[np.generic]], names: Sequence[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """The outputs of these names, or all of them, by name; on CUDA through IOBinding.

        Raises:
            MemoryError: the graph asks for more than there is.
            RuntimeError: the runtime refuses the feeds, or fails on them.
        """
        wanted = list(names) or [one.name for one in self.outputs]
        try:
            if self._captured is not None:
                found = self._captured.run(feeds, wanted)
            elif self._device is not None:
                found = self._run_bound(feeds, wanted, self._device)
            else:
                found = self._session.run(wanted, feeds)
            return dict(zip(wanted, found, strict=True))
        except Exception as error:
            raise _as_ours(error) from error

    def _run_bound(
        self, feeds: Mapping[str, NDArray[np.generic]], names: Sequence[str], device: str
    ) -> list[NDArray[np.float32]]:
        """Feeds are copied to the device once, and outputs stay there until all are done."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in names:
            binding.bind_output(name, device)
        self._session.run_with_iobinding(binding)
        found: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return found

    def warm_up(self, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        """Run once on zeros: the first run picks kernels and fills arenas, which no request should wait for.

        Args:
            shapes: of inputs by name; of the others every dimension that may be any number is 1.

        Raises:
            MemoryError, RuntimeError: as run(); a graph may fail on zeros, or on so few, and still be good.
        """
        given = shapes or {}
        self.run({one.name: np.zeros(given.get(one.name) or _smallest(one), _dtype(one)) for one in self.inputs})


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
            session = load(path, sha256, intra_op_threads=intra_op_threads)
        self._sessions[key] = session
        while len(self._sessions) > self._capacity:
            self._sessions.popitem(last=False)
        return session


def runtime_version() -> str:
    return str(onnxruntime.__version__)


def load(path: Path, sha256: str, *, intra_op_threads: int = 1, cuda_graphs: bool = False) -> Session:
    """A session of its own. Read once: what is hashed and checked is what is loaded, whatever happens to the file
    meanwhile.

    Args:
        path: of the file.
        sha256: that it must have.
        intra_op_threads: cores that one operator may use.
        cuda_graphs: on CUDA record a run of each shape, and replay it; see `onnx_cuda_graphs.py`.

    Raises:
        ModelRefused, OSError, MemoryError: as SessionCache.get().
    """
    if path.stat().st_size > MODEL_BYTES_MAX:
        raise ModelRefused("model_too_large", f"larger than {MODEL_BYTES_MAX} bytes")
    model = path.read_bytes()
    found = hashlib.sha256(model).hexdigest()
    if found != sha256:
        raise ModelRefused("model_digest_mismatch", f"sha256 {found}, registered as {sha256}")
    check(model)
    try:
        return Session(model, sha256, intra_op_threads=intra_op_threads, cuda_graphs=cuda_graphs)
    except Exception as error:
        ours = _as_ours(error)
        if isinstance(ours, MemoryError):
            raise ours from error
        raise ModelRefused("model_unloadable", str(ours)) from error


def _smallest(port: Port) -> list[int]:
    return [size if isinstance(size, int) and size > 0 else 1 for size in port.shape]


def _dtype(port: Port) -> str:
    """Raises: RuntimeError: nothing that zeros could stand for."""
    if port.type not in ELEMENT_TYPES:
        raise RuntimeError(f"the input {port.name} is of type {port.type}")
    return ELEMENT_TYPES[port.type]


def _as_ours(error: Exception) -> Exception:
    """The runtime's exceptions share no base of their own, and say only in words that memory ran out."""
    text = str(error)
    said = "".join(char if char.isprintable() else " " for char in text[:REASON_CHARS_MAX])
    if "bad_alloc" in text or "Failed to allocate" in text or "bad allocation" in text:
        return MemoryError(said)
    return RuntimeError(said)
