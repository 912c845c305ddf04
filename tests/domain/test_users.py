"""Users: what each decision says, refuses, and when it is silent; and which credentials outlive it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.spec import given

from sightline.domain import users
from sightline.domain.access import NotAuthenticated, Role
from sightline.domain.kernel import Invalid, InvalidState, NotFound, Rejection
from sightline.domain.sealed import Sealed
from sightline.domain.users import (
    AGGREGATE,
    LoginRecorded,
    PasswordSet,
    RoleChanged,
    TokensRevoked,
    User,
    UserDeactivated,
    UserRegistered,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EMAIL, NAME, HASH, OTHER = (Sealed(UUID(int=8), box) for box in ("mail", "name", "hash", "other"))
REGISTERED = UserRegistered(at=NOON, email=EMAIL, full_name=NAME, role=Role.OPERATOR, password=HASH, by="ada")
GONE = UserDeactivated(at=NOON, by="ada")


def test_a_user_is_registered_once() -> None:
    said = {"email": EMAIL, "full_name": NAME, "role": Role.OPERATOR, "password": HASH, "by": "ada", "now": NOON}
    state = given(AGGREGATE).when(users.register, **said).then(REGISTERED)
    assert (state.status, state.generation, state.created_at) == ("active", 1, NOON)
    given(AGGREGATE, REGISTERED).when(users.register, **said).then()


@pytest.mark.parametrize(
    ("decide", "said", "event"),
    [
        (users.change_role, {"role": Role.ADMIN, "by": "ada"}, RoleChanged(at=NOON, role=Role.ADMIN, by="ada")),
        (users.set_password, {"password": OTHER, "by": "ada"}, PasswordSet(at=NOON, password=OTHER, by="ada")),
        (users.revoke_tokens, {"generation": 1, "by": "ada"}, TokensRevoked(at=NOON, by="ada")),
        (users.deactivate, {"by": "ada"}, GONE),
    ],
)
def test_what_takes_something_away_ends_every_token(
    decide: Callable[..., list[Any]], said: dict[str, Any], event: Any
) -> None:
    state = given(AGGREGATE, REGISTERED).when(decide, **said, now=NOON).then(event)
    assert state.generation == 2
    users.require_live(User("active", generation=1), 1)
    with pytest.raises(NotAuthenticated):
        users.require_live(state, 1)


def test_a_login_ends_nothing() -> None:
    state = given(AGGREGATE, REGISTERED).when(users.record_login, now=NOON).then(LoginRecorded(at=NOON))
    assert (state.generation, state.last_login_at) == (1, NOON)
    earlier = NOON - timedelta(seconds=1)
    given(AGGREGATE, REGISTERED, LoginRecorded(at=NOON)).when(users.record_login, now=earlier).then()


def test_the_same_again_is_silent() -> None:
    user = given(AGGREGATE, REGISTERED)
    user.when(users.change_role, role=Role.OPERATOR, by="ada", now=NOON).then()
    user.when(users.set_password, password=HASH, by="ada", now=NOON).then()
    user.when(users.revoke_tokens, generation=7, by="ada", now=NOON).then()
    given(AGGREGATE, REGISTERED, GONE).when(users.deactivate, by="ada", now=NOON).then()


@pytest.mark.parametrize(("events", "refusal"), [((), NotFound), ((REGISTERED, GONE), InvalidState)])
def test_nothing_is_decided_of_who_is_not_there(events: tuple[Any, ...], refusal: type[Rejection]) -> None:
    user = given(AGGREGATE, *events)
    user.when(users.change_role, role=Role.ADMIN, by="ada", now=NOON).refused(refusal)
    user.when(users.set_password, password=OTHER, by="ada", now=NOON).refused(refusal)
    user.when(users.record_login, now=NOON).refused(refusal)
    user.when(users.revoke_tokens, generation=1, by="ada", now=NOON).refused(refusal)


def test_nobody_is_deactivated_who_never_was() -> None:
    given(AGGREGATE).when(users.deactivate, by="ada", now=NOON).refused(NotFound)


@pytest.mark.parametrize("user", [User(), User("deactivated", generation=1), User("active", generation=2)])
def test_a_token_of_another_time_is_not_live(user: User) -> None:
    with pytest.raises(NotAuthenticated):
        users.require_live(user, 1)


def test_a_name_is_a_line() -> None:
    assert users.require_full_name("  Ada Lovelace ") == "Ada Lovelace"
    for bad in ("", "  ", "a\nb", "a\0", "\udc00", "a\u2028b", "n" * 201):
        with pytest.raises(Invalid):
            users.require_full_name(bad)


def test_a_password_is_long_enough_and_not_the_email() -> None:
    email = "ada.lovelace@example.org"
    assert users.require_password("１２３４５６７８９０１２", email=email) == "123456789012"  # full-width digits
    assert users.require_password("x" * 1024, email=email)
    for bad in ("x" * 11, "x" * 1025, email, email.upper(), f" {email} ", "twelve chars\0", "\udc00" * 12):
        with pytest.raises(Invalid) as refusal:
            users.require_password(bad, email=email)
        assert bad.strip() not in str(refusal.value)
