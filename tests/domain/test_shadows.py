"""Shadows: which figures a sample comes to, and whether it speaks for its version."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from sightline.domain import shadows
from sightline.domain.comparisons import Tolerance, Verdict
from sightline.domain.kernel import Invalid, InvalidState
from sightline.domain.shadows import AGGREGATE, SAMPLE_MAX, WORST_MAX, Result, Shadow, ShadowJudged, ShadowNotPassed

NOON = datetime(2026, 3, 8, 12, tzinfo=UTC)
CANDIDATE = UUID(int=9)


def started(count: int, *, since: datetime = NOON - timedelta(days=7), until: datetime = NOON) -> Shadow:
    said = shadows.start(
        Shadow(),
        model_id=CANDIDATE,
        task="depth",
        kinds=("layer-photo-realistic",),
        since=since,
        until=until,
        sample=tuple(UUID(int=n) for n in range(count)),
        tolerance=Tolerance(),
        by="ada",
        now=NOON,
    )
    return AGGREGATE.fold(Shadow(), said)


def result(
    n: int, verdict: Verdict, excess: float | None = None, first_s: float = 1.0, second_s: float = 2.0
) -> Result:
    return Result(
        comparison_id=UUID(int=1000 + n),
        of_job=UUID(int=n),
        verdict=verdict,
        excess=excess,
        first_s=first_s,
        second_s=second_s,
    )


def judged(results: list[Result]) -> tuple[Shadow, ShadowJudged]:
    shadow = started(len(results))
    [said] = shadows.judge(shadow, results=tuple(results), now=NOON)
    assert isinstance(said, ShadowJudged)
    return AGGREGATE.fold(shadow, [said]), said


def test_the_figures_and_the_worst_first() -> None:
    results = [
        result(0, "identical"),
        result(1, "equivalent", 0.5),
        result(2, "different", 3.0),
        result(3, "failed"),
        result(4, "different"),
    ]
    over, said = judged(results)
    assert (said.total, said.identical, said.equivalent, said.different, said.failed) == (5, 1, 1, 2, 1)
    assert [one.of_job.int for one in said.worst] == [3, 4, 2, 1]
    assert (said.latency_ratio_p50, said.latency_ratio_p95) == (2.0, 2.0)
    assert shadows.judge(over, results=(), now=NOON) == []


def test_ratios_are_of_percentiles() -> None:
    slow = [result(n, "identical", first_s=1.0, second_s=10.0 if n == 19 else 1.0) for n in range(20)]
    _, said = judged(slow)
    assert (said.latency_ratio_p50, said.latency_ratio_p95) == (1.0, 1.0)
    _, said = judged([*slow[:18], result(18, "identical", second_s=10.0), slow[19]])
    assert (said.latency_ratio_p50, said.latency_ratio_p95) == (1.0, 10.0)


def test_what_was_not_measured_has_no_ratio() -> None:
    _, said = judged([Result(comparison_id=UUID(int=1), of_job=UUID(int=0), verdict="failed")])
    assert (said.latency_ratio_p50, said.latency_ratio_p95) == (None, None)


def test_the_worst_are_bounded() -> None:
    _, said = judged([result(n, "different", float(n)) for n in range(WORST_MAX + 5)])
    assert len(said.worst) == WORST_MAX
    assert said.worst[0].of_job.int == WORST_MAX + 4


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_job_of_the_sample_counts_once(count: int) -> None:
    with pytest.raises(Invalid):
        shadows.judge(started(2), results=tuple(result(n, "identical") for n in range(count)), now=NOON)
    twice = (result(0, "identical"),) * 2
    with pytest.raises(Invalid):
        shadows.judge(started(2), results=twice, now=NOON)


def test_what_is_no_sample_is_refused() -> None:
    with pytest.raises(InvalidState, match="no job"):
        started(0)
    with pytest.raises(Invalid):
        started(SAMPLE_MAX + 1)
    with pytest.raises(Invalid, match="since"):
        started(1, since=NOON, until=NOON)
    with pytest.raises(Invalid, match="year"):
        started(1, since=datetime(1, 1, 1, tzinfo=UTC))


def test_only_a_shadow_without_a_blemish_speaks_for_its_own_version() -> None:
    good, _ = judged([result(0, "identical"), result(1, "equivalent", 0.5)])
    shadows.require_passed(good, CANDIDATE)
    bad = [Shadow(), started(1), judged([result(0, "different")])[0], judged([result(0, "failed")])[0]]
    for shadow in bad:
        with pytest.raises(ShadowNotPassed):
            shadows.require_passed(shadow, CANDIDATE)
    with pytest.raises(ShadowNotPassed):
        shadows.require_passed(good, UUID(int=8))
