"""A shadow: jobs that are done already are run again on another version of their model, before that one is activated.

running → judged, once all of them were. The jobs that it asks for belong to the candidate itself (owner()), so that
nobody's quota pays for them and no figure about real work counts them.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from math import ceil
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .comparisons import Tolerance, Verdict, require_tolerance
from .kernel import Aggregate, Invalid, InvalidState, NotFound, Rejection, derived_id, require_within

SAMPLE_MAX = 1_000
WORST_MAX = 10
YEAR_MIN, YEAR_MAX = 2000, 2999
OWNER_PREFIX = "shadow:"


class Result(Struct, frozen=True, kw_only=True):
    """What one job of the sample came to.

    Attributes:
        excess: how many times its tolerance the worst output is away; None where that cannot be told.
        first_s, second_s: seconds of computing of both runs, where both are known.
    """

    comparison_id: UUID
    of_job: UUID
    verdict: Verdict
    reason: str = ""
    excess: float | None = None
    first_s: float | None = None
    second_s: float | None = None


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class ShadowStarted(Struct, frozen=True, kw_only=True, tag="shadow.started"):
    """Attributes:
    sample: the completed jobs that are run again, and no others.
    since, until: when they were completed.
    """

    at: datetime
    by: str
    model_version_id: UUID
    task: str
    kinds: tuple[str, ...]
    since: datetime
    until: datetime
    sample: tuple[UUID, ...]
    tolerance: Tolerance


class ShadowJudged(Struct, frozen=True, kw_only=True, tag="shadow.judged"):
    """Attributes:
    latency_ratio_p50, latency_ratio_p95: seconds of computing on the candidate over those of before; None where
        nothing was measured.
    worst: failed ones first, then those that are farthest away; at most WORST_MAX, identical ones aside.
    """

    at: datetime
    total: int
    identical: int
    equivalent: int
    different: int
    failed: int
    latency_ratio_p50: float | None
    latency_ratio_p95: float | None
    worst: tuple[Result, ...]


Event = ShadowStarted | ShadowJudged


# State


class Shadow(Struct, frozen=True):
    """A shadow as its events tell it; `started` is None before anything was said."""

    started: ShadowStarted | None = None
    judged: ShadowJudged | None = None


# Rejections


class ShadowNotPassed(Rejection):
    """The shadow that was to speak for a version does not."""

    code = "shadow_not_passed"


def evolve(shadow: Shadow, event: Event) -> Shadow:
    match event:
        case ShadowStarted():
            return Shadow(event)
        case ShadowJudged():
            return replace(shadow, judged=event)


AGGREGATE = Aggregate("shadow", Shadow(), evolve)


# Decisions


def start(
    shadow: Shadow,
    *,
    model_id: UUID,
    task: str,
    kinds: tuple[str, ...],
    since: datetime,
    until: datetime,
    sample: tuple[UUID, ...],
    tolerance: Tolerance,
    by: str,
    now: datetime,
) -> list[Event]:
    """Run `sample` again; which jobs those are was found by the caller."""
    if shadow.started is not None:
        return []
    require_tolerance(tolerance)
    require_within("the number of jobs", len(sample), 0, SAMPLE_MAX)
    if len(set(sample)) < len(sample):
        raise Invalid("a job is in the sample twice")
    require_window(since, until)
    if not sample:
        raise InvalidState(f"no job of {', '.join(kinds)} was completed in that time on another version")
    return [
        ShadowStarted(
            at=now,
            by=by,
            model_version_id=model_id,
            task=task,
            kinds=kinds,
            since=since,
            until=until,
            sample=sample,
            tolerance=tolerance,
        )
    ]


def judge(shadow: Shadow, *, results: tuple[Result, ...], now: datetime) -> list[Event]:
    """All comparisons of the sample are judged, and this is what they came to. Said once."""
    if shadow.started is None:
        raise NotFound("no such shadow")
    if shadow.judged is not None:
        return []
    if sorted(one.of_job for one in results) != sorted(shadow.started.sample):
        raise Invalid("a shadow is judged by each job of its sample, once")
    counts = Counter(one.verdict for one in results)
    timed = [one for one in results if one.first_s is not None and one.second_s is not None]
    first = [one.first_s for one in timed if one.first_s is not None]
    second = [one.second_s for one in timed if one.second_s is not None]
    worst = sorted((one for one in results if one.verdict != "identical"), key=_badness, reverse=True)
    return [
        ShadowJudged(
            at=now,
            total=len(results),
            identical=counts["identical"],
            equivalent=counts["equivalent"],
            different=counts["different"],
            failed=counts["failed"],
            latency_ratio_p50=_ratio(first, second, 0.5),
            latency_ratio_p95=_ratio(first, second, 0.95),
            worst=tuple(worst[:WORST_MAX]),
        )
    ]


# Questions


def owner(model_version_id: UUID) -> str:
    """The principal of the jobs that are run for a candidate."""
    return f"{OWNER_PREFIX}{model_version_id}"


def shadow_id(command_id: UUID) -> UUID:
    """The stream of the shadow that a command starts."""
    return derived_id("shadow", command_id)


def require_window(since: datetime, until: datetime) -> None:
    """Raises: Invalid: it is none, or of years in which nobody ran anything."""
    require_within("the year of since", since.year, YEAR_MIN, YEAR_MAX)
    require_within("the year of until", until.year, YEAR_MIN, YEAR_MAX)
    if since >= until:
        raise Invalid("since lies before until")


def require_passed(shadow: Shadow, model_version_id: UUID) -> None:
    """Raises: ShadowNotPassed: it is another version's, is not judged yet, or found something different or failed."""
    if shadow.started is None or shadow.started.model_version_id != model_version_id:
        raise ShadowNotPassed("it is no shadow of this version")
    if shadow.judged is None:
        raise ShadowNotPassed("it is not judged yet")
    if shadow.judged.different or shadow.judged.failed:
        raise ShadowNotPassed(f"{shadow.judged.different} outputs are different, {shadow.judged.failed} runs failed")


def _badness(result: Result) -> tuple[int, float]:
    ranks: dict[Verdict, int] = {"identical": 0, "equivalent": 1, "different": 2, "failed": 3}
    return ranks[result.verdict], float("inf") if result.excess is None else result.excess


def _ratio(first: Sequence[float], second: Sequence[float], share: float) -> float | None:
    before, after = _percentile(first, share), _percentile(second, share)
    return after / before if before and after is not None else None


def _percentile(values: Sequence[float], share: float) -> float | None:
    """By nearest rank."""
    return sorted(values)[max(ceil(share * len(values)), 1) - 1] if values else None
