from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from tests.domain.job_histories import (
    ASSET,
    CANCEL_REQUESTED,
    CANCELLED,
    DEAD,
    DELETED,
    LAYER,
    LEASE_END,
    NOON,
    PENDING,
    PROCESSING,
    REQUEUED,
    SECOND,
    TERMINAL,
    WAITING,
    completed,
    dead,
    failed,
    retry,
    started,
    submitted,
)
from tests.spec import given

from sightline.domain.attempts import (
    AttemptIsOver,
    artifact_id,
    complete,
    confirm_cancel,
    fail,
    lose_lease,
    refusal,
    report_progress,
    start,
    time_out,
)
from sightline.domain.jobs import AGGREGATE, Event, JobProgressed, LateResultRejected
from sightline.domain.kernel import Invalid, InvalidState, NotFound

FIRST: dict[str, Any] = {"attempt": 1, "worker": "w1", "now": NOON}
CLAIM = {"lease_until": LEASE_END, "now": NOON}
RESULT = {"outputs": (LAYER,)}
CRASH: dict[str, Any] = {"code": "crashed", "message": "exit 139", "retryable": True}
BROKEN = {"code": "unreadable", "message": "not a picture", "retryable": False, "retry_delay_s": 0}
CANCELLING = (*PROCESSING, CANCEL_REQUESTED)


def progressed(percent: int, message: str = "") -> JobProgressed:
    return JobProgressed(at=NOON, attempt=1, percent=percent, message=message)


def late(reason: str, attempt: int = 1, worker: str = "w1") -> LateResultRejected:
    return LateResultRejected(at=NOON, attempt=attempt, worker=worker, reason=reason)


# Starting


def test_a_waiting_job_is_claimed_by_one_worker() -> None:
    job = given(AGGREGATE, *PENDING).when(start, worker="w1", **CLAIM).then(started())
    assert (job.status, job.attempt, job.worker) == ("processing", 1, "w1")
    given(AGGREGATE, *PROCESSING).when(start, worker="w1", attempt=1, **CLAIM).then()
    given(AGGREGATE, *PROCESSING).when(start, worker="w2", **CLAIM).refused(InvalidState)


def test_each_attempt_has_the_next_number() -> None:
    given(AGGREGATE, *PROCESSING, retry()).when(start, worker="w2", attempt=2, **CLAIM).then(started(2, "w2"))
    given(AGGREGATE, *PROCESSING, retry()).when(start, worker="w2", attempt=1, **CLAIM).refused(InvalidState)
    given(AGGREGATE, *PROCESSING, retry()).when(start, worker="w2", attempt=3, **CLAIM).refused(InvalidState)


def test_a_requeued_job_never_uses_a_number_again() -> None:
    given(AGGREGATE, *DEAD, REQUEUED).when(start, worker="w1", **CLAIM).then(started(4))


def test_nobody_starts_before_the_delay_has_passed() -> None:
    given(AGGREGATE, *WAITING).when(start, worker="w1", **CLAIM).refused(InvalidState)
    due = NOON + timedelta(seconds=4)
    claim = CLAIM | {"now": due}
    given(AGGREGATE, *WAITING).when(start, worker="w1", **claim).then(replace(started(2), at=due))


@pytest.mark.parametrize("history", TERMINAL.values())
def test_what_is_over_is_not_started(history: tuple[Event, ...]) -> None:
    given(AGGREGATE, *history).when(start, worker="w2", **CLAIM).refused(InvalidState)
    given(AGGREGATE, *history, DELETED).when(start, worker="w2", **CLAIM).refused(NotFound)


# Progress


def test_progress_never_goes_back() -> None:
    half = progressed(50, "bands")
    given(AGGREGATE, *PROCESSING).when(report_progress, percent=50, message="bands", **FIRST).then(half)
    given(AGGREGATE, *PROCESSING, half).when(report_progress, percent=49, message="depth", **FIRST).then()
    given(AGGREGATE, *PROCESSING, half).when(report_progress, percent=50, message="bands", **FIRST).then()
    given(AGGREGATE, *PROCESSING, half).when(report_progress, percent=50, message="fill", **FIRST).then(
        progressed(50, "fill")
    )


@pytest.mark.parametrize("percent", [-1, 101])
def test_progress_is_of_a_hundred(percent: int) -> None:
    given(AGGREGATE, *PROCESSING).when(report_progress, percent=percent, **FIRST).refused(Invalid)


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (WAITING, "attempt_over"),
        (SECOND, "stale_attempt"),
        (CANCELLING, "cancel_requested"),
        (TERMINAL["failed"], "job_failed"),
        ((submitted(), started(1, "w2")), "not_the_holder"),
    ],
)
def test_a_worker_learns_that_it_should_stop(history: tuple[Event, ...], reason: str) -> None:
    refused = given(AGGREGATE, *history).when(report_progress, percent=50, **FIRST).refused(AttemptIsOver)
    assert (refused.code, refused.extra["reason"]) == ("lease_lost", reason)


