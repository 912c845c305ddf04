from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.spec import given

from sightline.domain.kernel import Invalid, InvalidState, NotFound
from sightline.domain.sealed import Sealed
from sightline.domain.sessions import (
    AGGREGATE,
    ASSETS_MAX,
    AssetAttached,
    SessionClosed,
    SessionCreated,
    SessionExpired,
    SessionIsExpired,
    attach_asset,
    close,
    create,
    expire,
    remaining_seconds,
    require_active,
    require_user_id,
    status_at,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = NOON + timedelta(minutes=45)
LAST = END - timedelta(microseconds=1)
ASSET = uuid4()

SEALED = Sealed(UUID(int=7), "AAAA")

CREATED = SessionCreated(at=NOON, owner="ada", user_id=SEALED, expires_at=END)
EXPIRED = SessionExpired(at=END)
CLOSED = SessionClosed(at=NOON, by="ada")


def attached(asset_id: UUID = ASSET) -> AssetAttached:
    return AssetAttached(at=NOON, asset_id=asset_id)


def test_a_session_lasts_45_minutes_from_its_creation() -> None:
    session = given(AGGREGATE).when(create, owner="ada", user_id=SEALED, now=NOON).then(CREATED)
    assert status_at(session, LAST) == "active"
    assert status_at(session, END) == "expired"
    assert session.status == "active"  # Nobody has said so yet, and it holds all the same.


def test_writing_does_not_make_it_longer() -> None:
    late = AssetAttached(at=LAST, asset_id=ASSET)
    session = given(AGGREGATE, CREATED).when(attach_asset, asset_id=ASSET, now=LAST).then(late)
    assert (session.expires_at, session.last_activity_at) == (END, LAST)


@pytest.mark.parametrize("changed", [{"duration_s": 0}, {"duration_s": 86_401}])
def test_a_session_is_refused(changed: dict[str, Any]) -> None:
    given(AGGREGATE).when(create, owner="ada", now=NOON, **changed).refused(Invalid)


@pytest.mark.parametrize("user_id", ["", "u" * 201])
def test_a_user_id_has_its_length_before_it_is_sealed(user_id: str) -> None:
    with pytest.raises(Invalid):
        require_user_id(user_id)
    assert require_user_id("u" * 200) == "u" * 200


def test_remaining_seconds_count_down_to_zero_and_stay_there() -> None:
    session = AGGREGATE.fold(AGGREGATE.initial, [CREATED])
    assert [remaining_seconds(session, at) for at in (NOON, LAST, END, END + timedelta(days=9))] == [2700, 0, 0, 0]
    assert remaining_seconds(AGGREGATE.evolve(session, CLOSED), NOON) == 0


def test_an_asset_is_attached_once() -> None:
    given(AGGREGATE, CREATED).when(attach_asset, asset_id=ASSET, now=NOON).then(attached())
    given(AGGREGATE, CREATED, attached()).when(attach_asset, asset_id=ASSET, now=NOON).then()


def test_a_session_holds_so_many_assets_and_no_more() -> None:
    full = [attached(UUID(int=n)) for n in range(ASSETS_MAX)]
    given(AGGREGATE, CREATED, *full[1:]).when(attach_asset, asset_id=ASSET, now=NOON).then(attached())
    given(AGGREGATE, CREATED, *full).when(attach_asset, asset_id=ASSET, now=NOON).refused(Invalid)


def test_nothing_is_written_after_its_time() -> None:
    before_it_was_said = given(AGGREGATE, CREATED).when(attach_asset, asset_id=ASSET, now=END).refused(SessionIsExpired)
    assert before_it_was_said.code == "session_expired"
    given(AGGREGATE, CREATED, EXPIRED).when(attach_asset, asset_id=ASSET, now=NOON).refused(SessionIsExpired)
    given(AGGREGATE, CREATED, CLOSED).when(attach_asset, asset_id=ASSET, now=NOON).refused(InvalidState)
    given(AGGREGATE).when(attach_asset, asset_id=ASSET, now=NOON).refused(NotFound)


def test_the_clock_expires_it_once_and_not_too_early() -> None:
    given(AGGREGATE, CREATED).when(expire, now=LAST).then()
    assert given(AGGREGATE, CREATED).when(expire, now=END).then(EXPIRED).status == "expired"
    given(AGGREGATE, CREATED, EXPIRED).when(expire, now=END).then()
    given(AGGREGATE, CREATED, CLOSED).when(expire, now=END).then()
    given(AGGREGATE).when(expire, now=END).refused(NotFound)


def test_it_is_closed_for_good_expired_or_not() -> None:
    given(AGGREGATE, CREATED).when(close, by="ada", now=NOON).then(CLOSED)
    later = SessionClosed(at=END, by="ada")
    given(AGGREGATE, CREATED).when(close, by="ada", now=END).then(later)
    assert given(AGGREGATE, CREATED, EXPIRED).when(close, by="ada", now=END).then(later).status == "closed"
    given(AGGREGATE).when(close, by="ada", now=NOON).refused(NotFound)


def test_an_active_session_is_what_a_write_requires() -> None:
    session = AGGREGATE.fold(AGGREGATE.initial, [CREATED])
    require_active(session, LAST)
    with pytest.raises(SessionIsExpired, match="expired at 2026-03-01T12:45:00Z"):
        require_active(session, END)
    with pytest.raises(NotFound):
        require_active(AGGREGATE.initial, NOON)
