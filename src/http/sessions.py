"""Editing sessions at the door. What depends on the time of asking is worked out when asked."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from ..adapters.ids import uuid7
from ..commands import sessions as commands
from ..commands.transact import Receipt
from ..domain import sessions
from ..domain.kernel import Aggregate, NotFound
from ..domain.sessions import Session
from ..projections import sessions as projection
from .auth import takes
from .manners import (
    PAGE_ROWS_DEFAULT,
    After,
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
    shown,
)
from .nouns import NounController, as_of
from .services import Services


class SessionAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """A new session. It lasts 45 minutes from now, not from the last change."""

    user_id: Annotated[str, Meta(min_length=1, max_length=sessions.USER_ID_CHARS_MAX)] | None = None


class AssetNamed(Struct, frozen=True, forbid_unknown_fields=True):
    asset_id: UUID


class SessionView(Struct, frozen=True, kw_only=True):
    """A time in which somebody may change things.

    Attributes:
        user_id: null also where the person was erased.
        status: as of the answer's Date: expired from `expires_at` on.
        remaining_seconds: whole seconds in which writes are still taken.
    """

    id: UUID
    owner: str
    user_id: str | None
    status: sessions.Status
    created_at: datetime
    expires_at: datetime
    last_activity_at: datetime
    remaining_seconds: int
    asset_ids: list[UUID]
    version: int


def _view(session_id: UUID, session: Session, version: int, moment: datetime, user_id: str | None) -> SessionView:
    return shown(
        SessionView,
        session,
        id=session_id,
        version=version,
        user_id=user_id,
        status=sessions.status_at(session, moment),
        remaining_seconds=sessions.remaining_seconds(session, moment),
    )


async def _views(services: Services, rows: Sequence[projection.SessionRow], moment: datetime) -> list[SessionView]:
    user_ids = await services.vault.open_many(commands.USER_ID, [row.user_id for row in rows])
    return [
        _view(row.session_id, shown(Session, row), row.version, moment, user_id)
        for row, user_id in zip(rows, user_ids, strict=True)
    ]


async def _answer(
    services: Services, receipt: Receipt[Session], moment: datetime, *, status_code: int = 200
) -> Response[SessionView]:
    user_id = await services.vault.open_one(commands.USER_ID, receipt.state.user_id)
    body = _view(receipt.stream_id, receipt.state, receipt.version, moment, user_id)
    return decided(receipt, body, status_code=status_code)


class SessionController(NounController):
    path = "/v1/sessions"
    opt = takes("sessions:read", owned=sessions.AGGREGATE)
    tags = ("sessions",)
    aggregate: ClassVar[Aggregate[Any]] = sessions.AGGREGATE

    @post("/", summary="Begin a session", access="sessions:write", limit="sessions")
    async def create(
        self, services: Parts, caller: Asks, data: JSONBody[SessionAsked | None] = None
    ) -> Response[SessionView]:
        command = commands.CreateSession(
            session_id=uuid7(),
            user_id=data.user_id if data is not None else None,
            duration_s=services.settings.session_duration_s,
        )
        receipt = await services.commands.execute(commands.create_session, command, caller)
        return await _answer(services, receipt, caller.now, status_code=201)

    @get("/", summary="Sessions, oldest first")
    async def page(
        self,
        request: Request[Any, Any, Any],
        services: Parts,
        reads: Reads,
        owner: Owner,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[SessionView]]:
        page = await projection.page(reads, owner=owner, after=after, limit=limit)
        items = await _views(services, page.rows, now())
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/{session_id:uuid}", summary="One session, now or then")
    async def one(
        self, services: Parts, reads: Reads, session_id: FromPath[UUID], at: At = None
    ) -> Response[SessionView]:
        if at is not None:
            then = await as_of(services, sessions.AGGREGATE, session_id, at)
            user_id = await services.vault.open_one(commands.USER_ID, then.state.user_id)
            body = _view(session_id, then.state, then.version, then.events[-1].recorded_at, user_id)
            return found(body, then.position, version=then.version)
        row, position = await reads.get(projection.SESSIONS, session_id)
        if row is None:
            raise NotFound("no such session")
        [body] = await _views(services, [row], now())
        return found(body, position, version=row.version)

    @post(
        "/{session_id:uuid}/close",
        status_code=200,
        summary="Close a session for good",
        access="sessions:write",
        refuses=(410,),
    )
    async def close(
        self, services: Parts, caller: Asks, versions: Versions, session_id: FromPath[UUID]
    ) -> Response[SessionView]:
        command = commands.CloseSession(session_id=session_id)
        receipt = await services.commands.execute(commands.close_session, command, caller, versions=versions)
        return await _answer(services, receipt, caller.now)

    @post(
        "/{session_id:uuid}/assets",
        status_code=200,
        summary="Attach a clean asset",
        access="sessions:write",
        refuses=(410,),
    )
    async def attach(
        self, services: Parts, caller: Asks, versions: Versions, session_id: FromPath[UUID], data: JSONBody[AssetNamed]
    ) -> Response[SessionView]:
        command = commands.AttachAsset(session_id=session_id, asset_id=data.asset_id)
        receipt = await services.commands.execute(commands.attach_asset, command, caller, versions=versions)
        return await _answer(services, receipt, caller.now)
