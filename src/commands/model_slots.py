"""Commands on model slots: which version serves a task."""

from uuid import UUID

from msgspec import Struct

from ..domain import model_slots, models, shadows
from ..domain.kernel import NotFound
from ..domain.model_slots import ModelSlot
from .transaction import Loaded, Transaction


class ActivateModel(Struct, frozen=True, kw_only=True):
    """Attributes:
    shadow_id: that must speak for it; None: nothing has to.
    """

    model_id: UUID
    shadow_id: UUID | None = None


class RollBackModel(Struct, frozen=True, kw_only=True):
    """Go back from `model_id` to the version before it."""

    model_id: UUID


async def activate_model(tx: Transaction, command: ActivateModel) -> Loaded[ModelSlot]:
    model = await tx.look(models.AGGREGATE, command.model_id)
    if model.status is None:
        raise NotFound("no such model")
    if command.shadow_id is not None:
        shadows.require_passed(await tx.look(shadows.AGGREGATE, command.shadow_id), command.model_id)
    slot = await tx.load(model_slots.AGGREGATE, model_slots.slot_id(model.task))
    events = model_slots.activate(
        slot.state,
        task=model.task,
        model_id=command.model_id,
        synced=model.status == "synced",
        by=tx.caller.actor,
        now=tx.caller.now,
    )
    return tx.say(slot, events)


async def roll_back_model(tx: Transaction, command: RollBackModel) -> Loaded[ModelSlot]:
    model = await tx.look(models.AGGREGATE, command.model_id)
    if model.status is None:
        raise NotFound("no such model")
    slot = await tx.load(model_slots.AGGREGATE, model_slots.slot_id(model.task))
    before = model_slots.previous(slot.state)
    synced = before is not None and (await tx.look(models.AGGREGATE, before)).status == "synced"
    events = model_slots.roll_back(
        slot.state, model_id=command.model_id, previous_synced=synced, by=tx.caller.actor, now=tx.caller.now
    )
    return tx.say(slot, events)
