"""The roster: whoever comes and goes, one stays."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from tests.spec import given

from sightline.domain import administrators
from sightline.domain.administrators import AGGREGATE, AdministratorEntered, AdministratorLeft, LastAdministrator
from sightline.domain.kernel import Invalid

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADA, BOB = UUID(int=1), UUID(int=2)
ADA_IN, BOB_IN = (AdministratorEntered(at=NOON, user_id=one, by="x") for one in (ADA, BOB))


def test_the_last_one_stays() -> None:
    given(AGGREGATE).when(administrators.enter, member=ADA, by="x", now=NOON).then(ADA_IN)
    alone = given(AGGREGATE, ADA_IN)
    assert alone.when(administrators.leave, member=ADA, by="x", now=NOON).refused(LastAdministrator).code == (
        "last_administrator"
    )
    left = AdministratorLeft(at=NOON, user_id=ADA, by="x")
    state = given(AGGREGATE, ADA_IN, BOB_IN).when(administrators.leave, member=ADA, by="x", now=NOON).then(left)
    assert state.user_ids == {BOB}


def test_coming_twice_and_going_without_having_come_is_silent() -> None:
    given(AGGREGATE, ADA_IN).when(administrators.enter, member=ADA, by="x", now=NOON).then()
    given(AGGREGATE, ADA_IN).when(administrators.leave, member=BOB, by="x", now=NOON).then()


def test_the_roster_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administrators, "ADMINISTRATORS_MAX", 1)
    given(AGGREGATE, ADA_IN).when(administrators.enter, member=BOB, by="x", now=NOON).refused(Invalid)
