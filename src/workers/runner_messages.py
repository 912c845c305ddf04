"""What the worker and its runner child say to each other, as MessagePack in frames; one page, shared by both ends."""

from typing import Any

import msgspec
from msgspec import Struct

from .kinds import JobInput, Receipt


class Output(Struct, frozen=True):
    """A finished output, measured and hashed by the child after the kind closed it."""

    name: str
    path: str
    content_type: str
    size_bytes: int
    sha256: str


class RunnerProgress(Struct, frozen=True, tag="progress"):
    percent: int
    message: str


class RunnerAnswer(Struct, frozen=True, tag="answer"):
    """A job done.

    Attributes:
        timings: milliseconds; names end in `_ms`, `run_ms` is the whole in the child.
        receipt: none when no model was used.
    """

    outputs: list[Output]
    manifest: dict[str, Any]
    timings: dict[str, float]
    receipt: Receipt | None = None


class RunnerError(Struct, frozen=True, tag="error"):
    """A job failed; `stack` is for the log alone."""

    code: str
    message: str
    retryable: bool
    stack: str = ""


Said = RunnerProgress | RunnerAnswer | RunnerError

encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(JobInput | list[JobInput]).decode  # a list is run together
decode_said = msgspec.msgpack.Decoder(Said).decode
