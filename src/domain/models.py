"""A version of a model: one file of weights, known by its SHA-256 once it was synced into the cache.

registered → syncing → synced | failed; failed → syncing; any of them → archived
"""

import re
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from .kernel import Aggregate, Invalid, InvalidState, NotFound, Rejection, require_sha256, storable

NAME_CHARS_MAX = 200
ERROR_CHARS_MAX = 1000
FRAMEWORKS = frozenset({"onnx", "transformers", "torch"})

HF_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
HF_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")
URI = re.compile(r"builtin:[a-z0-9][a-z0-9-]{0,63}|s3://[a-z0-9][a-z0-9.-]{1,62}/[A-Za-z0-9_./-]{1,512}")
TASK = re.compile(r"[a-z][a-z0-9-]{0,63}")


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class ModelRegistered(Struct, frozen=True, kw_only=True, tag="model.registered"):
    at: datetime
    owner: str
    name: str
    framework: str
    task: str
    hf_repo: str | None = None
    hf_revision: str | None = None
    uri: str | None = None
    manifest: dict[str, Any] = field(default_factory=dict)


class ModelSyncStarted(Struct, frozen=True, kw_only=True, tag="model.sync_started"):
    at: datetime
    by: str


class ModelSynced(Struct, frozen=True, kw_only=True, tag="model.synced"):
    at: datetime
    sha256: str
    path: str  # below the model cache
    size_bytes: int
    origin: str  # where the bytes came from: builtin, hub, s3 or cache


class ModelSyncFailed(Struct, frozen=True, kw_only=True, tag="model.sync_failed"):
    at: datetime
    error: str


class ModelArchived(Struct, frozen=True, kw_only=True, tag="model.archived"):
    at: datetime
    by: str


Event = ModelRegistered | ModelSyncStarted | ModelSynced | ModelSyncFailed | ModelArchived


# State


class ModelVersion(Struct, frozen=True):
    """A model version as its events tell it; `status` is None before anything was said."""

    status: Literal["registered", "syncing", "synced", "failed", "archived"] | None = None
    name: str = ""
    framework: str = ""
    task: str = ""
    hf_repo: str | None = None
    hf_revision: str | None = None
    uri: str | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    path: str | None = None
    size_bytes: int | None = None
    origin: str | None = None
    last_sync_error: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    synced_at: datetime | None = None


# Rejections


class ModelIsActive(Rejection):
    code = "conflict"


def evolve(model: ModelVersion, event: Event) -> ModelVersion:
    match event:
        case ModelRegistered():
            return ModelVersion(
                status="registered",
                name=event.name,
                framework=event.framework,
                task=event.task,
                hf_repo=event.hf_repo,
                hf_revision=event.hf_revision,
                uri=event.uri,
                manifest=event.manifest,
                created_at=event.at,
                updated_at=event.at,
            )
        case ModelSyncStarted(at=at):
            return replace(model, status="syncing", updated_at=at)
        case ModelSynced(at=at, sha256=sha256, path=path, size_bytes=size_bytes, origin=origin):
            return replace(
                model,
                status="synced",
                sha256=sha256,
                path=path,
                size_bytes=size_bytes,
                origin=origin,
                last_sync_error=None,
                updated_at=at,
                synced_at=at,
            )
        case ModelSyncFailed(at=at, error=error):
            return replace(model, status="failed", last_sync_error=error, updated_at=at)
        case ModelArchived(at=at):
            return replace(model, status="archived", updated_at=at)


AGGREGATE = Aggregate("model", ModelVersion(), evolve)


# Decisions


def register(
    model: ModelVersion,
    *,
    name: str,
    framework: str,
    task: str,
    owner: str,
    now: datetime,
    hf_repo: str | None = None,
    hf_revision: str | None = None,
    uri: str | None = None,
    manifest: dict[str, Any] | None = None,
) -> list[Event]:
    """Name a version and where its bytes are to be found.

    `hf_repo` is `owner/name`, never a URL: what it resolves to is ours to say (`local/…` is the cache directory).
    `uri`, instead of it, is `builtin:<name>` or `s3://<bucket>/<key>`.
    """
    if model.status is not None:
        return []  # A retried request is not a second version.
    if not 0 < len(name) <= NAME_CHARS_MAX or storable(name, NAME_CHARS_MAX) != name:
        raise Invalid(f"a model's name has 1 to {NAME_CHARS_MAX} printable characters, no space around them")
    if framework not in FRAMEWORKS:
        raise Invalid(f"framework {framework!r} is not one of {', '.join(sorted(FRAMEWORKS))}")
    if TASK.fullmatch(task) is None:
        raise Invalid("a task is a lower-case word, such as depth")
    if (hf_repo is None) == (uri is None):
        raise Invalid("a model has either hf_repo or uri")
    if hf_repo is not None and (HF_REPO.fullmatch(hf_repo) is None or ".." in hf_repo):
        raise Invalid("hf_repo is owner/name, never a URL or a path")
    if hf_revision is not None and (HF_REVISION.fullmatch(hf_revision) is None or ".." in hf_revision):
        raise Invalid("hf_revision is a branch, tag or commit")
    if uri is not None and (URI.fullmatch(uri) is None or ".." in uri):
        raise Invalid("uri is builtin:<name> or s3://<bucket>/<key>")
    return [
        ModelRegistered(
            at=now,
            owner=owner,
            name=name,
            framework=framework,
            task=task,
            hf_repo=hf_repo,
            hf_revision=hf_revision,
            uri=uri,
            manifest=manifest or {},
        )
    ]


def start_sync(model: ModelVersion, *, by: str, now: datetime) -> list[Event]:
    """Silent while one runs: if its process died, the next one does the work again and completes the same sync."""
    _require_usable(model)
    if model.status in {"syncing", "synced"}:
        return []
    return [ModelSyncStarted(at=now, by=by)]


def complete_sync(
    model: ModelVersion, *, sha256: str, path: str, size_bytes: int, origin: str, now: datetime
) -> list[Event]:
    """The bytes are in the cache and their digest was verified. Of two syncs at once, the one that works counts."""
    _require_usable(model)
    if model.status == "synced":
        if model.sha256 == sha256:
            return []
        raise InvalidState(f"this version is {model.sha256} already; other bytes are another version")
    if model.status == "registered":
        raise InvalidState("no sync was started")
    if size_bytes <= 0:
        raise Invalid("a model of no bytes")
    digest = require_sha256(sha256)
    return [ModelSynced(at=now, sha256=digest, path=path, size_bytes=size_bytes, origin=origin)]


def fail_sync(model: ModelVersion, *, error: str, now: datetime) -> list[Event]:
    """Silent unless a sync runs: what another one brought is not lost through this one's failure."""
    _require_usable(model)
    if model.status != "syncing":
        return []
    return [ModelSyncFailed(at=now, error=storable(error, ERROR_CHARS_MAX))]


def archive(model: ModelVersion, *, active: bool, by: str, now: datetime) -> list[Event]:
    """Take out of use. `active` is what the slot of its task says, consulted by the caller."""
    if model.status is None:
        raise NotFound("no such model")
    if model.status == "archived":
        return []
    if active:
        raise ModelIsActive("activate another version first")
    return [ModelArchived(at=now, by=by)]


def _require_usable(model: ModelVersion) -> None:
    if model.status is None:
        raise NotFound("no such model")
    if model.status == "archived":
        raise InvalidState("the model is archived")
