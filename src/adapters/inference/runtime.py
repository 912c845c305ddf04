"""The inference child: `python -m sightline.adapters.inference.runtime`, started by `lane.py`; answers in order.

It has no network, no secrets, and of the files only the model cache. Whatever a graph does, the API survives it.
"""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..child import FRAME_BYTES_MAX
from ..confinement import enter
from ..onnx import ELEMENT_TYPES, RUNTIME, Session, load, runtime_version
from ..onnx import Port as GraphPort
from ..onnx_check import ModelRefused
from .messages import (
    DATATYPES,
    NAMES,
    Asked,
    Failed,
    Load,
    Loaded,
    Pieces,
    Port,
    Ran,
    Said,
    Tensor,
    Unload,
    Unloaded,
    decode_asked,
    encode,
)

ENVELOPE_BYTES = 64 * 1024  # of an answer, around its tensors


def main() -> None:
    """Answer until the parent closes its end, or dies."""
    channel = enter()
    sessions: dict[str, Session] = {}  # as many as the parent keeps
    for question in channel:
        channel.send(encode(answer(decode_asked(question), sessions)))


def answer(asked: Asked, sessions: dict[str, Session]) -> Said:
    """Whatever goes wrong is an answer; only the death of this process is none."""
    try:
        match asked:
            case Load():
                return _loaded(asked, sessions)
            case Unload(sha256=sha256):
                sessions.pop(sha256, None)
                return Unloaded()
        session = sessions.get(asked.sha256)
        if session is None:
            return Failed("model_unusable", "the model is not loaded")
        return _ran(session, asked.inputs, asked.outputs)
    except ModelRefused as refused:
        return Failed("model_unusable", f"{refused.code}: {refused}")
    except MemoryError:
        return Failed("out_of_memory", "it needs more memory than it may use")
    except (OSError, RuntimeError, ValueError, UnicodeDecodeError) as error:
        return Failed("model_unusable" if isinstance(asked, Load) else "model_failed", str(error))


def _loaded(asked: Load, sessions: dict[str, Session]) -> Loaded:
    session = load(Path(asked.path), asked.sha256, intra_op_threads=asked.threads, cuda_graphs=asked.cuda_graphs)
    inputs, outputs = ([_port(one) for one in ports] for ports in (session.inputs, session.outputs))
    warm = True
    try:
        session.warm_up(asked.warm_up)
    except RuntimeError:
        warm = False
    sessions[asked.sha256] = session
    return Loaded(inputs, outputs, session.providers, f"{RUNTIME} {runtime_version()}", warm)


def _port(port: GraphPort) -> Port:
    """Raises: RuntimeError: its elements are no numbers."""
    if port.type not in ELEMENT_TYPES:
        raise RuntimeError(f"{port.name} is of type {port.type}, which has no tensors of numbers")
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in port.shape)
    names = tuple(size if isinstance(size, str) else None for size in port.shape)
    return Port(port.name, NAMES[ELEMENT_TYPES[port.type]], shape, names)


def _ran(session: Session, inputs: list[Pieces], names: tuple[str, ...]) -> Said:
    began = time.perf_counter()
    feeds = {one.name: _array(one) for one in inputs}
    ready = time.perf_counter()
    found = session.run(feeds, names)
    done = time.perf_counter()
    if sum(array.nbytes for array in found.values()) > FRAME_BYTES_MAX - ENVELOPE_BYTES:
        return Failed("answer_too_large", f"its outputs have more than {FRAME_BYTES_MAX - ENVELOPE_BYTES} bytes")
    outputs = [_tensor(name, array) for name, array in found.items()]
    return Ran(outputs, ready - began, done - ready, time.perf_counter() - done)


def _array(pieces: Pieces) -> NDArray[np.generic]:
    """In memory of its own: bytes within a frame lie at any address, and kernels want theirs aligned.

    Raises:
        ValueError: they do not fit the shape.
    """
    return np.frombuffer(b"".join(pieces.data), DATATYPES[pieces.datatype][0]).reshape(pieces.shape)


def _tensor(name: str, array: NDArray[np.generic]) -> Tensor:
    whole = np.ascontiguousarray(array)
    return Tensor(name, NAMES[whole.dtype.name], array.shape, whole.reshape(-1).view(np.uint8).data)


if __name__ == "__main__":
    main()
