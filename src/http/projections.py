"""The read models themselves: how far each is, whether it is what the log comes to, and making it anew."""

import asyncio
from typing import Annotated, Any

from litestar import Controller, Response, get, post
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from ..projections import quarantine, rebuild, upkeep, verify
from ..projections.quarantine import QuarantinedStream
from ..projections.upkeep import ProjectionState, Task
from .auth import takes
from .manners import POSITION_MAX, Parts, found
from .services import Services

QUARANTINED_SHOWN_MAX = 100

AtPosition = Annotated[
    int | None,
    QueryParameter(
        ge=0,
        le=POSITION_MAX,
        description="Rows as its history has them at this position.",
        schema_extra={"minimum": 0},  # Litestar tells no bound of an optional parameter that is 0
    ),
]


class ProjectionView(Struct, frozen=True):
    """A read model, and the streams that are in none of its rows any more.

    Attributes:
        quarantine: those that were set aside first.
    """

    state: ProjectionState
    quarantine: list[QuarantinedStream]


class TaskAccepted(Struct, frozen=True):
    """Work that goes on; GET /v1/projections/{name} says how far it is and what came of it."""

    name: str
    task: str


WRITES = takes("projections:write")


class ProjectionController(Controller):
    path = "/v1/projections"
    opt = takes("projections:read")
    tags = ("audit",)

    @get("/", summary="How far the read models are")
    async def listing(self, services: Parts) -> Response[list[ProjectionState]]:
        async with services.store.pool.connection() as connection:
            states = await upkeep.overview(connection)
        return found(states, min(state.position for state in states))

    @get("/{name:str}", summary="One read model, and what was set aside of it")
    async def one(self, services: Parts, name: FromPath[str]) -> Response[ProjectionView]:
        model = upkeep.model_named(name)
        async with services.store.pool.connection() as connection:
            state = next(state for state in await upkeep.overview(connection) if state.name == name)
            kinds = upkeep.kinds_of(model)
            aside = await quarantine.listed(connection, kinds=kinds, limit=QUARANTINED_SHOWN_MAX)
        return found(ProjectionView(state, aside), state.position)

    @post(
        "/{name:str}/rebuild",
        status_code=202,
        summary="Fold it anew and put that in its place",
        refuses=(409,),
        access="projections:write",
    )
    async def rebuild(self, services: Parts, name: FromPath[str]) -> TaskAccepted:
        upkeep.model_named(name)  # before anything is begun under a stranger's name
        begun = asyncio.Event()
        work = rebuild.rebuild(_direct(services), name, services.store.mapper, on_claim=begun.set)
        return await _started(services, name, "rebuild", work, begun)

    @post(
        "/{name:str}/verify",
        status_code=202,
        summary="Compare it with a replay of the log",
        refuses=(409,),
        access="projections:write",
    )
    async def verify(self, services: Parts, name: FromPath[str], at: AtPosition = None) -> TaskAccepted:
        upkeep.model_named(name)
        begun = asyncio.Event()
        work = verify.verify(_direct(services), name, services.store.mapper, at=at, on_claim=begun.set)
        return await _started(services, name, "verify", work, begun)


async def _started(services: Services, name: str, task: Task, work: Any, begun: asyncio.Event) -> TaskAccepted:
    await services.background.start(work, begun, f"{task}-{name}")
    return TaskAccepted(name, task)


def _direct(services: Services) -> str:
    """Without a pooler between: the claim belongs to one session."""
    return services.settings.database_direct_url or services.settings.database_url
