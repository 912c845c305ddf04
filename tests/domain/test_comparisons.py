"""Verdicts: what two outputs come to, at the edge of each tolerance, and what a comparison says once."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.domain import comparisons
from sightline.domain.comparisons import (
    AGGREGATE,
    Comparison,
    Difference,
    Ran,
    Tolerance,
    distance,
    excess,
    verdict_of,
)
from sightline.domain.jobs import Job, JobSubmitted
from sightline.domain.kernel import Invalid, InvalidState, NotFound

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOLERANCE = Tolerance(number_max=0.5, channel_max=2, psnr_db_min=40.0)


def apart(measure: comparisons.Measure, distance_max: float | None, psnr_db: float | None = None) -> Difference:
    return Difference(
        name="x",
        sha256="a" * 64,
        second_sha256="b" * 64,
        measure=measure,
        distance_max=distance_max,
        psnr_db=psnr_db,
    )


SAME = Difference(name="x", sha256="a" * 64, second_sha256="a" * 64)
GONE = Difference(name="x", sha256="a" * 64, second_sha256=None)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((), "identical"),
        ((SAME,), "identical"),
        ((SAME, apart("numbers", 0.0)), "equivalent"),
        ((apart("numbers", 0.5),), "equivalent"),
        ((apart("numbers", 0.5000001),), "different"),
        ((apart("numbers", None),), "different"),
        ((apart("bytes", None),), "different"),
        ((apart("picture", 0.0),), "equivalent"),
        ((apart("picture", 2.0, 30.0),), "equivalent"),
        ((apart("picture", 3.0, 39.9),), "different"),
        ((apart("picture", 255.0, 40.0),), "equivalent"),
        ((SAME, apart("numbers", 0.1), GONE), "different"),
    ],
)
def test_the_verdict_is_the_worst_of_all(differences: tuple[Difference, ...], verdict: str) -> None:
    assert verdict_of(differences, TOLERANCE) == verdict
    assert verdict_of(differences[::-1], TOLERANCE) == verdict


def test_without_any_tolerance_only_equal_values_are_equivalent() -> None:
    none = Tolerance(number_max=0, channel_max=0, psnr_db_min=1e9)
    assert verdict_of((apart("numbers", 0.0), apart("picture", 0.0)), none) == "equivalent"
    assert verdict_of((apart("picture", 1.0, 48.0),), none) == "different"
    assert verdict_of((apart("numbers", 1e-12),), none) == "different"


def test_how_far_beyond_the_tolerance() -> None:
    assert excess((SAME, apart("numbers", 0.25), apart("picture", 4.0)), TOLERANCE) == 2.0
    assert excess((SAME,), TOLERANCE) == 0.0
    assert excess((GONE,), TOLERANCE) == float("inf")


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ({"a": [1, 2.5, {"b": 3}]}, {"a": [1, 2.0, {"b": 3.25}]}, (0.5, "")),
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1}, (0.0, "")),
        ([], [], (0.0, "")),
        (3, 5, (2.0, "")),
        ({"a": "x"}, {"a": "y"}, (None, "they differ at $.a")),
        ({"a": {"b": [1]}}, {"a": {"b": [1, 2]}}, (None, "they differ at $.a.b")),
        ({"a": 1}, {"b": 1}, (None, "they differ at $")),
        ([True], [1], (None, "they differ at $[0]")),
        ([None], [0], (None, "they differ at $[0]")),
        ([10**400], [0.5], (None, "they differ at $[0]")),
        ([10**400], [0], (None, "they differ at $[0]")),
        ({"a\0": "x"}, {"a\0": "y"}, (None, "they differ at $.a")),
    ],
)
def test_the_distance_of_json(first: Any, second: Any, found: tuple[float | None, str]) -> None:
    assert distance(first, second) == found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_a_distance_is_one(first: Any, second: Any) -> None:
    assert distance(first, first) == (0.0, "")
    assert distance(first, second)[0] == distance(second, first)[0]
    if distance(first, second)[0] == 0:
        assert first == second


def started(tolerance: Tolerance = TOLERANCE) -> Comparison:
    said = comparisons.start(
        Comparison(),
        owner="ada",
        of_job=UUID(int=1),
        rerun_job=UUID(int=2),
        is_shadow=False,
        model_version_id=None,
        tolerance=tolerance,
        now=NOON,
    )
    return AGGREGATE.fold(Comparison(), said)


def test_it_is_judged_once() -> None:
    comparison = started()
    [said] = comparisons.judge(
        comparison, differences=(apart("numbers", 0.5),), first=Ran(run_s=1), second=Ran(), now=NOON
    )
    assert isinstance(said, comparisons.ComparisonJudged)
    assert (said.verdict, said.first) == ("equivalent", Ran(run_s=1))
    over = AGGREGATE.fold(comparison, [said])
    assert comparisons.judge(over, differences=(GONE,), first=Ran(), second=Ran(), now=NOON) == []
    assert comparisons.give_up(over, reason="late", now=NOON) == []


def test_what_was_never_started_is_not_judged() -> None:
    with pytest.raises(NotFound):
        comparisons.judge(Comparison(), differences=(), first=Ran(), second=Ran(), now=NOON)
    with pytest.raises(NotFound):
        comparisons.give_up(Comparison(), reason="", now=NOON)


@pytest.mark.parametrize(
    "tolerance",
    [
        Tolerance(number_max=-1.0),
        Tolerance(number_max=float("nan")),
        Tolerance(psnr_db_min=float("inf")),
        Tolerance(channel_max=256),
    ],
)
def test_a_tolerance_that_is_none_is_refused(tolerance: Tolerance) -> None:
    with pytest.raises(Invalid):
        started(tolerance)


def test_only_a_completed_job_can_be_run_again() -> None:
    with pytest.raises(NotFound):
        comparisons.require_result(Job())
    asked = JobSubmitted(at=NOON, owner="ada", kind="noop")
    with pytest.raises(InvalidState, match="pending"):
        comparisons.require_result(Job("pending", asked))
    with pytest.raises(NotFound):
        comparisons.require_result(Job("deleted", asked))
