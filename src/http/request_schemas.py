"""What a request's schema says beyond the types of its fields: rules of the domain that a schema can tell, and
examples, each of which is a request that is taken.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..domain import assets, models
from ..domain.kinds import KINDS, Kind

TASK = {"pattern": f"^{models.TASK.pattern}$"}
NO_DOTS = r"^(?!.*\.\.)"
REPOSITORY = {"type": "string", "pattern": f"{NO_DOTS}{models.HF_REPO.pattern}$"}
REVISION = {"pattern": f"{NO_DOTS}{models.HF_REVISION.pattern}$"}
URI = {"type": "string", "pattern": f"{NO_DOTS}({models.URI.pattern})$"}
NOTHING = {"type": "null"}
ONE_TIME = {
    "properties": {"not_before": {"type": "string"}, "delay_s": {"type": "number"}},
    "required": ["not_before", "delay_s"],
}


def _params(kind: Kind) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([kind.params])
    found: dict[str, Any] = components[kind.params.__name__]
    return found


def _batch_of(kind: Kind) -> dict[str, Any]:
    """What a kind requires is said for every job or by each."""
    whole = _params(kind)
    params = {name: said for name, said in whole.items() if name != "required"}
    inputs = {"minItems": kind.inputs, "maxItems": kind.inputs}
    job = {"properties": {"params": params, "inputs": inputs}, "required": ["inputs"] if kind.inputs else []}
    defaults = {"params": params} | ({"model_version_id": NOTHING} if kind.task is None else {})
    told = {"kind": {"const": kind.name}, "jobs": {"items": job}, "defaults": {"properties": defaults}}
    batch: dict[str, Any] = {"title": kind.name, "properties": told, "required": ["kind", "jobs"]}
    if needed := whole.get("required"):
        said = {"properties": {"params": {"type": "object", "required": needed}}, "required": ["params"]}
        by_each = {"properties": {"jobs": {"items": said}}}
        for_all = {"properties": {"defaults": {"type": "object"} | said}, "required": ["defaults"]}
        batch["anyOf"] = [for_all, by_each]
    return batch


def _kind(kind: Kind) -> dict[str, Any]:
    told: dict[str, Any] = {
        "kind": {"const": kind.name},
        "params": _params(kind),
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
    "WebhookAsked": {
        "url": {"pattern": "^https://[!-~]+$"},
        "types": {"uniqueItems": True},
        "kinds": {"uniqueItems": True},
    },
    "UserAsked": {"email": {"pattern": "^[^@ ]+@[^@ ]+$"}},
}
REFINED: Mapping[str, Mapping[str, Any]] = {
    "JobAsked": {"oneOf": [_kind(kind) for kind in KINDS.values()], "not": ONE_TIME},
    "BatchAsked": {"oneOf": [_batch_of(kind) for kind in KINDS.values()]},
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
    "BatchAsked": {
        "nothing": {"kind": "noop", "defaults": {"priority": 7}, "jobs": [{"ref": "a"}, {"params": {"sleep_s": 1}}]}
    },
    "ModelNamed": {"demo": {"name": "Demo", "framework": "onnx", "task": "depth", "hf_repo": "local/demo"}},
    "RerunAsked": {"closely": {"tolerance": {"number_max": 0.001, "channel_max": 3}}},
    "ShadowAsked": {"last_week": {"sample_max": 200}},
    "PauseAsked": {"why": {"reason": "a new disk is built in"}},
    "QueueLimitsAsked": {"few": {"running_max": 4, "starts_per_minute_max": 600}},
    "RequeueAsked": {"preview": {"code": "lease_expired", "preview": True}},
    "LimitsAsked": {"modest": {"jobs_per_day": 1_000, "bytes_per_day": 1_000_000_000}},
    "WebhookAsked": {"ends": {"url": "https://hooks.example.com/sightline", "types": ["job.completed", "job.failed"]}},
    "ApiKeyAsked": {"reader": {"name": "dashboard", "role": "VIEWER"}},
}


def refine(name: str, schema: dict[str, Any]) -> None:
    """Add all of that to the schema of this name."""
    for field, more in PROPERTIES.get(name, {}).items():
        schema["properties"][field].update(more)
    schema.update(REFINED.get(name, {}))