# Completing


def test_the_attempt_that_holds_the_job_completes_it_once() -> None:
    job = given(AGGREGATE, *PROCESSING).when(complete, **RESULT, **FIRST).then(completed())
    assert (job.status, job.result) == ("completed", completed())
    given(AGGREGATE, *TERMINAL["completed"]).when(complete, **FIRST).then()  # The same attempt, whatever it brings.
    assert refusal(job, attempt=1, worker="w1") is None


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (WAITING, "attempt_over"),
        (SECOND, "stale_attempt"),
        ((*SECOND, completed(2, "w2")), "stale_attempt"),
        ((submitted(), started(1, "w2")), "not_the_holder"),
        (CANCELLING, "cancel_requested"),
        ((*CANCELLING, CANCELLED), "job_cancelled"),
        (TERMINAL["failed"], "job_failed"),
        ((*PROCESSING, CANCELLED, DELETED), "job_deleted"),
        ((*TERMINAL["completed"], DELETED), "job_deleted"),
        (DEAD, "stale_attempt"),
    ],
)
def test_a_late_result_is_told_once_and_changes_nothing(history: tuple[Event, ...], reason: str) -> None:
    before = AGGREGATE.fold(AGGREGATE.initial, history)
    after = given(AGGREGATE, *history).when(complete, **RESULT, **FIRST).then(late(reason))
    assert after == replace(before, refused=frozenset({1}))
    assert refusal(after, attempt=1, worker="w1") == reason  # Silent the second time, and refused all the same.


def test_a_refused_stranger_does_not_shut_out_the_holder() -> None:
    said = FIRST | {"worker": "w9"}
    given(AGGREGATE, *PROCESSING).when(complete, **said).then(late("not_the_holder", worker="w9"))
    refused = late("not_the_holder", worker="w9")
    given(AGGREGATE, *PROCESSING, refused).when(complete, **RESULT, **FIRST).then(completed())


@pytest.mark.parametrize("attempt", [-1, 0, 2])
def test_an_attempt_that_never_was_is_a_mistake(attempt: int) -> None:
    said = FIRST | {"attempt": attempt}
    given(AGGREGATE, *PROCESSING).when(complete, **said).refused(Invalid)
    given(AGGREGATE, *PROCESSING).when(fail, **CRASH, retry_delay_s=0, **said).refused(Invalid)
    given(AGGREGATE, *PROCESSING).when(confirm_cancel, **said).refused(Invalid)
    given(AGGREGATE, *PROCESSING).when(time_out, **said).refused(Invalid)


@pytest.mark.parametrize(
    "outputs",
    [
        (LAYER, LAYER),
        (replace(LAYER, name="../layer.png"),),
        (replace(LAYER, name="a/b.png"),),
        (replace(LAYER, name=".hidden"),),
        (replace(LAYER, name=""),),
        (replace(LAYER, sha256="f00"),),
        tuple(replace(LAYER, name=f"{n}.png") for n in range(101)),
    ],
)
def test_outputs_are_files_with_names_of_their_own(outputs: Any) -> None:
    given(AGGREGATE, *PROCESSING).when(complete, outputs=outputs, **FIRST).refused(Invalid)


# Failing


def test_a_failure_that_may_pass_is_tried_again_later() -> None:
    given(AGGREGATE, *PROCESSING).when(fail, **CRASH, retry_delay_s=300, **FIRST).then(retry(wait_s=300))
    job = given(AGGREGATE, *PROCESSING).when(fail, **CRASH, retry_delay_s=4, **FIRST).then(retry(wait_s=4))
    assert (job.status, job.attempt, job.error_code) == ("pending", 1, "crashed")


def test_a_failure_that_will_not_pass_ends_the_job() -> None:
    job = given(AGGREGATE, *PROCESSING).when(fail, **BROKEN, **FIRST).then(failed())
    assert (job.status, job.dead_letter) == ("failed", False)


def test_the_last_attempt_leaves_a_dead_letter() -> None:
    third = FIRST | {"attempt": 3}
    job = given(AGGREGATE, *DEAD[:-1]).when(fail, **CRASH, retry_delay_s=4, **third).then(dead())
    assert (job.status, job.dead_letter) == ("failed", True)


