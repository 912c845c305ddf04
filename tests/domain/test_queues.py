"""Queues: for each rule what it yields, what it refuses, and when it is silent."""

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.spec import given

from sightline.domain import queues
from sightline.domain.kernel import Invalid
from sightline.domain.queues import Queue, QueueIsPaused, QueueLimitsSet, QueuePaused, QueueResumed

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PAUSED = QueuePaused(at=NOON, kind="noop", reason="disk", by="ada")
RESUMED = QueueResumed(at=NOON, kind="noop", by="ada")
LIMITED = QueueLimitsSet(at=NOON, kind="noop", running_max=2, starts_per_minute_max=None, by="ada")
SAID: dict[str, Any] = {"kind": "noop", "by": "ada", "now": NOON}


def queue(*events: queues.Event) -> given[Queue]:
    return given(queues.AGGREGATE, *events)


def test_a_pause_has_a_reason_and_another_reason_is_told_too() -> None:
    state = queue().when(queues.pause, reason="disk", **SAID).then(PAUSED)
    assert (state.paused, state.reason, state.paused_at) == (True, "disk", NOON)
    other = QueuePaused(at=NOON, kind="noop", reason="", by="ada")
    assert queue(PAUSED).when(queues.pause, reason="", **SAID).then(other).paused


@pytest.mark.parametrize("reason", ["x" * 501, "a\nb"])
def test_a_reason_is_one_line(reason: str) -> None:
    queue().when(queues.pause, reason=reason, **SAID).refused(Invalid)


def test_only_what_is_paused_is_resumed() -> None:
    queue().when(queues.resume, **SAID).then()
    state = queue(PAUSED).when(queues.resume, **SAID).then(RESUMED)
    assert state == Queue("noop")


def test_limits_are_set_whole_and_outlast_a_pause() -> None:
    state = queue().when(queues.set_limits, running_max=2, starts_per_minute_max=None, **SAID).then(LIMITED)
    assert (state.running_max, state.starts_per_minute_max) == (2, None)
    assert given(queues.AGGREGATE, LIMITED, PAUSED, RESUMED).state.running_max == 2
    none = QueueLimitsSet(at=NOON, kind="noop", running_max=None, starts_per_minute_max=None, by="ada")
    queue(LIMITED).when(queues.set_limits, running_max=None, starts_per_minute_max=None, **SAID).then(none)


@pytest.mark.parametrize(("running", "starts"), [(0, None), (None, 0), (100_001, None), (None, 10_000_001)])
def test_to_allow_none_is_to_pause(running: int | None, starts: int | None) -> None:
    said = {"running_max": running, "starts_per_minute_max": starts} | SAID
    queue().when(queues.set_limits, **said).refused(Invalid)


def test_what_is_paused_says_why() -> None:
    queues.require_open(queue(PAUSED, RESUMED).state)
    with pytest.raises(QueueIsPaused, match="noop is paused: disk"):
        queues.require_open(queue(PAUSED).state)
