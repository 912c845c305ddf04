"""Which model version serves a task, and which did before."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain.model_slots import HISTORY_MAX, ModelActivated, ModelRolledBack
from .projection import ReadModel, ReadModels


class ModelSlotRow(Struct, frozen=True):
    """Attributes:
    previous: versions that were active before, oldest first, without those rolled back; at most HISTORY_MAX.
    """

    slot_id: UUID
    task: str
    active: UUID
    previous: list[UUID]
    activated_at: datetime
    version: int
    position: int


def apply(row: ModelSlotRow | None, event: Any, at: Recorded) -> ModelSlotRow:
    previous = row.previous if row is not None else []
    match event:
        case ModelActivated(previous=replaced):
            previous = previous if replaced is None else [*previous, replaced][-HISTORY_MAX:]
        case ModelRolledBack():
            previous = previous[:-1]
    return ModelSlotRow(
        slot_id=at.stream_id,
        task=event.task,
        active=event.model_id,
        previous=previous,
        activated_at=event.at,
        version=at.originator_version,
        position=at.id,
    )


MODEL_SLOTS = ReadModel("model_slots", 1, frozenset({"model_slot"}), ModelSlotRow, apply, history=True)

BY_TASK = sql.SQL("SELECT to_json(s) FROM model_slots AS s WHERE %(task)s::text IS NULL OR task = %(task)s")


async def by_task(reads: ReadModels, task: str | None = None) -> dict[str, ModelSlotRow]:
    """Slots by their task; all of them, or the one of `task`."""
    found = await reads.fetch(ModelSlotRow, BY_TASK, {"task": task})
    return {row.task: row for row in found.rows}
