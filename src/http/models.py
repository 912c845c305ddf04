"""Model versions at the door."""

from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct
from msgspec.structs import replace

from ..adapters.ids import uuid7
from ..commands import model_slots as slot_commands
from ..commands import models as commands
from ..commands.models import sync_model, then
from ..commands.transact import Receipt
from ..domain import model_slots, models
from ..domain.kernel import Aggregate, Caller, NotFound
from ..domain.models import ModelVersion
from ..projections import model_slots as slot_projection
from ..projections import models as projection
from ..projections import shadows as shadow_projection
from .auth import takes
from .manners import After, Asks, At, Limit, Parts, Reads, Versions, decided, found, shown
from .nouns import NounController, as_of
from .services import Services

TASK_DEFAULT = "segment"  # what a client means that names none: the first system's only task


URI_CHARS_MAX = 1_000


class ModelNamed(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A version, and where its bytes are to be found: `hf_repo`, or `uri` instead of it.

    Attributes:
        hf_repo: `owner/name`; `local/<name>` is a file in the model cache, `local/demo` works out of the box.
        uri: `builtin:<name>`.
        activate: sync it and make it the task's version at once.
    """

    name: Annotated[str, Meta(min_length=1, max_length=models.NAME_CHARS_MAX)]
    framework: Annotated[str, Meta(max_length=models.NAME_CHARS_MAX)]
    hf_repo: Annotated[str, Meta(max_length=URI_CHARS_MAX)] | None = None
    hf_revision: Annotated[str, Meta(max_length=models.NAME_CHARS_MAX)] | None = None
    uri: Annotated[str, Meta(max_length=URI_CHARS_MAX)] | None = None
    task: Annotated[str, Meta(max_length=models.NAME_CHARS_MAX)] = TASK_DEFAULT
    activate: bool = False


class LastShadow(Struct, frozen=True, kw_only=True):
    """The verdict of jobs that were run again on a version; see /v1/shadows."""

    shadow_id: UUID
    judged_at: datetime | None
    total: int
    identical: int
    equivalent: int
    different: int
    failed: int


class ModelView(Struct, frozen=True, kw_only=True):
    """A version of a model.

    Attributes:
        is_active: whether it does its task's work now.
        artifact_path: of its file, below the model cache, once synced.
        downloaded_at: when it was synced.
        last_shadow: the last verdict of one; null in the answers to commands too.
    """

    id: UUID
    name: str
    task: str
    framework: str
    hf_repo: str | None
    hf_revision: str | None
    uri: str | None
    status: str
    is_active: bool
    sha256: str | None
    size_bytes: int | None
    origin: str | None
    artifact_path: str | None
    downloaded_at: datetime | None
    last_sync_error: str | None
    created_at: datetime
    updated_at: datetime
    last_shadow: LastShadow | None = None
    version: int


def _view(
    model_id: UUID,
    model: ModelVersion | projection.ModelRow,
    version: int,
    active: UUID | None,
    shadow: shadow_projection.ShadowRow | None = None,
) -> ModelView:
    return shown(
        ModelView,
        model,
        id=model_id,
        version=version,
        is_active=active == model_id,
        artifact_path=model.path,
        downloaded_at=model.synced_at,
        last_shadow=None if shadow is None else shown(LastShadow, shadow),
    )


async def _row_view(reads: Reads, row: projection.ModelRow, active: UUID | None) -> ModelView:
    """As the read models have it, its last shadow included."""
    last = await shadow_projection.last_of_models(reads, [row.model_id])
    return _view(row.model_id, row, row.version, active, last.get(row.model_id))


async def _answer(services: Services, receipt: Receipt[ModelVersion], *, status_code: int = 200) -> Response[ModelView]:
    slot, _, _ = await services.commands.state(
        model_slots.AGGREGATE, model_slots.slot_id(receipt.state.task), read_tail=False
    )
    body = _view(receipt.stream_id, receipt.state, receipt.version, slot.active)
    return decided(receipt, body, status_code=status_code)


class ModelController(NounController):
    path = "/v1/models"
    opt = takes("models:read")
    tags = ("models",)
    aggregate: ClassVar[Aggregate[Any]] = models.AGGREGATE

    @post("/", summary="Register a model version", access="models:write", refuses=(502,))
    async def register(self, services: Parts, caller: Asks, data: JSONBody[ModelNamed]) -> Response[ModelView]:
        """With `activate` it is synced first; if that fails it stays registered and the answer is 502."""
        command = commands.RegisterModel(
            model_id=uuid7(),
            name=data.name,
            framework=data.framework,
            task=data.task,
            hf_repo=data.hf_repo,
            hf_revision=data.hf_revision,
            uri=data.uri,
        )
        receipt = await services.commands.execute(commands.register_model, command, caller)
        if data.activate:
            model_id = receipt.stream_id
            receipt = await sync_model(services.commands, services.models, model_id, then(caller, "sync"))
            activated = await _activate(services, model_id, then(caller, "activate"))
            receipt = _reaching(receipt, activated.position)
        return await _answer(services, receipt, status_code=201)

    @get("/", summary="Model versions, oldest first")
    async def page(
        self,
        reads: Reads,
        task: Annotated[str | None, QueryParameter(max_length=64)] = None,
        after: After = None,
        limit: Limit = 200,
    ) -> Response[list[ModelView]]:
        page = await projection.page(reads, task=task, after=after, limit=limit)
        slots = await slot_projection.by_task(reads)
        active = {name: slot.active for name, slot in slots.items()}
        last = await shadow_projection.last_of_models(reads, [row.model_id for row in page.rows])
        views = [
            _view(row.model_id, row, row.version, active.get(row.task), last.get(row.model_id)) for row in page.rows
        ]
        return found(views, page.position)

    @get("/active", summary="The version that is active", refuses=(404,))
    async def active(
        self, reads: Reads, task: Annotated[str | None, QueryParameter(max_length=64)] = None
    ) -> Response[ModelView]:
        """Of a task; without one, of the task whose version was changed last."""
        slots = await slot_projection.by_task(reads, task)
        if not slots:
            raise NotFound("no model is active")
        slot = max(slots.values(), key=lambda one: one.position)
        row, position = await reads.get(projection.MODELS, slot.active)
        if row is None:
            raise NotFound("no such model")
        return found(await _row_view(reads, row, slot.active), position, version=row.version)

    @get("/{model_id:uuid}", summary="One model version, now or then")
    async def one(self, services: Parts, reads: Reads, model_id: FromPath[UUID], at: At = None) -> Response[ModelView]:
        if at is not None:
            was = await as_of(services, models.AGGREGATE, model_id, at)
            active = await _active_then(services, was.state.task, str(was.position))
            return found(_view(model_id, was.state, was.version, active), was.position, version=was.version)
        row, position = await reads.get(projection.MODELS, model_id)
        if row is None:
            raise NotFound("no such model")
        slot = (await slot_projection.by_task(reads, row.task)).get(row.task)
        return found(await _row_view(reads, row, slot.active if slot else None), position, version=row.version)

    @post(
        "/{model_id:uuid}/sync",
        status_code=200,
        summary="Bring a version's bytes into the cache",
        access="models:write",
        refuses=(502,),
    )
    async def sync(self, services: Parts, caller: Asks, model_id: FromPath[UUID]) -> Response[ModelView]:
        receipt = await sync_model(services.commands, services.models, model_id, caller)
        return await _answer(services, receipt)

    @post(
        "/{model_id:uuid}/activate",
        status_code=200,
        summary="Make a synced version do its task's work",
        access="models:activate",
    )
    async def activate(
        self,
        services: Parts,
        caller: Asks,
        versions: Versions,
        model_id: FromPath[UUID],
        shadow_id: FromQuery[UUID | None] = None,
    ) -> Response[ModelView]:
        """With `shadow_id`, only if that shadow of this version found nothing different and nothing failed."""
        activated = await _activate(services, model_id, caller, versions, shadow_id)
        model, version, _ = await services.commands.state(models.AGGREGATE, model_id, read_tail=False)
        return decided(activated, _view(model_id, model, version, activated.state.active))


async def _activate(
    services: Services,
    model_id: UUID,
    caller: Caller,
    versions: frozenset[int] | None = None,
    shadow_id: UUID | None = None,
) -> Receipt[model_slots.ModelSlot]:
    command = slot_commands.ActivateModel(model_id=model_id, shadow_id=shadow_id)
    return await services.commands.execute(slot_commands.activate_model, command, caller, versions=versions)


def _reaching(receipt: Receipt[ModelVersion], position: int) -> Receipt[ModelVersion]:
    return replace(receipt, position=max(receipt.position, position))


async def _active_then(services: Services, task: str, at: str) -> UUID | None:
    try:
        was = await as_of(services, model_slots.AGGREGATE, model_slots.slot_id(task), at)
    except NotFound:
        return None
    active: UUID | None = was.state.active
    return active
