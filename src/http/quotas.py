"""Quotas at the door: what may be asked for in a day, and what was."""

from datetime import date, datetime, time, timedelta
from typing import Annotated, Any

from litestar import Controller, Request, Response, get, put
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import Meta, Struct

from ..commands import quotas as commands
from ..domain import quotas
from ..domain.access import require_own
from ..domain.quotas import Limits
from ..projections import quotas as projection
from ..projections.quotas import UsageRow
from .auth import admitted, takes
from .manners import (
    PAGE_ROWS_DEFAULT,
    AfterVersion,
    Asks,
    At,
    Limit,
    Listing,
    Owner,
    Parts,
    Reads,
    Versions,
    decided,
    found,
    listed,
    now,
)
from .nouns import History, history_of

PER_DAY = Meta(ge=0, le=quotas.AMOUNT_MAX // 1000)

Name = Annotated[
    str, PathParameter(min_length=1, max_length=quotas.PRINCIPAL_CHARS_MAX, description="An actor, as events name it.")
]
AfterName = Annotated[
    str | None,
    QueryParameter(
        max_length=quotas.PRINCIPAL_CHARS_MAX, description="The cursor that the page before gave as `next`."
    ),
]


class LimitsAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """All of a principal's limits; null, or nothing said: no limit."""

    jobs_per_day: Annotated[int, PER_DAY] | None = None
    bytes_per_day: Annotated[int, PER_DAY] | None = None
    compute_s_per_day: Annotated[int, PER_DAY] | None = None


class QuotaView(Struct, frozen=True, kw_only=True):
    """What a principal may ask for in a day, and has asked for today.

    Attributes:
        jobs_per_day, bytes_per_day, compute_s_per_day: null: no limit.
        day: today, UTC.
        jobs, bytes, compute_s: counted today; of a principal without any limit nothing is counted.
        resets_at: when another day begins.
    """

    principal: str
    jobs_per_day: int | None
    bytes_per_day: int | None
    compute_s_per_day: int | None
    day: date
    jobs: int
    bytes: int
    compute_s: float
    resets_at: datetime
    version: int


def _view(row: UsageRow, moment: datetime) -> QuotaView:
    return QuotaView(
        principal=row.principal,
        jobs_per_day=row.jobs_per_day,
        bytes_per_day=row.bytes_per_day,
        compute_s_per_day=row.compute_s_per_day,
        day=moment.date(),
        jobs=row.jobs,
        bytes=row.size_bytes,
        compute_s=row.compute_ms / 1000,
        resets_at=datetime.combine(moment.date() + timedelta(days=1), time(), moment.tzinfo),
        version=row.version,
    )


def _require_own(request: Request[Any, Any, Any], principal: str) -> None:
    grant = admitted(request).grant
    if grant is not None:
        actor = admitted(request).principal.actor
        require_own(grant.reach, owner=principal, actor=actor, permission=grant.permission)


async def _used(reads: Reads, principal: str, moment: datetime) -> tuple[UsageRow, int]:
    page = await projection.usage(reads, day=moment.date(), principal=principal)
    return (page.rows or [UsageRow(principal, None, None, None, 0, 0, 0, 0)])[0], page.position


class QuotaController(Controller):
    path = "/v1/quotas"
    opt = takes("quotas:read")
    tags = ("quotas",)

    @get("/", summary="Quotas, by principal; where only one's own may be seen, that one")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        after: AfterName = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[QuotaView]]:
        moment = now()
        if owner is not None:
            row, position = await _used(reads, owner, moment)
            return listed(request, [_view(row, moment)], position, limit=limit + 1, cursor=None)
        page = await projection.usage(reads, day=moment.date(), after=after, limit=limit)
        items = [_view(row, moment) for row in page.rows]
        cursor = items[-1].principal if items else None
        return listed(request, items, page.position, limit=limit, cursor=cursor)

    @get("/{principal:str}", summary="One principal's quota, and what it has used today")
    async def one(self, request: Request[Any, Any, Any], reads: Reads, principal: Name) -> Response[QuotaView]:
        _require_own(request, principal)
        moment = now()
        row, position = await _used(reads, principal, moment)
        return found(_view(row, moment), position, version=row.version)

    @get("/{principal:str}/history", summary="How the limits changed")
    async def history(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        principal: Name,
        at: At = None,
        after: AfterVersion = "0",
        limit: Limit = 100,
    ) -> Response[History]:
        _require_own(request, principal)
        stream_id = quotas.limits_id(principal)
        return await history_of(request, services, quotas.AGGREGATE, stream_id, at=at, after=after, limit=limit)

    @put("/{principal:str}", summary="Set a principal's limits, all of them", access="quotas:write")
    async def set_limits(
        self,
        services: Parts,
        reads: Reads,
        caller: Asks,
        versions: Versions,
        principal: Name,
        data: JSONBody[LimitsAsked],
    ) -> Response[QuotaView]:
        """They hold from the next request on, for what was counted today too."""
        limits = Limits(data.jobs_per_day, data.bytes_per_day, data.compute_s_per_day)
        command = commands.SetQuotaLimit(principal=principal, limits=limits)
        receipt = await services.commands.execute(commands.set_quota_limit, command, caller, versions=versions)
        row, _ = await _used(reads, principal, caller.now)
        said = receipt.state.limits or Limits()
        row = UsageRow(
            principal,
            said.jobs_per_day,
            said.bytes_per_day,
            said.compute_s_per_day,
            receipt.version,
            row.jobs,
            row.size_bytes,
            row.compute_ms,
        )
        return decided(receipt, _view(row, caller.now))