def test_one_attempt_may_be_all_there_is() -> None:
    once = (submitted(attempts_max=1), started())
    given(AGGREGATE, *once).when(fail, **CRASH, retry_delay_s=0, **FIRST).then(dead(1))


def test_a_late_failure_says_nothing() -> None:
    for history in (WAITING, SECOND, *list(TERMINAL.values())[:2], (*PROCESSING, CANCELLED, DELETED)):
        given(AGGREGATE, *history).when(fail, **CRASH, retry_delay_s=0, **FIRST).then()
    stranger = FIRST | {"worker": "w9"}
    given(AGGREGATE, *PROCESSING).when(fail, **CRASH, retry_delay_s=0, **stranger).then()


@pytest.mark.parametrize("wait_s", [-1, 300.1, float("inf"), float("nan")])
def test_a_retry_waits_within_bounds(wait_s: float) -> None:
    given(AGGREGATE, *PROCESSING).when(fail, **CRASH, retry_delay_s=wait_s, **FIRST).refused(Invalid)


def test_what_a_crash_says_is_made_fit_for_the_log() -> None:
    said = CRASH | {"message": "line\0one\n\ud800" + "x" * 2000, "retry_delay_s": 0}
    event = fail(AGGREGATE.fold(AGGREGATE.initial, PROCESSING), **said, **FIRST)[0]
    assert event == retry(message="line one  " + "x" * 990)


# Cancelling


def test_a_worker_confirms_that_it_stopped() -> None:
    assert given(AGGREGATE, *CANCELLING).when(confirm_cancel, **FIRST).then(CANCELLED).status == "cancelled"


def test_nothing_is_confirmed_that_nobody_asked_for() -> None:
    given(AGGREGATE, *PROCESSING).when(confirm_cancel, **FIRST).refused(InvalidState)
    given(AGGREGATE, *SECOND, CANCEL_REQUESTED).when(confirm_cancel, **FIRST).then()


def test_whatever_ends_an_attempt_that_is_to_be_cancelled_cancels_the_job() -> None:
    given(AGGREGATE, *CANCELLING).when(fail, **CRASH, retry_delay_s=0, **FIRST).then(CANCELLED)
    given(AGGREGATE, *CANCELLING).when(lose_lease, retry_delay_s=0, **FIRST).then(CANCELLED)
    end = NOON + timedelta(seconds=600)
    overdue = FIRST | {"now": end}
    given(AGGREGATE, *CANCELLING).when(time_out, **overdue).then(replace(CANCELLED, at=end))


# The clock


def test_a_lost_lease_lets_another_attempt_begin() -> None:
    said = retry(wait_s=1, code="lease_expired", message="worker w1 was not heard of in time")
    given(AGGREGATE, *PROCESSING).when(lose_lease, retry_delay_s=1, **FIRST).then(said)
    given(AGGREGATE, *SECOND).when(lose_lease, retry_delay_s=1, **FIRST).then()
    third = FIRST | {"attempt": 3}
    job = (
        given(AGGREGATE, *DEAD[:-1])
        .when(lose_lease, retry_delay_s=1, **third)
        .then(replace(dead(), code="lease_expired", message="worker w1 was not heard of in time"))
    )
    assert job.dead_letter


def test_a_job_that_takes_too_long_fails_and_is_not_tried_again() -> None:
    end = NOON + timedelta(seconds=600)
    overdue = FIRST | {"now": end}
    given(AGGREGATE, *PROCESSING).when(time_out, **(FIRST | {"now": end - timedelta(microseconds=1)})).then()
    said = replace(failed(code="timeout", message="took longer than 600 s"), at=end)
    given(AGGREGATE, *PROCESSING).when(time_out, **overdue).then(said)
    given(AGGREGATE, *SECOND).when(time_out, **overdue).then()
    given(AGGREGATE, *TERMINAL["completed"]).when(time_out, **overdue).then()


@pytest.mark.parametrize(
    ("decide", "more"),
    [
        (complete, {}),
        (fail, CRASH | {"retry_delay_s": 0}),
        (confirm_cancel, {}),
        (lose_lease, {"retry_delay_s": 0}),
        (time_out, {}),
        (report_progress, {"percent": 1}),
    ],
)
def test_an_attempt_at_what_never_was_is_not_found(decide: Any, more: dict[str, Any]) -> None:
    given(AGGREGATE).when(decide, **more, **FIRST).refused(NotFound)
    given(AGGREGATE).when(start, worker="w1", **CLAIM).refused(NotFound)


# Figures


def test_an_artifact_keeps_its_id() -> None:
    assert artifact_id(ASSET, "a.png") == artifact_id(ASSET, "a.png")
    assert artifact_id(ASSET, "a.png") != artifact_id(ASSET, "b.png")
