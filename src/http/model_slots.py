"""Model slots at the door: which version does a task's work, did before, and goes back."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, Response, get, post
from litestar.params import JSONBody, PathParameter
from msgspec import Struct

from ..commands import model_slots as commands
from ..domain import model_slots
from ..domain.kernel import NotFound
from ..domain.model_slots import ModelSlot
from ..projections import model_slots as projection
from .auth import takes
from .manners import AfterVersion, Asks, At, Limit, Parts, Reads, Versions, decided, found
from .nouns import History, as_of, history_of

Task = Annotated[str, PathParameter(max_length=64)]


class VersionLeft(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    model_id: the version to leave; the active one, unless it is named. Named, two requests are one step back.
    """

    model_id: UUID | None = None


class ModelSlotView(Struct, frozen=True):
    """Attributes:
    previous: versions that were active before, oldest first, without those rolled back.
    """

    id: UUID
    task: str
    active: UUID | None
    previous: list[UUID]
    version: int


class ModelSlotController(Controller):
    path = "/v1/model-slots"
    opt = takes("models:read")
    tags = ("models",)

    @get("/", summary="Every task's slot")
    async def every(self, reads: Reads) -> Response[list[ModelSlotView]]:
        position = await reads.position()
        slots = await projection.by_task(reads)
        return found([_view_of(row) for _, row in sorted(slots.items())], position)

    @get("/{task:str}", summary="A task's slot, now or then")
    async def one(self, services: Parts, reads: Reads, task: Task, at: At = None) -> Response[ModelSlotView]:
        if at is not None:
            then = await as_of(services, model_slots.AGGREGATE, model_slots.slot_id(task), at)
            return found(_view(then.state, then.version), then.position, version=then.version)
        position = await reads.position()
        row = (await projection.by_task(reads, task)).get(task)
        if row is None:
            raise NotFound("no model was ever active for this task")
        return found(_view_of(row), position, version=row.version)

    @get("/{task:str}/history", summary="Which versions were active, when")
    async def history(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        task: Task,
        at: At = None,
        after: AfterVersion = "0",
        limit: Limit = 100,
    ) -> Response[History]:
        stream_id = model_slots.slot_id(task)
        return await history_of(request, services, model_slots.AGGREGATE, stream_id, at=at, after=after, limit=limit)

    @post("/{task:str}/rollback", status_code=200, summary="Back to the version before", access="models:activate")
    async def roll_back(
        self, services: Parts, caller: Asks, versions: Versions, task: Task, data: JSONBody[VersionLeft | None] = None
    ) -> Response[ModelSlotView]:
        slot, _, _ = await services.commands.state(model_slots.AGGREGATE, model_slots.slot_id(task), read_tail=True)
        model_id = data.model_id if data is not None and data.model_id is not None else slot.active
        if model_id is None:
            raise NotFound("no model was ever active for this task")
        command = commands.RollBackModel(model_id=model_id)
        receipt = await services.commands.execute(commands.roll_back_model, command, caller, versions=versions)
        return decided(receipt, _view(receipt.state, receipt.version))


def _view(slot: ModelSlot, version: int) -> ModelSlotView:
    return ModelSlotView(model_slots.slot_id(slot.task), slot.task, slot.active, list(slot.history), version)


def _view_of(row: projection.ModelSlotRow) -> ModelSlotView:
    return ModelSlotView(row.slot_id, row.task, row.active, row.previous, row.version)
