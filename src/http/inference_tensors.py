"""Tensors of the Open Inference Protocol, version 2: from JSON, or from bytes behind it, and back.

The binary extension: `Inference-Header-Content-Length` says where the JSON ends, `binary_data_size` in a tensor's
parameters how many of the bytes behind it are its own, in the order of the tensors.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from ..adapters.inference.messages import DATATYPES, Tensor, size_bytes
from ..adapters.inference.model import AnswerTooLarge, TensorRefused

NAME_CHARS_MAX = 256
RANK_MAX = 16
SIZE_MAX = 2**31 - 1
TENSORS_MAX = 64
JSON_TENSOR_BYTES_MAX = 2 * 1024 * 1024  # of an answer's outputs that are told as numbers, three times as long or more
BINARY_SIZE, BINARY_WANTED, BINARY_WANTED_OF_ALL = "binary_data_size", "binary_data", "binary_data_output"

Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
Shape = Annotated[tuple[Annotated[int, Meta(ge=1, le=SIZE_MAX)], ...], Meta(max_length=RANK_MAX)]
Parameters = dict[Name, Any]

# What JSON may hold for a type; true is no number.
_INTEGERS, _NUMBERS, _TRUTHS = frozenset({int}), frozenset({int, float}), frozenset({bool})
_ALLOWED = {"?": _TRUTHS, "e": _NUMBERS, "f": _NUMBERS, "d": _NUMBERS}


class InputTensor(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    datatype: BOOL, UINT8 to UINT64, INT8 to INT64, FP16, FP32 or FP64.
    data: numbers row by row, in one list or in lists as the shape has them; absent where `binary_data_size` is given.
    """

    name: Name
    shape: Shape
    datatype: Annotated[str, Meta(max_length=16)]
    parameters: Parameters = field(default_factory=dict)
    data: Any = None


class OutputWanted(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    parameters: `binary_data`: whether it is to come as bytes.
    """

    name: Name
    parameters: Parameters = field(default_factory=dict)


class InferAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    id: comes back with the answer.
    parameters: `timeout`, in microseconds; `binary_data_output`: whether all outputs are to come as bytes.
    outputs: that are wanted; none are all.
    """

    inputs: Annotated[list[InputTensor], Meta(max_length=TENSORS_MAX)]
    id: Annotated[str, Meta(max_length=NAME_CHARS_MAX)] = ""
    parameters: Parameters = field(default_factory=dict)
    outputs: Annotated[list[OutputWanted], Meta(max_length=TENSORS_MAX)] = field(default_factory=list)


class OutputTensor(Struct, frozen=True, omit_defaults=True):
    """Attributes:
    data: numbers row by row; null for one that is none. Absent where the bytes follow behind the JSON.
    """

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float | int | bool | None] | None = None


class InferAnswer(Struct, frozen=True, omit_defaults=True):
    """Attributes:
    parameters: `execution_provider` that ran it, `batch_rows` of the run that it was a part of, `queue_us` and
        `infer_us`, microseconds.
    """

    model_name: str
    model_version: str
    parameters: dict[str, str | int]
    outputs: list[OutputTensor]
    id: str = ""


def tensors_of(asked: InferAsked, binary: bytes) -> list[Tensor]:
    """The inputs.

    Args:
        asked: the request's JSON.
        binary: what follows behind it.

    Raises:
        TensorRefused: a type that there is not, data that do not fit their shape or their type, bytes left over.
    """
    tensors, at = [], 0
    for one in asked.inputs:
        if one.datatype not in DATATYPES:
            raise TensorRefused(f"{one.name}: no such datatype: {one.datatype}")
        wanted = size_bytes(one.datatype, one.shape)
        size = one.parameters.get(BINARY_SIZE)
        if size is None:
            data = memoryview(_packed(one))
        elif type(size) is not int or size != wanted or one.data is not None:
            raise TensorRefused(f"{one.name}: its shape takes {wanted} bytes, and no data beside them")
        elif at + size > len(binary):
            raise TensorRefused(f"{one.name}: the bytes end before it does")
        else:
            data = memoryview(binary)[at : at + size]
            at += size
            _require_truths(one, data)
        tensors.append(Tensor(one.name, one.datatype, one.shape, data))
    if at != len(binary):
        raise TensorRefused(f"{len(binary) - at} bytes belong to no input")
    return tensors


