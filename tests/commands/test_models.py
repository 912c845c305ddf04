"""Model versions against the real log and a real cache: sync by digest, and the models that ship with Sightline."""

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.conftest_service import Service, by

from sightline.adapters import builtin
from sightline.adapters.ids import uuid7
from sightline.commands import model_slots, models
from sightline.domain import model_slots as slots
from sightline.domain.kernel import InvalidState, derived_id
from sightline.domain.models import AGGREGATE as MODELS
from sightline.domain.models import ModelIsActive, ModelVersion

INSTALL = """
import asyncio, sys
from pathlib import Path
from sightline.adapters import settings
from sightline.adapters.ids import uuid7
from sightline.commands import models
from sightline.domain import model_slots as slots
from sightline.domain.kernel import Caller
from sightline.workers import lifecycle

async def main():
    data_dir, dsn, redis_url = sys.argv[1:]
    given = settings.read({}, data_dir=Path(data_dir), database_url=dsn, redis_url=redis_url)
    async with lifecycle.open_services(given) as services:
        caller = Caller(actor="system", now=lifecycle.now(), command_id=uuid7(), correlation_id="c", causation_id="c")
        print("ready", flush=True)
        sys.stdin.readline()
        await models.install_builtin_models(services.commands, services.models, caller)

asyncio.run(main())
"""


async def register(service: Service, **source: Any) -> UUID:
    command = models.RegisterModel(model_id=uuid7(), name="m", framework="onnx", task="depth", **source)
    return (await service.run(models.register_model, command)).stream_id


async def sync(service: Service, model_id: UUID) -> ModelVersion:
    return (await models.sync_model(service.commands, service.services.models, model_id, by())).state


async def test_a_sync_brings_verified_bytes_into_the_cache(bare_service: Service) -> None:
    model_id = await register(bare_service, hf_repo="local/demo")
    model = await sync(bare_service, model_id)
    assert model.sha256 is not None
    path = bare_service.services.models.path(model.sha256)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
    assert (model.status, model.size_bytes) == ("synced", path.stat().st_size)
    assert (await sync(bare_service, model_id)).sha256 == model.sha256
    assert await bare_service.topics(model_id) == ["registered", "sync_started", "synced"], "synced once"


async def test_bytes_that_are_not_what_the_manifest_says_are_refused(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forged = tmp_path / "forged.onnx"
    forged.write_bytes(b"something else")
    model_id = await register(bare_service, uri="builtin:depth-heuristic")
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "model_path", lambda _: forged)
        with pytest.raises(models.SyncFailed, match="manifest says"):
            await sync(bare_service, model_id)
    assert await bare_service.topics(model_id) == ["registered", "sync_started", "sync_failed"]
    assert not list((bare_service.settings.data_dir / "models").rglob("*.onnx")), "nothing half-written"
    with pytest.raises(slots.ModelNotSynced):
        await bare_service.run(model_slots.activate_model, model_slots.ActivateModel(model_id=model_id))
    assert (await sync(bare_service, model_id)).status == "synced", "a later sync may do better"


async def test_a_source_that_is_not_here_fails_with_a_reason(bare_service: Service) -> None:
    for source in ("local/absent", "someone/absent"):
        model_id = await register(bare_service, hf_repo=source)
        with pytest.raises(models.SyncFailed):
            await sync(bare_service, model_id)
        state, _, _ = await bare_service.commands.state(MODELS, model_id, read_tail=True)
        assert state.status == "failed"
        assert state.last_sync_error
        assert source in state.last_sync_error


async def test_the_same_version_cannot_become_other_bytes(bare_service: Service) -> None:
    model_id = await register(bare_service, hf_repo="local/demo")
    await sync(bare_service, model_id)
    other = models.CompleteSync(model_id=model_id, sha256="f" * 64, path="p", size_bytes=1, origin="hub")
    with pytest.raises(InvalidState):
        await bare_service.run(models.complete_sync, other)


async def test_the_active_version_is_not_archived(bare_service: Service) -> None:
    first, second = [await register(bare_service, hf_repo="local/demo") for _ in range(2)]
    for model_id in (first, second):
        await sync(bare_service, model_id)
    await bare_service.run(model_slots.activate_model, model_slots.ActivateModel(model_id=first))
    with pytest.raises(ModelIsActive):
        await bare_service.run(models.archive_model, models.ArchiveModel(model_id=first))
    await bare_service.run(model_slots.activate_model, model_slots.ActivateModel(model_id=second))
    archived = await bare_service.run(models.archive_model, models.ArchiveModel(model_id=first))
    assert archived.state.status == "archived"


async def test_archive_and_activate_at_once_never_leave_an_archived_version_active(bare_service: Service) -> None:
    """Each looks at the other's stream: of two at once one is decided again, and refused."""
    for _ in range(10):
        model_id = await register(bare_service, hf_repo="local/demo")
        await sync(bare_service, model_id)
        await asyncio.gather(
            bare_service.run(models.archive_model, models.ArchiveModel(model_id=model_id)),
            bare_service.run(model_slots.activate_model, model_slots.ActivateModel(model_id=model_id)),
            return_exceptions=True,
        )
        slot, _, _ = await bare_service.commands.state(slots.AGGREGATE, slots.slot_id("depth"), read_tail=True)
        archived = (await bare_service.topics(model_id))[-1] == "archived"
        assert archived == (slot.active != model_id)


async def test_two_processes_install_the_built_in_models_once(bare_service: Service) -> None:
    given = bare_service.settings
    arguments = (str(given.data_dir), given.database_url, given.redis_url)
    pipe = asyncio.subprocess.PIPE
    both = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", INSTALL, *arguments, stdin=pipe, stdout=pipe)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        await process.stdout.readline()
    for process in both:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
    for process in both:
        await process.communicate()
        assert process.returncode == 0
    for manifest in builtin.manifests().values():
        model_id = derived_id("builtin-model", manifest.name, manifest.sha256)
        assert await bare_service.topics(model_id) == ["registered", "sync_started", "synced"]
        slot_id = slots.slot_id(manifest.task)
        assert await bare_service.topics(slot_id) == ["activated"]
    before = await bare_service.services.store.reader.head()
    await bare_service.install_models()
    assert await bare_service.services.store.reader.head() == before, "a later start says nothing"
