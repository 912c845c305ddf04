"""The models that ship with Sightline, each an ONNX file beside its manifest. Built by `tools/build_*.py`."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

DIRECTORY = Path(__file__).parent


class Tensor(Struct, frozen=True):
    """One input or output of a model.

    Attributes:
        shape: a number, or a name where any number will do.
    """

    name: str
    dtype: str
    shape: list[int | str]


class ModelManifest(Struct, frozen=True):
    """What a loader needs to know of a model beside its bytes.

    Attributes:
        task: the model slot that it can fill.
        depth_source, label_source: for `depth` and `inspect` models: `heuristic` or `learned`; results carry it on.
    """

    name: str
    version: str
    task: str
    framework: str
    file: str
    sha256: str
    size_bytes: int
    inputs: list[Tensor]
    outputs: list[Tensor]
    description: str = ""
    depth_source: str = ""
    label_source: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    postprocessing: dict[str, Any] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    serving: dict[str, Any] = field(default_factory=dict)


@cache
def manifests() -> Mapping[str, ModelManifest]:
    """Every built-in model's manifest, by name."""
    paths = sorted(DIRECTORY.glob("*.json"))
    return {path.stem: msgspec.json.decode(path.read_bytes(), type=ModelManifest) for path in paths}


def model_path(manifest: ModelManifest) -> Path:
    """Where a built-in model's bytes lie."""
    return DIRECTORY / manifest.file
