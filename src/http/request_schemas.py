"""What a request's schema says beyond the types of its fields: rules of the domain that a schema can tell, and
examples, each of which is a request that is taken.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..domain import assets, models
from ..domain.kinds import KINDS, Kind

TASK = {"pattern": "^[a-z][a-z0-9-]{0,63}$"}
NO_DOTS = r"^(?!.*\.\.)"
REPOSITORY = {"type": "string", "pattern": NO_DOTS + "[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$"}
REVISION = {"pattern": NO_DOTS + "[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$"}
URI = {
    "type": "string",
    "pattern": NO_DOTS + "(builtin:[a-z0-9][a-z0-9-]{0,63}|s3://[a-z0-9][a-z0-9.-]{1,62}/[A-Za-z0-9_./-]{1,512})$",
}
NOTHING = {"type": "null"}


def _kind(kind: Kind) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([kind.params])
    told: dict[str, Any] = {
        "kind": {"const": kind.name},
        "params": components[kind.params.__name__],
        "inputs": {"minItems": kind.inputs, "maxItems": kind.inputs},
    }
    if kind.task is None:
        told["model_version_id"] = NOTHING
    return {"title": kind.name, "properties": told, "required": ["kind", *(["inputs"] if kind.inputs else [])]}


def _purpose(name: str) -> dict[str, Any]:
    purpose = assets.PURPOSES[name]
    told = {
        "purpose": {"const": name},
        "content_type": {"enum": sorted(purpose.content_types)},
        "size_bytes": {"minimum": 1, "maximum": purpose.size_bytes_max},
    }
    return {"title": name, "properties": told, "required": [] if name == "image" else ["purpose"]}


# By the name of a schema: what is merged into its properties, and into itself.
PROPERTIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "ModelNamed": {"framework": {"enum": sorted(models.FRAMEWORKS)}, "task": TASK, "hf_revision": REVISION},
    "UserAsked": {"email": {"pattern": "^[^@ ]+@[^@ ]+$"}},
}
REFINED: Mapping[str, Mapping[str, Any]] = {
    "JobAsked": {"oneOf": [_kind(kind) for kind in KINDS.values()]},
    "UploadAnnounced": {"oneOf": [_purpose("image"), _purpose("video")]},
    "ModelNamed": {
        "oneOf": [
            {"title": "hf_repo", "properties": {"hf_repo": REPOSITORY, "uri": NOTHING}, "required": ["hf_repo"]},
            {"title": "uri", "properties": {"uri": URI, "hf_repo": NOTHING}, "required": ["uri"]},
        ]
    },
}
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "SessionAsked": {"mine": {}},
    "UploadAnnounced": {"photograph": {"filename": "harvest.jpg", "content_type": "image/jpeg", "size_bytes": 482_113}},
    "JobAsked": {"nothing": {"kind": "noop", "params": {"sleep_s": 0}}},
    "ModelNamed": {"demo": {"name": "Demo", "framework": "onnx", "task": "depth", "hf_repo": "local/demo"}},
    "LimitsAsked": {"modest": {"jobs_per_day": 1_000, "bytes_per_day": 1_000_000_000}},
    "ApiKeyAsked": {"reader": {"name": "dashboard", "role": "VIEWER"}},
}


def refine(name: str, schema: dict[str, Any]) -> None:
    """Add all of that to the schema of this name."""
    for field, more in PROPERTIES.get(name, {}).items():
        schema["properties"][field].update(more)
    schema.update(REFINED.get(name, {}))
