from datetime import timedelta
from typing import Any

import pytest
from tests.domain.job_histories import (
    CANCEL_REQUESTED,
    CANCELLED,
    DEAD,
    DELETED,
    EXPIRED,
    NOON,
    PENDING,
    PROCESSING,
    REQUEUED,
    SECOND,
    TERMINAL,
    WAITING,
    completed,
    failed,
    retry,
    started,
    submitted,
    wish,
)
from tests.spec import given

from sightline.domain.jobs import (
    AGGREGATE,
    Event,
    JobProgressed,
    cancel,
    delete,
    expire,
    is_due,
    is_pending,
    is_terminal,
    requeue,
    submit,
)
from sightline.domain.kernel import Invalid, InvalidState, NotFound

BY_ADA = {"by": "ada", "now": NOON}


def test_a_job_is_submitted_once() -> None:
    job = given(AGGREGATE).when(submit, **wish(), now=NOON).then(submitted())
    assert (job.status, job.attempt, job.attempts_max, job.submitted) == ("pending", 0, 3, submitted())
    given(AGGREGATE, submitted()).when(submit, **wish(kind="noop"), now=NOON).then()
    given(AGGREGATE, submitted(), CANCELLED, DELETED).when(submit, **wish(), now=NOON).then()


@pytest.mark.parametrize(
    "changed",
    [
        {"priority": -1},
        {"priority": 10},
        {"timeout_s": 0},
        {"timeout_s": 86_401},
        {"attempts_max": 0},
        {"attempts_max": 21},
        {"inputs": (NOON,) * 101},
        {"model_sha256": None},
        {"model_version_id": None},
        {"callback_url": "ftp://example.com"},
        {"callback_url": "javascript:alert(1)"},
        {"callback_url": "https://example.com/\0"},
        {"callback_url": "https://example.com/" + "x" * 2000},
    ],
)
def test_a_job_is_refused(changed: dict[str, Any]) -> None:
    given(AGGREGATE).when(submit, **wish(**changed), now=NOON).refused(Invalid)


@pytest.mark.parametrize(
    "changed", [{"priority": 0}, {"priority": 9}, {"timeout_s": 86_400}, {"callback_url": "https://example.com/done"}]
)
def test_a_job_at_its_limits_is_taken(changed: dict[str, Any]) -> None:
    given(AGGREGATE).when(submit, **wish(**changed), now=NOON).then(submitted(**changed))


@pytest.mark.parametrize("history", [PENDING, WAITING])
def test_a_waiting_job_is_cancelled_at_once(history: tuple[Event, ...]) -> None:
    assert is_terminal(given(AGGREGATE, *history).when(cancel, **BY_ADA).then(CANCELLED))


def test_a_running_job_is_asked_to_stop() -> None:
    job = given(AGGREGATE, *PROCESSING).when(cancel, **BY_ADA).then(CANCEL_REQUESTED)
    assert (job.status, job.cancel_requested_by) == ("processing", "ada")
    given(AGGREGATE, *PROCESSING, CANCEL_REQUESTED).when(cancel, by="bob", now=NOON).then()


@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
def test_what_is_over_is_not_cancelled(status: str) -> None:
    given(AGGREGATE, *TERMINAL[status]).when(cancel, **BY_ADA).refused(InvalidState)


def test_a_cancelled_job_stays_cancelled() -> None:
    given(AGGREGATE, *TERMINAL["cancelled"]).when(cancel, **BY_ADA).then()


def test_a_dead_letter_gets_as_many_attempts_again() -> None:
    assert AGGREGATE.fold(AGGREGATE.initial, DEAD).dead_letter
    job = given(AGGREGATE, *DEAD).when(requeue, by="root", now=NOON).then(REQUEUED)
    assert (job.status, job.attempt, job.attempts_max, job.dead_letter) == ("pending", 3, 6, False)
    assert job.finished_at is None
    assert is_due(job, NOON)


@pytest.mark.parametrize("history", [*TERMINAL.values(), PROCESSING])
def test_only_dead_letters_are_requeued(history: tuple[Event, ...]) -> None:
    given(AGGREGATE, *history).when(requeue, by="root", now=NOON).refused(InvalidState)


@pytest.mark.parametrize("history", [PENDING, WAITING])
def test_a_waiting_job_needs_no_requeue(history: tuple[Event, ...]) -> None:
    given(AGGREGATE, *history).when(requeue, by="root", now=NOON).then()


@pytest.mark.parametrize("history", TERMINAL.values())
def test_what_is_over_is_deleted(history: tuple[Event, ...]) -> None:
    assert given(AGGREGATE, *history).when(delete, **BY_ADA).then(DELETED).status == "deleted"


@pytest.mark.parametrize("history", [PENDING, WAITING, PROCESSING, (*PROCESSING, CANCEL_REQUESTED)])
def test_what_is_not_over_is_cancelled_and_deleted(history: tuple[Event, ...]) -> None:
    given(AGGREGATE, *history).when(delete, **BY_ADA).then(CANCELLED, DELETED)


@pytest.mark.parametrize("history", [PENDING, WAITING])
def test_waiting_jobs_expire_with_their_session(history: tuple[Event, ...]) -> None:
    assert given(AGGREGATE, *history).when(expire, now=NOON).then(EXPIRED).status == "expired"


@pytest.mark.parametrize("history", [PROCESSING, SECOND, *TERMINAL.values(), (submitted(session_id=None),)])
def test_other_jobs_do_not_expire(history: tuple[Event, ...]) -> None:
    given(AGGREGATE, *history).when(expire, now=NOON).then()


@pytest.mark.parametrize("decide", [cancel, requeue, delete])
def test_what_never_was_is_not_found(decide: Any) -> None:
    given(AGGREGATE).when(decide, **BY_ADA).refused(NotFound)
    given(AGGREGATE).when(expire, now=NOON).refused(NotFound)


def test_a_tombstone_is_all_that_is_left() -> None:
    deleted = (*TERMINAL["completed"], DELETED)
    given(AGGREGATE, *deleted).when(cancel, **BY_ADA).refused(NotFound)
    given(AGGREGATE, *deleted).when(requeue, **BY_ADA).refused(NotFound)
    given(AGGREGATE, *deleted).when(expire, now=NOON).then()
    given(AGGREGATE, *deleted).when(delete, **BY_ADA).then()


def test_a_job_is_due_when_its_delay_has_passed() -> None:
    job = AGGREGATE.fold(AGGREGATE.initial, WAITING)
    assert is_pending(job)
    assert [is_due(job, NOON + timedelta(seconds=s)) for s in (0, 3.999, 4, 5)] == [False, False, True, True]


def test_a_state_tells_what_an_answer_needs() -> None:
    job = AGGREGATE.fold(AGGREGATE.initial, TERMINAL["completed"])
    assert (job.status, job.percent, job.result, job.finished_at) == ("completed", 100, completed(), NOON)
    job = AGGREGATE.fold(AGGREGATE.initial, TERMINAL["failed"])
    assert (job.error_code, job.error_message, job.dead_letter) == (failed().code, failed().message, False)


def test_each_attempt_begins_at_nought() -> None:
    most = JobProgressed(at=NOON, attempt=1, percent=80, message="composite")
    job = AGGREGATE.fold(AGGREGATE.initial, [*PROCESSING, most])
    assert (job.percent, job.message) == (80, "composite")
    job = AGGREGATE.fold(job, [retry(), started(2, "w2")])
    assert (job.percent, job.message) == (0, "")
