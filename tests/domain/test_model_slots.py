from datetime import UTC, datetime
from uuid import UUID

from tests.spec import given

from sightline.domain.kernel import Invalid, InvalidState, NotFound
from sightline.domain.model_slots import (
    AGGREGATE,
    HISTORY_MAX,
    ModelActivated,
    ModelNotSynced,
    ModelRolledBack,
    activate,
    previous,
    roll_back,
    slot_id,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)


def activated(model_id: UUID, before: UUID | None = None) -> ModelActivated:
    return ModelActivated(at=NOON, task="depth", model_id=model_id, previous=before, by="ada")


def rolled_back(model_id: UUID, to: UUID) -> ModelRolledBack:
    return ModelRolledBack(at=NOON, task="depth", model_id=to, rolled_back=model_id, by="ada")


DEPTH = {"task": "depth", "by": "ada", "now": NOON}
BACK = {"previous_synced": True, "by": "ada", "now": NOON}


def test_one_version_is_active_at_a_time() -> None:
    assert given(AGGREGATE).when(activate, model_id=A, synced=True, **DEPTH).then(activated(A)).active == A
    slot = given(AGGREGATE, activated(A)).when(activate, model_id=B, synced=True, **DEPTH).then(activated(B, A))
    assert (slot.active, previous(slot)) == (B, A)


def test_a_version_is_synced_before_it_is_activated() -> None:
    refusal = given(AGGREGATE).when(activate, model_id=A, synced=False, **DEPTH).refused(ModelNotSynced)
    assert refusal.code == "model_not_synced"


def test_the_active_version_is_not_activated_again() -> None:
    given(AGGREGATE, activated(A)).when(activate, model_id=A, synced=False, **DEPTH).then()


def test_a_slot_is_of_one_task() -> None:
    other = DEPTH | {"task": "embed"}
    given(AGGREGATE, activated(A)).when(activate, model_id=B, synced=True, **other).refused(Invalid)
    assert slot_id("depth") == slot_id("depth") != slot_id("embed")


def test_going_back_leads_to_the_version_before() -> None:
    slot = given(AGGREGATE, activated(A), activated(B, A)).when(roll_back, model_id=B, **BACK).then(rolled_back(B, A))
    assert (slot.active, previous(slot)) == (A, None)


def test_asking_twice_goes_back_one_step() -> None:
    history = (activated(A), activated(B, A), activated(C, B), rolled_back(C, B))
    given(AGGREGATE, *history).when(roll_back, model_id=C, **BACK).then()
    given(AGGREGATE, *history).when(roll_back, model_id=B, **BACK).then(rolled_back(B, A))


def test_a_version_that_came_back_can_go_again() -> None:
    history = (activated(A), activated(B, A), rolled_back(B, A), activated(B, A))
    given(AGGREGATE, *history).when(roll_back, model_id=B, **BACK).then(rolled_back(B, A))


def test_there_is_nothing_to_go_back_to() -> None:
    given(AGGREGATE, activated(A)).when(roll_back, model_id=A, **BACK).refused(InvalidState)
    given(AGGREGATE, activated(A), activated(B, A)).when(roll_back, model_id=A, **BACK).refused(InvalidState)
    given(AGGREGATE).when(roll_back, model_id=A, **BACK).refused(NotFound)


def test_nobody_goes_back_to_a_version_that_was_archived() -> None:
    gone = BACK | {"previous_synced": False}
    given(AGGREGATE, activated(A), activated(B, A)).when(roll_back, model_id=B, **gone).refused(ModelNotSynced)


def test_history_is_bounded() -> None:
    ids = [UUID(int=n) for n in range(HISTORY_MAX + 10)]
    slot = AGGREGATE.fold(
        AGGREGATE.initial, [activated(one, before) for one, before in zip(ids, [None, *ids], strict=False)]
    )
    assert slot.history == tuple(ids[9:-1])
