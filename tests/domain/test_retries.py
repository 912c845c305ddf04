"""Retries by what went wrong: which failures are worth another attempt, and when."""

from typing import Any

import pytest
from tests.domain.job_histories import NOON, PROCESSING, failed, retry
from tests.spec import given

from sightline.domain import attempts, jobs, retries
from sightline.domain.retries import CLASSES, RETRY_DELAY_S_MAX, class_of, is_retried, retry_delay_s


def test_a_code_that_nobody_knows_is_retried_where_its_kind_says_so() -> None:
    assert class_of("crashed") == "transient"
    assert is_retried("crashed", retryable=True)
    assert not is_retried("crashed", retryable=False)


@pytest.mark.parametrize("code", [code for code, one in CLASSES.items() if one == "permanent"])
def test_what_fails_the_same_way_again_is_never_retried(code: str) -> None:
    assert not is_retried(code, retryable=True)


def test_the_wait_doubles_up_to_its_limit() -> None:
    waits = [retry_delay_s("crashed", n, 1.0, 1.0) for n in (1, 2, 3, 9, 10, 2000)]
    assert waits == [1, 2, 4, 256, RETRY_DELAY_S_MAX, RETRY_DELAY_S_MAX]
    assert retry_delay_s("crashed", 3, 1.0, 0.5) == 2


def test_a_part_that_is_busy_is_asked_later() -> None:
    assert [retry_delay_s("model_missing", n, 1.0, 1.0) for n in (1, 2, 9)] == [5, 10, RETRY_DELAY_S_MAX]


def test_a_job_whose_worker_was_stopped_does_not_wait() -> None:
    assert retry_delay_s("worker_stopped", 3, 1.0, 1.0) == 0


def fail(code: str) -> dict[str, Any]:
    return {
        "attempt": 1,
        "worker": "w1",
        "code": code,
        "message": "",
        "retryable": True,
        "retry_delay_s": 0,
        "now": NOON,
    }


def test_an_attempt_that_failed_for_good_ends_the_job_whatever_its_kind_says() -> None:
    given(jobs.AGGREGATE, *PROCESSING).when(attempts.fail, **fail("rule_violated")).then(failed(1, "rule_violated", ""))
    given(jobs.AGGREGATE, *PROCESSING).when(attempts.fail, **fail("crashed")).then(retry(1, message=""))


def test_without_the_classes_it_would_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(retries, "CLASSES", {})
    with pytest.raises(AssertionError):
        test_an_attempt_that_failed_for_good_ends_the_job_whatever_its_kind_says()
