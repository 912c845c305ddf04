"""The kinds of job: the parameters that each takes, and their limits. A kind's runner is in `workers/kinds/`."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from .kernel import Rejection


class UnknownKind(Rejection):
    code = "unknown_kind"


class InvalidParameters(Rejection):
    code = "rule_violated"


class Noop(Struct, frozen=True, forbid_unknown_fields=True):
    """Does nothing, for `sleep_s`; for benchmarks and for tests of the engine itself."""

    sleep_s: Annotated[float, Meta(ge=0, le=600)] = 0.0
    fail: bool = False


class LayerPhotoRealistic(Struct, frozen=True, forbid_unknown_fields=True):
    """One photograph cut into bands of depth.

    Attributes:
        num_layers: how many layers, the opaque background included.
        max_size: the longer side of what is worked on and written, in pixels; a smaller input is not enlarged.
        feather_radius: how softly layers end, in pixels.
        export_layers: write each layer as a file; without it only composite, depth map and manifest are written.
    """

    num_layers: Annotated[int, Meta(ge=2, le=5)] = 4
    max_size: Annotated[int, Meta(ge=256, le=2048)] = 1024
    feather_radius: Annotated[int, Meta(ge=1, le=5)] = 2
    export_layers: bool = True


class Kind(Struct, frozen=True):
    """What the domain knows of a kind.

    Attributes:
        params: the struct that its parameters must fit.
        inputs: how many assets it takes.
        task: the model slot whose active version is pinned at submit, or none.
    """

    name: str
    params: type[Struct]
    inputs: int
    task: str | None = None


KINDS = {
    kind.name: kind
    for kind in (
        Kind("noop", Noop, inputs=0),
        Kind("layer-photo-realistic", LayerPhotoRealistic, inputs=1, task="depth"),
    )
}


def parse(kind: str, params: dict[str, Any]) -> tuple[Kind, Struct]:
    """The kind and its parameters, defaults filled in.

    Raises:
        UnknownKind: no such kind.
        InvalidParameters: a field is unknown, of another type, or beyond its limits.
    """
    found = KINDS.get(kind)
    if found is None:
        raise UnknownKind(f"{kind!r} is not one of {', '.join(sorted(KINDS))}")
    try:
        return found, msgspec.convert(params, found.params)
    except msgspec.ValidationError as error:
        raise InvalidParameters(str(error)) from error
