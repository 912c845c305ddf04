"""Batches: for each rule what it yields, what it refuses, and when it is silent."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from tests.spec import given

from sightline.adapters.ids import uuid7
from sightline.domain import batches
from sightline.domain.batches import (
    JOBS_MAX,
    Batch,
    BatchCancelled,
    BatchCompleted,
    BatchSubmitted,
    Counts,
    is_cancelling,
    job_id,
    number_of,
    status_of,
)
from sightline.domain.kernel import Invalid, InvalidState, NotFound

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SUBMITTED = BatchSubmitted(at=NOON, owner="ada", kind="noop", total=10)
CANCELLED = BatchCancelled(at=NOON, by="ada")
COMPLETED = BatchCompleted(at=NOON, total=10, completed=7, failed=2, cancelled=1, dead_letters=1)
ENDED = Counts(completed=7, failed=2, dead_letters=1, cancelled=1)


def batch(*events: batches.Event) -> given[Batch]:
    return given(batches.AGGREGATE, *events)


def test_a_batch_is_submitted_once() -> None:
    state = batch().when(batches.submit, owner="ada", kind="noop", total=10, now=NOON).then(SUBMITTED)
    assert batches.AGGREGATE.owner is not None
    assert batches.AGGREGATE.owner(state) == "ada"
    batch(SUBMITTED).when(batches.submit, owner="ada", kind="noop", total=11, now=NOON).then()


@pytest.mark.parametrize("total", [0, JOBS_MAX + 1])
def test_a_batch_has_jobs_and_a_limit(total: int) -> None:
    batch().when(batches.submit, owner="ada", kind="noop", total=total, now=NOON).refused(Invalid)


def test_what_is_over_is_not_cancelled() -> None:
    state = batch(SUBMITTED).when(batches.cancel, by="ada", now=NOON).then(CANCELLED)
    assert is_cancelling(state)
    batch(SUBMITTED, CANCELLED).when(batches.cancel, by="bob", now=NOON).then()
    batch(SUBMITTED, COMPLETED).when(batches.cancel, by="ada", now=NOON).refused(InvalidState)
    batch(SUBMITTED, CANCELLED, COMPLETED).when(batches.cancel, by="ada", now=NOON).then()
    batch().when(batches.cancel, by="ada", now=NOON).refused(NotFound)


def test_the_end_is_said_once_and_not_before_every_job_has_ended() -> None:
    state = batch(SUBMITTED).when(batches.complete, counts=ENDED, now=NOON).then(COMPLETED)
    assert state.outcome == COMPLETED
    batch(SUBMITTED, COMPLETED).when(batches.complete, counts=Counts(completed=10), now=NOON).then()
    for counts in (Counts(), Counts(completed=9), Counts(completed=9, pending=1), Counts(completed=9, processing=1)):
        batch(SUBMITTED).when(batches.complete, counts=counts, now=NOON).then()
    batch().when(batches.complete, counts=ENDED, now=NOON).refused(NotFound)
    assert not is_cancelling(batch(SUBMITTED, CANCELLED, COMPLETED).state), "what is requeued afterwards may run"


@pytest.mark.parametrize(
    ("counts", "cancelled", "over", "status"),
    [
        (Counts(pending=10), False, False, "pending"),
        (Counts(pending=4), False, False, "pending"),  # its other jobs are not projected yet
        (Counts(pending=9, processing=1), False, False, "processing"),
        (Counts(pending=9, failed=1), False, False, "processing"),
        (Counts(completed=9), False, False, "processing"),
        (Counts(pending=1, cancelled=9), True, False, "cancelling"),
        (Counts(cancelled=10), True, False, "cancelled"),
        (Counts(completed=10), True, True, "cancelled"),
        (Counts(completed=5, deleted=3, expired=1, failed=1), False, True, "completed"),
        (Counts(completed=9, pending=1), False, True, "processing"),  # requeued
        (Counts(cancelled=9, pending=1), True, True, "processing"),
    ],
)
def test_a_batch_in_a_word(counts: Counts, cancelled: bool, over: bool, status: str) -> None:
    assert status_of(counts, total=10, cancelled=cancelled, over=over) == status


def test_ids_of_jobs_follow_from_the_batch_and_sort_as_they_were_given() -> None:
    batch_id, other = uuid7(), uuid7()
    ids = [job_id(batch_id, number) for number in range(1, JOBS_MAX + 1)]
    assert ids == sorted(ids) == [job_id(batch_id, number) for number in range(1, JOBS_MAX + 1)]
    assert [number_of(one) for one in ids] == list(range(1, JOBS_MAX + 1))
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert not set(ids) & {job_id(other, number) for number in range(1, JOBS_MAX + 1)}
    assert {one.int >> 80 for one in ids} == {batch_id.int >> 80}, "as old as their batch"
    earlier = UUID(int=batch_id.int - (1 << 80))
    assert job_id(earlier, JOBS_MAX) < ids[0]


@pytest.mark.parametrize("number", [0, 2**batches.NUMBER_BITS])
def test_a_number_that_would_not_fit(number: int) -> None:
    with pytest.raises(Invalid):
        job_id(uuid7(), number)
