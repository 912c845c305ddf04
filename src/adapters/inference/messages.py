"""What the inference server and its child say to each other, as MessagePack in frames; one page, shared by both ends.

A tensor is its bytes, row by row, little-endian. Along the first dimension tensors are put together, and taken apart
again, by their bytes alone.
"""

import math
import sys
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

assert sys.byteorder == "little", "tensors lie in memory as they are sent"

# The protocol's names of element types: how `struct` and NumPy call them, and their size in bytes.
DATATYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("?", 1),
    "UINT8": ("B", 1),
    "UINT16": ("H", 2),
    "UINT32": ("I", 4),
    "UINT64": ("Q", 8),
    "INT8": ("b", 1),
    "INT16": ("h", 2),
    "INT32": ("i", 4),
    "INT64": ("q", 8),
    "FP16": ("e", 2),
    "FP32": ("f", 4),
    "FP64": ("d", 8),
}

# NumPy's names of them → the protocol's.
NAMES: Mapping[str, str] = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}


class Tensor(Struct, frozen=True, array_like=True):
    """Attributes:
    datatype: one of DATATYPES.
    data: as many bytes as the shape says.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


class Pieces(Struct, frozen=True, array_like=True):
    """A tensor whose rows lie in several pieces; `shape` is that of the whole."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[memoryview]


class Port(Struct, frozen=True, array_like=True):
    """An input or an output: -1, or a name, where any number will do.

    Attributes:
        shape: as clients are told it.
        names: of the dimensions that have one.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    names: tuple[str | None, ...]


class Load(Struct, frozen=True, tag="load"):
    """Attributes:
    warm_up: shapes of inputs, where one row of ones and zeros is not good enough.
    """

    sha256: str
    path: str
    threads: int
    cuda_graphs: bool
    warm_up: dict[str, list[int]]


class Unload(Struct, frozen=True, tag="unload"):
    sha256: str


class Run(Struct, frozen=True, tag="run"):
    """Attributes:
    outputs: their names; none are all.
    """

    sha256: str
    inputs: list[Pieces]
    outputs: tuple[str, ...]


class Loaded(Struct, frozen=True, tag="loaded"):
    """Attributes:
    providers: what the runtime settled on, the first that works in front.
    warm: whether the run on zeros worked; some graphs fail on them and are good all the same.
    """

    inputs: list[Port]
    outputs: list[Port]
    providers: list[str]
    runtime: str
    warm: bool


class Unloaded(Struct, frozen=True, tag="unloaded"):
    pass


class Ran(Struct, frozen=True, tag="ran"):
    """Attributes:
    input_s, infer_s, output_s: making arrays of bytes, the graph itself, and bytes of arrays.
    """

    outputs: list[Tensor]
    input_s: float
    infer_s: float
    output_s: float


class Failed(Struct, frozen=True, tag="failed"):
    """Attributes:
    code: `model_unusable` of a load; `model_failed`, `answer_too_large` or `out_of_memory` of a run.
    """

    code: str
    message: str


Asked = Load | Unload | Run
Said = Loaded | Unloaded | Ran | Failed

encode = msgspec.msgpack.Encoder().encode
decode_asked = msgspec.msgpack.Decoder(Asked).decode
decode_said = msgspec.msgpack.Decoder(Said).decode


def size_bytes(datatype: str, shape: Sequence[int]) -> int:
    """Of a tensor's data."""
    return math.prod(shape) * DATATYPES[datatype][1]
