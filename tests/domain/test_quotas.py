"""Quotas: for each rule what it yields, what it refuses, and when it is silent."""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest
from tests.spec import given

from sightline.domain import quotas
from sightline.domain.kernel import Invalid
from sightline.domain.quotas import Amounts, Limits, Quota, QuotaLimitSet, QuotaReleased, QuotaReserved

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
JOB = UUID(int=1)
LIMITS = Limits(jobs_per_day=20, bytes_per_day=None, compute_s_per_day=60)
LIMITED = QuotaLimitSet(at=NOON, principal="ada", jobs_per_day=20, bytes_per_day=None, compute_s_per_day=60, by="root")
RESERVED = QuotaReserved(at=NOON, principal="ada", day=date(2026, 3, 1), reserved_for=JOB, jobs=1, compute_ms=1)
RELEASED = QuotaReleased(at=NOON, by="ada")


def quota(*events: quotas.Event) -> given[Quota]:
    return given(quotas.AGGREGATE, *events)


def test_limits_are_set_whole() -> None:
    state = quota().when(quotas.set_limits, principal="ada", limits=LIMITS, by="root", now=NOON).then(LIMITED)
    assert state == Quota("ada", LIMITS)
    quota(LIMITED).when(quotas.set_limits, principal="ada", limits=LIMITS, by="bob", now=NOON).then()


@pytest.mark.parametrize("limits", [Limits(jobs_per_day=-1), Limits(bytes_per_day=2**60)], ids=str)
def test_limits_are_numbers_that_can_be_counted_to(limits: Limits) -> None:
    quota().when(quotas.set_limits, principal="ada", limits=limits, by="root", now=NOON).refused(Invalid)


@pytest.mark.parametrize("principal", ["", "a" * 201])
def test_limits_are_of_somebody(principal: str) -> None:
    quota().when(quotas.set_limits, principal=principal, limits=LIMITS, by="root", now=NOON).refused(Invalid)


def test_a_reservation_is_for_the_day_of_its_decision_in_utc() -> None:
    amounts = Amounts(jobs=1, compute_ms=1)
    quota().when(quotas.reserve, principal="ada", reserved_for=JOB, amounts=amounts, now=NOON).then(RESERVED)
    late = datetime(2026, 3, 1, 23, 59, 59, 999_999, tzinfo=UTC)
    assert quotas.reserve(Quota(), principal="ada", reserved_for=JOB, amounts=amounts, now=late)[0].day == RESERVED.day  # type: ignore[union-attr]  # it is one


def test_nothing_negative_is_reserved() -> None:
    wanted = Amounts(size_bytes=-1)
    quota().when(quotas.reserve, principal="ada", reserved_for=JOB, amounts=wanted, now=NOON).refused(Invalid)


def test_what_is_held_is_released_once() -> None:
    assert not quota(RESERVED).when(quotas.release, by="ada", now=NOON).then(RELEASED).held
    quota(RESERVED, RELEASED).when(quotas.release, by="ada", now=NOON).then()
    quota().when(quotas.release, by="ada", now=NOON).then()


def test_a_released_reservation_is_not_made_again() -> None:
    again = quota(RESERVED, RELEASED).when(
        quotas.reserve, principal="ada", reserved_for=JOB, amounts=Amounts(jobs=1), now=NOON
    )
    again.then()


def test_limits_are_in_the_unit_of_what_they_limit() -> None:
    limits = Limits(jobs_per_day=3, bytes_per_day=4, compute_s_per_day=5)
    assert [limits.of(one) for one in quotas.RESOURCES] == [3, 4, 5_000]
    assert [Limits().of(one) for one in quotas.RESOURCES] == [None] * 3


@pytest.mark.parametrize(
    ("before", "seconds"),
    [(timedelta(hours=12), 12 * 3600), (timedelta(microseconds=1), 1), (timedelta(days=1), 86_400)],
)
def test_a_day_ends_at_midnight(before: timedelta, seconds: int) -> None:
    assert quotas.day_ends_in_s(datetime(2026, 3, 2, tzinfo=UTC) - before) == seconds


def test_streams_are_apart() -> None:
    ids = {quotas.limits_id("ada"), quotas.limits_id("ada/1"), quotas.reserved_id(JOB), quotas.reserved_id(JOB, 1)}
    assert len(ids) == 4
