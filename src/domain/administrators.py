"""The roster of active administrators: one stream, written together with each user who comes or goes, so that the
last one stays whoever else decides at the same time.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from .kernel import Aggregate, Invalid, Rejection, derived_id

ADMINISTRATORS_MAX = 1_000
ROSTER_ID = derived_id("administrators")


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class AdministratorEntered(Struct, frozen=True, kw_only=True, tag="administrators.entered"):
    at: datetime
    user_id: UUID
    by: str


class AdministratorLeft(Struct, frozen=True, kw_only=True, tag="administrators.left"):
    at: datetime
    user_id: UUID
    by: str


Event = AdministratorEntered | AdministratorLeft


# State


class Administrators(Struct, frozen=True):
    user_ids: frozenset[UUID] = frozenset()


# Rejections


class LastAdministrator(Rejection):
    code = "last_administrator"


def evolve(roster: Administrators, event: Event) -> Administrators:
    match event:
        case AdministratorEntered(user_id=user_id):
            return Administrators(roster.user_ids | {user_id})
        case AdministratorLeft(user_id=user_id):
            return Administrators(roster.user_ids - {user_id})


AGGREGATE = Aggregate("administrators", Administrators(), evolve)


# Decisions


def enter(roster: Administrators, *, member: UUID, by: str, now: datetime) -> list[Event]:
    if member in roster.user_ids:
        return []
    if len(roster.user_ids) >= ADMINISTRATORS_MAX:
        raise Invalid(f"there are {ADMINISTRATORS_MAX} administrators already")
    return [AdministratorEntered(at=now, user_id=member, by=by)]


def leave(roster: Administrators, *, member: UUID, by: str, now: datetime) -> list[Event]:
    """
    Raises:
        LastAdministrator: nobody would be left who can make another one.
    """
    if member not in roster.user_ids:
        return []
    if len(roster.user_ids) == 1:
        raise LastAdministrator("this is the last administrator; make another one first")
    return [AdministratorLeft(at=now, user_id=member, by=by)]
