"""Queues at the door: how the jobs of each kind fare; pause, resume, limits."""

from datetime import datetime
from typing import Annotated, Any

from litestar import Controller, Request, Response, get, post, put
from litestar.params import JSONBody, PathParameter
from msgspec import Meta, Struct

from ..commands import queues as commands
from ..commands.transact import Receipt
from ..domain import queues
from ..domain.kernel import NotFound
from ..domain.kinds import KINDS
from ..domain.queues import Queue
from ..projections import queues as projection
from ..projections.queues import QueueFigures
from .auth import takes
from .manners import AfterVersion, Asks, At, Limit, Listing, Parts, Reads, Versions, decided, found, now
from .nouns import History, history_of

KindName = Annotated[str, PathParameter(min_length=1, max_length=64, description="A kind of jobs.")]


class PauseAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    reason: for whoever wonders why nothing starts.
    """

    reason: Annotated[str, Meta(max_length=queues.REASON_CHARS_MAX)] = ""


class QueueLimitsAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """Both limits; null, or nothing said: no limit.

    Attributes:
        running_max: how many attempts run at once, of those that start from now on.
        starts_per_minute_max: how many attempts start within one minute of the clock.
    """

    running_max: Annotated[int, Meta(ge=1, le=queues.RUNNING_MAX)] | None = None
    starts_per_minute_max: Annotated[int, Meta(ge=1, le=queues.STARTS_PER_MINUTE_MAX)] | None = None


class QueueView(Struct, frozen=True, kw_only=True):
    """What was said of a kind's queue; figures are in GET.

    Attributes:
        running_max, starts_per_minute_max: null: no limit.
    """

    kind: str
    paused: bool
    reason: str
    paused_at: datetime | None
    running_max: int | None
    starts_per_minute_max: int | None
    version: int


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise NotFound("no such kind")
    return kind


def _answer(kind: str, receipt: Receipt[Queue]) -> Response[QueueView]:
    queue = receipt.state
    view = QueueView(
        kind=kind,
        paused=queue.paused,
        reason=queue.reason,
        paused_at=queue.paused_at,
        running_max=queue.running_max,
        starts_per_minute_max=queue.starts_per_minute_max,
        version=receipt.version,
    )
    return decided(receipt, view)


class QueueController(Controller):
    path = "/v1/queues"
    opt = takes("queues:read")
    tags = ("queues",)

    @get("/", summary="How the jobs of every kind fare")
    async def page(self, reads: Reads) -> Response[Listing[QueueFigures]]:
        page = await projection.figures(reads, kinds=sorted(KINDS), now=now())
        return found(Listing(page.rows), page.position)

    @get("/{kind:str}", summary="How the jobs of one kind fare")
    async def one(self, reads: Reads, kind: KindName) -> Response[QueueFigures]:
        page = await projection.figures(reads, kinds=[_known(kind)], now=now())
        return found(page.rows[0], page.position, version=page.rows[0].version)

    @get("/{kind:str}/history", summary="When it was paused, and how its limits changed")
    async def history(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        kind: KindName,
        at: At = None,
        after: AfterVersion = "0",
        limit: Limit = 100,
    ) -> Response[History]:
        stream_id = queues.queue_id(kind)
        return await history_of(request, services, queues.AGGREGATE, stream_id, at=at, after=after, limit=limit)

    @post("/{kind:str}/pause", status_code=200, summary="Start no job of a kind", access="queues:write")
    async def pause(
        self,
        services: Parts,
        caller: Asks,
        versions: Versions,
        kind: KindName,
        data: JSONBody[PauseAsked | None] = None,
    ) -> Response[QueueView]:
        """None starts once this is answered. Those that run go on: it is drained when `running` is 0. Jobs may be
        submitted meanwhile.
        """
        command = commands.PauseQueue(kind=_known(kind), reason=data.reason if data is not None else "")
        receipt = await services.commands.execute(commands.pause_queue, command, caller, versions=versions)
        return _answer(kind, receipt)

    @post("/{kind:str}/resume", status_code=200, summary="Start jobs of a kind again", access="queues:write")
    async def resume(self, services: Parts, caller: Asks, versions: Versions, kind: KindName) -> Response[QueueView]:
        command = commands.ResumeQueue(kind=_known(kind))
        receipt = await services.commands.execute(commands.resume_queue, command, caller, versions=versions)
        return _answer(kind, receipt)

    @put("/{kind:str}/limits", summary="Set how many jobs of a kind run, and start", access="queues:write")
    async def set_limits(
        self,
        services: Parts,
        caller: Asks,
        versions: Versions,
        kind: KindName,
        data: JSONBody[QueueLimitsAsked],
    ) -> Response[QueueView]:
        command = commands.SetQueueLimits(
            kind=_known(kind), running_max=data.running_max, starts_per_minute_max=data.starts_per_minute_max
        )
        receipt = await services.commands.execute(commands.set_queue_limits, command, caller, versions=versions)
        return _answer(kind, receipt)
