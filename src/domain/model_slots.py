"""The slot of one task: which version of a model does the work. One is active at a time, synced before.

empty → active ⇄ active (another version, or back to the one before)
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from .kernel import Aggregate, Invalid, InvalidState, NotFound, Rejection, derived_id

HISTORY_MAX = 32  # versions to go back through; older ones are activated by name


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class ModelActivated(Struct, frozen=True, kw_only=True, tag="model_slot.activated"):
    at: datetime
    task: str
    model_id: UUID
    previous: UUID | None
    by: str


class ModelRolledBack(Struct, frozen=True, kw_only=True, tag="model_slot.rolled_back"):
    at: datetime
    task: str
    model_id: UUID  # active from now on
    rolled_back: UUID
    by: str


Event = ModelActivated | ModelRolledBack


# State


class ModelSlot(Struct, frozen=True):
    """A slot as its events tell it; `active` is None before the first activation.

    Attributes:
        history: versions that were active before, oldest first, without those rolled back.
        rolled_back: the version that the last event took out, so that asking twice goes back once.
    """

    task: str = ""
    active: UUID | None = None
    history: tuple[UUID, ...] = ()
    rolled_back: UUID | None = None


# Rejections


class ModelNotSynced(Rejection):
    code = "model_not_synced"


def evolve(slot: ModelSlot, event: Event) -> ModelSlot:
    match event:
        case ModelActivated(task=task, model_id=model_id, previous=previous):
            history = slot.history if previous is None else (*slot.history, previous)
            return ModelSlot(task, model_id, history[-HISTORY_MAX:])
        case ModelRolledBack(task=task, model_id=model_id, rolled_back=rolled_back):
            return ModelSlot(task, model_id, slot.history[:-1], rolled_back)


AGGREGATE = Aggregate("model_slot", ModelSlot(), evolve)


# Decisions


def activate(slot: ModelSlot, *, task: str, model_id: UUID, synced: bool, by: str, now: datetime) -> list[Event]:
    """Make `model_id` the task's version. `synced` is what the model's own stream says, consulted by the caller."""
    if not task or slot.task not in {"", task}:
        raise Invalid(f"this is the slot of {slot.task}, not of {task}")
    if slot.active == model_id:
        return []
    if not synced:
        raise ModelNotSynced("sync the model first")
    return [ModelActivated(at=now, task=task, model_id=model_id, previous=slot.active, by=by)]


def roll_back(slot: ModelSlot, *, model_id: UUID, previous_synced: bool, by: str, now: datetime) -> list[Event]:
    """Go back from `model_id` to the version before it; naming it is what makes two requests one step back.

    `previous_synced` is what the stream of previous() says, consulted by the caller; false if there is none.

    Raises:
        NotFound: nothing was ever active for this task.
        InvalidState: `model_id` is not active, or nothing was active before it.
        ModelNotSynced: the version before it was archived since.
    """
    if slot.active is None:
        raise NotFound("no model was ever active for this task")
    if slot.rolled_back == model_id:
        return []
    if slot.active != model_id:
        raise InvalidState(f"{model_id} is not the active version")
    target = previous(slot)
    if target is None:
        raise InvalidState("no version was active before this one")
    if not previous_synced:
        raise ModelNotSynced(f"the version before, {target}, can no longer be used")
    return [ModelRolledBack(at=now, task=slot.task, model_id=target, rolled_back=model_id, by=by)]


# Questions


def previous(slot: ModelSlot) -> UUID | None:
    """The version that a rollback would bring back."""
    return slot.history[-1] if slot.history else None


def slot_id(task: str) -> UUID:
    """The stream of a task's slot."""
    return derived_id("model-slot", task)