def timeout_of(asked: InferAsked, prefer_s: float | None, most_s: float) -> float:
    """Seconds that the caller gives: the smallest of what it says, and of ours.

    Raises:
        TensorRefused: `timeout` is no number of microseconds.
    """
    said = asked.parameters.get("timeout")
    if said is not None and (type(said) is not int or said <= 0):
        raise TensorRefused("timeout is a number of microseconds, 1 or more")
    given = [most_s, *([said / 1e6] if said is not None else []), *([prefer_s] if prefer_s is not None else [])]
    return min(given)


def answer_of(answer: InferAnswer, asked: InferAsked, outputs: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """The answer's body with these outputs, and how much of it is JSON where bytes follow.

    Raises:
        AnswerTooLarge: as numbers; as bytes they may be had.
    """
    of_all = asked.parameters.get(BINARY_WANTED_OF_ALL) is True
    wanted = {one.name: one.parameters.get(BINARY_WANTED, of_all) is True for one in asked.outputs}
    told, binary, numbers_bytes = [], [], 0
    for one in outputs:
        shape = list(one.shape)
        if wanted.get(one.name, of_all):
            binary.append(one.data)
            told.append(OutputTensor(one.name, one.datatype, shape, {BINARY_SIZE: one.data.nbytes}))
            continue
        numbers_bytes += one.data.nbytes
        if numbers_bytes > JSON_TENSOR_BYTES_MAX:
            raise AnswerTooLarge(f"more than {JSON_TENSOR_BYTES_MAX} bytes; ask for {BINARY_WANTED_OF_ALL}")
        told.append(OutputTensor(one.name, one.datatype, shape, data=_unpacked(one)))
    head = msgspec.json.encode(msgspec.structs.replace(answer, outputs=told))
    return (b"".join([head, *binary]), len(head)) if binary else (head, None)


def _packed(tensor: InputTensor) -> bytes:
    code, _ = DATATYPES[tensor.datatype]
    count = math.prod(tensor.shape)
    values = list(_flat(tensor))
    if len(values) != count:
        raise TensorRefused(f"{tensor.name}: {len(values)} values do not fit its shape, which has {count}")
    if not set(map(type, values)) <= _ALLOWED.get(code, _INTEGERS):
        raise TensorRefused(f"{tensor.name}: what it holds is not {tensor.datatype}")
    try:
        return struct.pack(f"<{count}{code}", *values)
    except (struct.error, OverflowError) as error:
        raise TensorRefused(f"{tensor.name}: a number is out of the range of {tensor.datatype}") from error


def _flat(tensor: InputTensor) -> Iterator[Any]:
    """Its values, from one list or from lists within lists, as deep as its shape."""
    level: list[Any] = tensor.data if isinstance(tensor.data, list) else [tensor.data]
    if any(isinstance(one, list) for one in level):
        for size in tensor.shape[1:]:
            if not all(isinstance(one, list) and len(one) == size for one in level):
                raise TensorRefused(f"{tensor.name}: its lists do not have the shape that it says")
            level = list(chain.from_iterable(level))
    return iter(level)


def _require_truths(tensor: InputTensor, data: memoryview) -> None:
    """Any other byte than 0 and 1 is no truth, and what a kernel makes of it is nobody's to say."""
    if tensor.datatype == "BOOL" and bytes(data).translate(None, b"\0\1"):
        raise TensorRefused(f"{tensor.name}: a BOOL is 0 or 1")


def _unpacked(tensor: Tensor) -> list[Any]:
    code, _ = DATATYPES[tensor.datatype]
    return list(struct.unpack(f"<{math.prod(tensor.shape)}{code}", tensor.data))
