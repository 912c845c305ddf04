"""The kinds of job: the parameters that each takes, and their limits. A kind's runner is in `workers/kinds/`."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .kernel import Rejection

NOOPS_TOGETHER = 256


class UnknownKind(Rejection):
    code = "unknown_kind"


class InvalidParameters(Rejection):
    code = "rule_violated"


class Noop(Struct, frozen=True, forbid_unknown_fields=True):
    """Does nothing, for `sleep_s`; for benchmarks and for tests of the engine itself."""

    sleep_s: Annotated[float, Meta(ge=0, le=600)] = 0.0
    fail: bool = False


def _noop_weight(params: dict[str, Any]) -> int:
    return NOOPS_TOGETHER if params.get("sleep_s") else 1


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


def _alone(_: dict[str, Any]) -> int:
    return 1


# One style each, in `workers/kinds/painterly_styles.py`; the names are a contract.
PaintingStyle = Literal[
    "oil", "watercolor", "impressionist", "pointillism", "palette-knife", "pastel", "charcoal", "pencil", "ink"
]
SEED_MAX = 2**32 - 1


class LayerPainterly(Struct, frozen=True, forbid_unknown_fields=True):
    """One photograph cut into bands of depth, each of them painted. The same picture, parameters, seed and versions
    give the same bytes.

    Attributes:
        num_layers, max_size, feather_radius, export_layers: as for LayerPhotoRealistic.
        style: how it is painted.
        strength: 0 leaves the photograph as it is, 1 paints with the broadest brush.
        seed: decides everything that chance decides.
    """

    num_layers: Annotated[int, Meta(ge=2, le=5)] = 4
    max_size: Annotated[int, Meta(ge=256, le=2048)] = 1024
    feather_radius: Annotated[int, Meta(ge=1, le=5)] = 2
    export_layers: bool = True
    style: PaintingStyle = "oil"
    strength: Annotated[float, Meta(ge=0, le=1)] = 0.5
    seed: Annotated[int, Meta(ge=0, le=SEED_MAX)] = 42


TEXTS_MAX, TEXT_CHARS_MAX = 256, 8_192
CHARS_OF_A_SHORT_TEXT = 256


class Embed(Struct, frozen=True, forbid_unknown_fields=True):
    """Texts as vectors; close in meaning is close in angle.

    Attributes:
        texts: what lies beyond the model's own limit of tokens is left out, and the manifest says of which.
        format: of the output: NumPy's, float32, or JSON.
    """

    texts: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=TEXT_CHARS_MAX)], ...],
        Meta(min_length=1, max_length=TEXTS_MAX),
    ]
    format: Literal["npy", "json"] = "npy"


def _embed_weight(params: dict[str, Any]) -> int:
    """In short texts; a longer one counts as several."""
    return sum(1 + len(text) // CHARS_OF_A_SHORT_TEXT for text in params.get("texts", ()))


LABELS_MAX = 100


class Inspect(Struct, frozen=True, forbid_unknown_fields=True):
    """What a classifier sees in a picture.

    Attributes:
        top_k: so many labels at most, the likeliest first.
        score_min: labels below it are left out.
    """

    top_k: Annotated[int, Meta(ge=1, le=LABELS_MAX)] = 5
    score_min: Annotated[float, Meta(ge=0, le=1)] = 0.0


class Kind(Struct, frozen=True):
    """What the domain knows of a kind.

    Attributes:
        params: the struct that its parameters must fit.
        inputs: how many assets it takes.
        task: the model slot whose active version is pinned at submit, or none.
        weight_max: of the jobs that a worker claims and runs together; with 1 each runs alone.
        weight: how much of it a job with these parameters takes; with more than all it runs alone.
        together: its runner takes many jobs at once, rather than one after another.
        writes: it has files, read or written.
    """

    name: str
    params: type[Struct]
    inputs: int
    task: str | None = None
    weight_max: int = 1
    weight: Callable[[dict[str, Any]], int] = _alone
    together: bool = False
    writes: bool = True


KINDS = {
    kind.name: kind
    for kind in (
        Kind("noop", Noop, inputs=0, weight_max=NOOPS_TOGETHER, weight=_noop_weight, writes=False),
        Kind("layer-photo-realistic", LayerPhotoRealistic, inputs=1, task="depth"),
        Kind("layer-painterly", LayerPainterly, inputs=1, task="depth"),
        Kind("embed", Embed, inputs=0, task="embed", weight_max=TEXTS_MAX, weight=_embed_weight, together=True),
        Kind("inspect", Inspect, inputs=1, task="inspect"),
    )
}


def require_known(name: str) -> Kind:
    """Raises: UnknownKind: no such kind."""
    found = KINDS.get(name)
    if found is None:
        raise UnknownKind(f"there are {', '.join(sorted(KINDS))}")  # and no word of the caller's own
    return found


def parse(kind: str, params: dict[str, Any]) -> tuple[Kind, Struct]:
    """The kind and its parameters, defaults filled in.

    Raises:
        UnknownKind: no such kind.
        InvalidParameters: a field is unknown, of another type, or beyond its limits.
    """
    found = require_known(kind)
    try:
        return found, msgspec.convert(params, found.params)
    except msgspec.ValidationError as error:
        raise InvalidParameters(str(error)) from error
