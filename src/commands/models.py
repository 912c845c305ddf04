"""Commands on model versions, and their sync: the one command that takes longer than a decision."""

import asyncio
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from ..adapters import builtin
from ..adapters.models import ModelCache, ModelUnavailable
from ..domain import model_slots, models
from ..domain.kernel import Caller, NotFound, Rejection, derived_id
from ..domain.models import ModelVersion
from .model_slots import ActivateModel, activate_model
from .transact import Commands, Receipt
from .transaction import Loaded, Transaction


class SyncFailed(Rejection):
    """The model's bytes could not be had; it stays registered, with the reason."""

    code = "model_sync_failed"


class RegisterModel(Struct, frozen=True, kw_only=True):
    model_id: UUID
    name: str
    framework: str
    task: str
    hf_repo: str | None = None
    hf_revision: str | None = None
    uri: str | None = None
    manifest: dict[str, Any] = {}


class StartSync(Struct, frozen=True, kw_only=True):
    model_id: UUID


class CompleteSync(Struct, frozen=True, kw_only=True):
    model_id: UUID
    sha256: str
    path: str
    size_bytes: int
    origin: str


class FailSync(Struct, frozen=True, kw_only=True):
    model_id: UUID
    error: str


class ArchiveModel(Struct, frozen=True, kw_only=True):
    model_id: UUID


async def register_model(tx: Transaction, command: RegisterModel) -> Loaded[ModelVersion]:
    model = await tx.create(models.AGGREGATE, command.model_id)
    events = models.register(
        model.state,
        name=command.name,
        framework=command.framework,
        task=command.task,
        owner=tx.caller.actor,
        hf_repo=command.hf_repo,
        hf_revision=command.hf_revision,
        uri=command.uri,
        manifest=command.manifest,
        now=tx.caller.now,
    )
    return tx.say(model, events)


async def start_sync(tx: Transaction, command: StartSync) -> Loaded[ModelVersion]:
    model = await tx.load(models.AGGREGATE, command.model_id)
    return tx.say(model, models.start_sync(model.state, by=tx.caller.actor, now=tx.caller.now))


async def complete_sync(tx: Transaction, command: CompleteSync) -> Loaded[ModelVersion]:
    model = await tx.load(models.AGGREGATE, command.model_id)
    events = models.complete_sync(
        model.state,
        sha256=command.sha256,
        path=command.path,
        size_bytes=command.size_bytes,
        origin=command.origin,
        now=tx.caller.now,
    )
    return tx.say(model, events)


async def fail_sync(tx: Transaction, command: FailSync) -> Loaded[ModelVersion]:
    model = await tx.load(models.AGGREGATE, command.model_id)
    return tx.say(model, models.fail_sync(model.state, error=command.error, now=tx.caller.now))


async def archive_model(tx: Transaction, command: ArchiveModel) -> Loaded[ModelVersion]:
    model = await tx.load(models.AGGREGATE, command.model_id)
    if model.state.status is None:
        raise NotFound("no such model")
    slot = await tx.look(model_slots.AGGREGATE, model_slots.slot_id(model.state.task))
    active = slot.active == command.model_id
    return tx.say(model, models.archive(model.state, active=active, by=tx.caller.actor, now=tx.caller.now))


async def sync_model(commands: Commands, cache: ModelCache, model_id: UUID, caller: Caller) -> Receipt[ModelVersion]:
    """Start, fetch, verify, complete. A sync that died is done again by the next caller.

    Raises:
        SyncFailed: the bytes could not be had; ModelSyncFailed is in the log.
    """
    started = await commands.execute(start_sync, StartSync(model_id=model_id), caller)
    model = started.state
    if model.status == "synced":
        return started
    try:
        synced = await asyncio.to_thread(cache.sync, hf_repo=model.hf_repo, uri=model.uri)
    except (ModelUnavailable, OSError) as error:
        failed = FailSync(model_id=model_id, error=str(error))
        await commands.execute(fail_sync, failed, then(caller, "fail-sync", started.position))
        raise SyncFailed(str(error)) from error
    completed = CompleteSync(
        model_id=model_id,
        sha256=synced.sha256,
        path=synced.path,
        size_bytes=synced.size_bytes,
        origin=synced.origin,
    )
    return await commands.execute(complete_sync, completed, then(caller, "complete-sync", started.position))


async def install_builtin_models(commands: Commands, cache: ModelCache, caller: Caller) -> None:
    """Register, sync and, where its task has no active version yet, activate every model that ships with Sightline.

    Ids follow from the model's digest, so that every process may do this at every start and it happens once.
    """
    for manifest in builtin.manifests().values():
        model_id = derived_id("builtin-model", manifest.name, manifest.sha256)
        own = replace(caller, command_id=derived_id("install", model_id))
        register = RegisterModel(
            model_id=model_id,
            name=manifest.name,
            framework=manifest.framework,
            task=manifest.task,
            uri=f"builtin:{manifest.name}",
        )
        registered = await commands.execute(register_model, register, own)
        if registered.state.status == "archived":
            continue
        await sync_model(commands, cache, model_id, then(own, "sync"))
        slot, _, _ = await commands.state(model_slots.AGGREGATE, model_slots.slot_id(manifest.task), read_tail=True)
        if slot.active is None:
            await commands.execute(activate_model, ActivateModel(model_id=model_id), then(own, "activate"))


def then(caller: Caller, step: str, position: int | None = None) -> Caller:
    """The same caller's next command, with an id of its own that a retry gives again."""
    cause = caller.causation_id if position is None else f"event:{position}"
    return replace(caller, command_id=derived_id(caller.command_id, step), causation_id=cause, request_digest="")
