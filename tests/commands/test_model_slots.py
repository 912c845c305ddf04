"""Model slots against the real log: one active version, and the way back."""

from uuid import UUID

import pytest
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import model_slots, models
from sightline.domain.kernel import InvalidState, NotFound
from sightline.domain.model_slots import ModelNotSynced, ModelSlot, slot_id


async def synced(service: Service) -> UUID:
    register = models.RegisterModel(model_id=uuid7(), name="m", framework="onnx", task="depth", hf_repo="local/demo")
    model_id = (await service.run(models.register_model, register)).stream_id
    await models.sync_model(service.commands, service.services.models, model_id, by())
    return model_id


async def activate(service: Service, model_id: UUID) -> ModelSlot:
    return (await service.run(model_slots.activate_model, model_slots.ActivateModel(model_id=model_id))).state


async def roll_back(service: Service, model_id: UUID) -> ModelSlot:
    return (await service.run(model_slots.roll_back_model, model_slots.RollBackModel(model_id=model_id))).state


async def test_a_rollback_goes_back_once_however_often_it_is_asked(bare_service: Service) -> None:
    first, second, third = [await synced(bare_service) for _ in range(3)]
    for model_id in (first, second, third):
        assert (await activate(bare_service, model_id)).active == model_id
    assert (await roll_back(bare_service, third)).active == second
    assert (await roll_back(bare_service, third)).active == second, "the same request again"
    assert (await roll_back(bare_service, second)).active == first
    with pytest.raises(InvalidState):
        await roll_back(bare_service, first)
    assert await bare_service.topics(slot_id("depth")) == ["activated"] * 3 + ["rolled_back"] * 2


async def test_no_rollback_to_a_version_that_was_archived_since(bare_service: Service) -> None:
    first, second = await synced(bare_service), await synced(bare_service)
    await activate(bare_service, first)
    await activate(bare_service, second)
    await bare_service.run(models.archive_model, models.ArchiveModel(model_id=first))
    with pytest.raises(ModelNotSynced):
        await roll_back(bare_service, second)


async def test_what_does_not_exist_is_not_activated(bare_service: Service) -> None:
    with pytest.raises(NotFound):
        await activate(bare_service, uuid7())
