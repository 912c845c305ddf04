"""An editing session: a fixed time in which somebody may change things, counted from its creation.

active → expired → closed, active → closed. Coming back (expired → active) is a later event under a new `epoch`.
"""

from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .kernel import Aggregate, Invalid, InvalidState, NotFound, Rejection, require_within
from .sealed import Sealed

DURATION_S_DEFAULT = 45 * 60
DURATION_S_MAX = 24 * 3600
ASSETS_MAX = 100
USER_ID_CHARS_MAX = 200

Status = Literal["active", "expired", "closed"]


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default, and any
# other change is a new generation: see upcasts.py.


class SessionCreated(Struct, frozen=True, kw_only=True, tag="session.created.2"):
    at: datetime
    owner: str
    user_id: Sealed | None
    expires_at: datetime


class AssetAttached(Struct, frozen=True, kw_only=True, tag="session.asset_attached"):
    at: datetime
    asset_id: UUID


class SessionExpired(Struct, frozen=True, kw_only=True, tag="session.expired"):
    at: datetime


class SessionClosed(Struct, frozen=True, kw_only=True, tag="session.closed"):
    at: datetime
    by: str


Event = SessionCreated | AssetAttached | SessionExpired | SessionClosed


# State


class Session(Struct, frozen=True):
    """A session as its events tell it. `status` is what was said; what holds now is status_at()."""

    status: Status | None = None
    owner: str = ""
    user_id: Sealed | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_activity_at: datetime | None = None
    asset_ids: tuple[UUID, ...] = ()


# Rejections


class SessionIsExpired(Rejection):
    code = "session_expired"


def evolve(session: Session, event: Event) -> Session:
    match event:
        case SessionCreated(at=at, owner=owner, user_id=user_id, expires_at=expires_at):
            return Session("active", owner, user_id, created_at=at, expires_at=expires_at, last_activity_at=at)
        case AssetAttached(at=at, asset_id=asset_id):
            return replace(session, asset_ids=(*session.asset_ids, asset_id), last_activity_at=at)
        case SessionExpired():
            return replace(session, status="expired")
        case SessionClosed(at=at):
            return replace(session, status="closed", last_activity_at=at)


AGGREGATE = Aggregate("session", Session(), evolve, owner=lambda session: session.owner)


# Decisions


def create(
    session: Session, *, owner: str, now: datetime, user_id: Sealed | None = None, duration_s: int = DURATION_S_DEFAULT
) -> list[Event]:
    """Begin it. `user_id` was asked of require_user_id() before it was sealed."""
    if session.status is not None:
        return []  # A retried request is not a second session.
    require_within("duration_s", duration_s, 1, DURATION_S_MAX)
    expires_at = now + timedelta(seconds=duration_s)
    return [SessionCreated(at=now, owner=owner, user_id=user_id, expires_at=expires_at)]


def attach_asset(session: Session, *, asset_id: UUID, now: datetime) -> list[Event]:
    require_active(session, now)
    if asset_id in session.asset_ids:
        return []
    if len(session.asset_ids) >= ASSETS_MAX:
        raise Invalid(f"a session holds at most {ASSETS_MAX} assets")
    return [AssetAttached(at=now, asset_id=asset_id)]


def expire(session: Session, *, now: datetime) -> list[Event]:
    """The clock asks often; most of the time there is nothing to say."""
    if status_at(session, now) != "expired" or session.status == "expired":
        return []
    return [SessionExpired(at=now)]


def close(session: Session, *, by: str, now: datetime) -> list[Event]:
    """Close for good, an expired session too."""
    if status_at(session, now) == "closed":
        return []
    return [SessionClosed(at=now, by=by)]


# Questions


def require_user_id(user_id: str) -> str:
    """`user_id`, if it can be one.

    Raises:
        Invalid: it cannot.
    """
    require_within("the length of user_id", len(user_id), 1, USER_ID_CHARS_MAX)
    return user_id


def require_active(session: Session, now: datetime) -> None:
    """Whether something may still be changed; asked by every write in a session, jobs and edits included.

    Raises:
        NotFound: there is no such session.
        SessionIsExpired: its time is over, whether or not the clock has said so already.
        InvalidState: it was closed.
    """
    status = status_at(session, now)
    if status == "expired":
        raise SessionIsExpired(f"the session expired at {session.expires_at:%Y-%m-%dT%H:%M:%SZ}")
    if status == "closed":
        raise InvalidState("the session is closed")


def status_at(session: Session, now: datetime) -> Status:
    """What a reader is told: expired from `expires_at` on, even before SessionExpired is in the log.

    Raises:
        NotFound: there is no such session.
    """
    if session.status is None or session.expires_at is None:
        raise NotFound("no such session")
    if session.status == "active" and now >= session.expires_at:
        return "expired"
    return session.status


def remaining_seconds(session: Session, now: datetime) -> int:
    """Whole seconds in which writes are still taken, never negative.

    Raises:
        NotFound: there is no such session.
    """
    if status_at(session, now) != "active" or session.expires_at is None:
        return 0
    return int((session.expires_at - now).total_seconds())
