"""A user: who may ask, in which role, and since when what was handed out to him counts no more.

active → deactivated, for good. Every credential carries the generation that it was made in; logging out everywhere,
another role, another password and deactivation each begin a new one, which ends all that were made before.
"""

import unicodedata
from datetime import datetime
from typing import Literal
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .access import NotAuthenticated, Role
from .kernel import Aggregate, Invalid, InvalidState, NotFound, require_within
from .sealed import Sealed

FULL_NAME_CHARS_MAX = 200
PASSWORD_CHARS_MIN = 12
PASSWORD_CHARS_MAX = 1_024

Status = Literal["active", "deactivated"]


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default, and any
# other change is a new generation: see upcasts.py.


class UserRegistered(Struct, frozen=True, kw_only=True, tag="user.registered"):
    """All that is sealed is sealed under the person, the hash of the password too: erased, nobody can log in."""

    at: datetime
    email: Sealed
    full_name: Sealed
    role: Role
    password: Sealed
    by: str


class RoleChanged(Struct, frozen=True, kw_only=True, tag="user.role_changed"):
    at: datetime
    role: Role
    by: str


class PasswordSet(Struct, frozen=True, kw_only=True, tag="user.password_set"):
    at: datetime
    password: Sealed
    by: str


class LoginRecorded(Struct, frozen=True, kw_only=True, tag="user.login_recorded"):
    at: datetime


class TokensRevoked(Struct, frozen=True, kw_only=True, tag="user.tokens_revoked"):
    at: datetime
    by: str


class UserDeactivated(Struct, frozen=True, kw_only=True, tag="user.deactivated"):
    at: datetime
    by: str


Event = UserRegistered | RoleChanged | PasswordSet | LoginRecorded | TokensRevoked | UserDeactivated


# State


class User(Struct, frozen=True):
    """A user as the events tell it.

    Attributes:
        generation: of the credentials that are good; from 1.
        password: the sealed hash, never the password.
    """

    status: Status | None = None
    email: Sealed | None = None
    full_name: Sealed | None = None
    role: Role = Role.VIEWER
    password: Sealed | None = None
    generation: int = 0
    created_at: datetime | None = None
    last_login_at: datetime | None = None


def evolve(user: User, event: Event) -> User:
    match event:
        case UserRegistered(at=at, email=email, full_name=full_name, role=role, password=password):
            return User("active", email, full_name, role, password, generation=1, created_at=at)
        case RoleChanged(role=role):
            return replace(user, role=role, generation=user.generation + 1)
        case PasswordSet(password=password):
            return replace(user, password=password, generation=user.generation + 1)
        case LoginRecorded(at=at):
            return replace(user, last_login_at=at)
        case TokensRevoked():
            return replace(user, generation=user.generation + 1)
        case UserDeactivated():
            return replace(user, status="deactivated", generation=user.generation + 1)


AGGREGATE = Aggregate("user", User(), evolve)


# Decisions


def register(
    user: User, *, email: Sealed, full_name: Sealed, role: Role, password: Sealed, by: str, now: datetime
) -> list[Event]:
    """Begin it. What is sealed was asked of emails.normalised(), require_full_name() and require_password() before."""
    if user.status is not None:
        return []  # A retried request is not a second user.
    return [UserRegistered(at=now, email=email, full_name=full_name, role=role, password=password, by=by)]


def change_role(user: User, *, role: Role, by: str, now: datetime) -> list[Event]:
    require_active(user)
    if user.role == role:
        return []
    return [RoleChanged(at=now, role=role, by=by)]


def set_password(user: User, *, password: Sealed, by: str, now: datetime) -> list[Event]:
    require_active(user)
    if user.password == password:
        return []
    return [PasswordSet(at=now, password=password, by=by)]


def record_login(user: User, *, now: datetime) -> list[Event]:
    require_active(user)
    if user.last_login_at is not None and user.last_login_at >= now:
        return []
    return [LoginRecorded(at=now)]


def revoke_tokens(user: User, *, generation: int, by: str, now: datetime) -> list[Event]:
    """Log out everywhere. Naming the generation that ends makes two requests one logout."""
    require_active(user)
    if user.generation != generation:
        return []
    return [TokensRevoked(at=now, by=by)]


def deactivate(user: User, *, by: str, now: datetime) -> list[Event]:
    require_known(user)
    if user.status == "deactivated":
        return []
    return [UserDeactivated(at=now, by=by)]


# Questions


def actor_of(user_id: UUID) -> str:
    """The name under which a user acts, and under which things are his."""
    return f"user:{user_id}"


def require_known(user: User) -> None:
    """Raises: NotFound: there is no such user."""
    if user.status is None:
        raise NotFound("no such user")


def require_active(user: User) -> None:
    """
    Raises:
        NotFound: there is no such user.
        InvalidState: he was deactivated.
    """
    require_known(user)
    if user.status != "active":
        raise InvalidState("the user is deactivated")


def require_live(user: User, generation: int) -> None:
    """Whether what was handed out in `generation` is still good.

    Raises:
        NotAuthenticated: it is not.
    """
    if user.status != "active" or user.generation != generation:
        raise NotAuthenticated("the token is no longer good: log in again")


def require_full_name(full_name: str) -> str:
    """`full_name` without blanks around it, if it can be one.

    Raises:
        Invalid: it cannot.
    """
    name = full_name.strip()
    require_within("the length of full_name", len(name), 1, FULL_NAME_CHARS_MAX)
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in name):
        raise Invalid("full_name holds a control character")
    return name


def require_password(password: str, *, email: str) -> str:
    """`password` in the form that is hashed (NFKC, as keyboards differ), if it may be one.

    Raises:
        Invalid: it may not; the words never hold it.
    """
    normal = unicodedata.normalize("NFKC", password)
    require_within("the length of the password", len(normal), PASSWORD_CHARS_MIN, PASSWORD_CHARS_MAX)
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in normal):
        raise Invalid("the password holds a control character")
    if normal.casefold().strip() == email.casefold():
        raise Invalid("the password must not be the email")
    return normal
