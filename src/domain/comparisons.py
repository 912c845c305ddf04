"""A comparison: a completed job is run again, and what came out is held against what came out before.

running → judged, once. The verdict is the worst of what any output comes to: identical (every byte), equivalent (within
the tolerance), different, or failed, where there is nothing to hold against it.
"""

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .attempts import OUTPUTS_MAX
from .jobs import Job, JobCompleted, require_present
from .kernel import Aggregate, Invalid, InvalidState, NotFound, derived_id, require_within, storable

REASON_CHARS_MAX = 300
PATH_CHARS_MAX = 120
CHANNEL_MAX = 255
DIFFERENCES_MAX = 2 * OUTPUTS_MAX + 1  # the outputs of both runs, had they no name in common, and the manifest
MANIFEST = "(manifest)"  # what a job says of its outputs is compared like one of them; no file can be called so

Purpose = Literal["rerun", "shadow"]
Verdict = Literal["identical", "equivalent", "different", "failed"]
Measure = Literal["bytes", "numbers", "picture"]


class Tolerance(Struct, frozen=True, kw_only=True):
    """How far two outputs may lie apart and still be equivalent.

    Attributes:
        number_max: between two numbers of JSON or of an array.
        channel_max: between two channels of a pixel, of 255.
        psnr_db_min: of a picture as a whole. Where it is reached, single pixels may lie further apart than
            `channel_max`: an edge that moved by one pixel changes a few of them wholly.
    """

    number_max: float = 1e-4
    channel_max: int = 2
    psnr_db_min: float = 40.0


class Difference(Struct, frozen=True, kw_only=True):
    """One output of the first run beside the one of that name of the second.

    Attributes:
        sha256, second_sha256: None where that run has no such output.
        measure: how they were held against each other where their bytes differ.
        distance_max: the largest difference between two numbers, or between two channels of a pixel (of 255); None
            where there is none to be told.
        psnr_db: peak signal-to-noise ratio of the second picture; None for equal ones, and where it is none.
        reason: why there is no distance.
    """

    name: str
    sha256: str | None
    second_sha256: str | None
    measure: Measure = "bytes"
    distance_max: float | None = None
    psnr_db: float | None = None
    reason: str = ""


class Ran(Struct, frozen=True, kw_only=True):
    """What made one run's outputs; see jobs.Provenance.

    Attributes:
        run_s: seconds of computing.
    """

    model_version_id: UUID | None = None
    model_sha256: str | None = None
    provider: str | None = None
    runtime: str | None = None
    run_s: float | None = None


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class ComparisonStarted(Struct, frozen=True, kw_only=True, tag="comparison.started"):
    """Attributes:
    rerun_job: None where the job could not be submitted again; the verdict says why.
    model_version_id: that it runs on now, if its kind needs one.
    """

    at: datetime
    owner: str
    of_job: UUID
    rerun_job: UUID | None
    purpose: Purpose
    model_version_id: UUID | None
    tolerance: Tolerance


class ComparisonJudged(Struct, frozen=True, kw_only=True, tag="comparison.judged"):
    at: datetime
    verdict: Verdict
    reason: str = ""  # of a failed one
    differences: tuple[Difference, ...] = ()  # every output, the identical ones too
    first: Ran | None = None
    second: Ran | None = None


Event = ComparisonStarted | ComparisonJudged


# State


class Comparison(Struct, frozen=True):
    """A comparison as its events tell it; `started` is None before anything was said."""

    started: ComparisonStarted | None = None
    judged: ComparisonJudged | None = None


def evolve(comparison: Comparison, event: Event) -> Comparison:
    match event:
        case ComparisonStarted():
            return Comparison(event)
        case ComparisonJudged():
            return replace(comparison, judged=event)


AGGREGATE = Aggregate("comparison", Comparison(), evolve, owner=lambda one: one.started.owner if one.started else "")


# Decisions


def start(
    comparison: Comparison,
    *,
    owner: str,
    of_job: UUID,
    rerun_job: UUID | None,
    is_shadow: bool,
    model_version_id: UUID | None,
    tolerance: Tolerance,
    now: datetime,
) -> list[Event]:
    """Hold `rerun_job`, which is submitted with this, against `of_job`, which was looked at by the caller."""
    if comparison.started is not None:
        return []
    require_tolerance(tolerance)
    return [
        ComparisonStarted(
            at=now,
            owner=owner,
            of_job=of_job,
            rerun_job=rerun_job,
            purpose="shadow" if is_shadow else "rerun",
            model_version_id=model_version_id,
            tolerance=tolerance,
        )
    ]


def judge(
    comparison: Comparison, *, differences: tuple[Difference, ...], first: Ran, second: Ran, now: datetime
) -> list[Event]:
    """Both runs brought a result, and this is how their outputs lie to each other. Said once."""
    started = _require_started(comparison)
    if comparison.judged is not None:
        return []
    require_within("the number of differences", len(differences), 0, DIFFERENCES_MAX)
    found = verdict_of(differences, started.tolerance)
    return [ComparisonJudged(at=now, verdict=found, differences=differences, first=first, second=second)]


def give_up(comparison: Comparison, *, reason: str, now: datetime) -> list[Event]:
    """There is nothing to compare: the second run failed, or the outputs of one of them are gone."""
    _require_started(comparison)
    if comparison.judged is not None:
        return []
    return [ComparisonJudged(at=now, verdict="failed", reason=storable(reason, REASON_CHARS_MAX))]


# Questions


def rerun_id(comparison_id: UUID) -> UUID:
    """The job that a comparison submits."""
    return derived_id("rerun", comparison_id)


def shadow_comparison_id(model_version_id: UUID, of_job: UUID) -> UUID:
    """Of a job on a candidate: there is one, however many shadows ask for it."""
    return derived_id("shadow-comparison", model_version_id, of_job)


def require_result(job: Job) -> JobCompleted:
    """What it brought.

    Raises:
        NotFound: no such job, or deleted.
        InvalidState: it is not completed.
    """
    require_present(job)
    if job.result is None:
        raise InvalidState(f"the job is {job.status}; only a completed one can be run again")
    return job.result


def require_tolerance(tolerance: Tolerance) -> None:
    """Raises: Invalid: a bound is negative, or no number."""
    require_within("channel_max", tolerance.channel_max, 0, CHANNEL_MAX)
    for name in ("number_max", "psnr_db_min"):
        value = getattr(tolerance, name)
        if not (math.isfinite(value) and value >= 0):
            raise Invalid(f"{name} is a number of 0 or more, not {value}")


def verdict_of(differences: tuple[Difference, ...], tolerance: Tolerance) -> Verdict:
    """The worst of them. Two runs without any output are identical."""
    found = {_verdict(one, tolerance) for one in differences}
    return next((verdict for verdict in ("different", "equivalent") if verdict in found), "identical")


def excess(differences: tuple[Difference, ...], tolerance: Tolerance) -> float:
    """How many times its tolerance the worst output is away; infinite where it cannot be told."""
    return max((_excess(one, tolerance) for one in differences), default=0.0)


def distance(first: Any, second: Any) -> tuple[float | None, str]:
    """The largest difference between numbers at the same place of two JSON values, all else of which is equal; or None
    and where they differ otherwise.
    """
    most = 0.0
    waiting: list[tuple[str, Any, Any]] = [("$", first, second)]
    while waiting:
        path, one, other = waiting.pop()
        inside = _inside(one, other)
        if inside is not None:
            for step, a, b in inside:
                if isinstance(a, dict | list):
                    waiting.append((f"{path}{step}"[:PATH_CHARS_MAX], a, b))
                elif (apart := _apart(a, b)) is None:
                    return None, storable(f"they differ at {path}{step}"[:PATH_CHARS_MAX], REASON_CHARS_MAX)
                else:
                    most = max(most, apart)
        elif (apart := _apart(one, other)) is None:
            return None, storable(f"they differ at {path}", REASON_CHARS_MAX)
        else:
            most = max(most, apart)
    return most, ""


def _inside(one: Any, other: Any) -> Iterator[tuple[str, Any, Any]] | None:
    """What two containers of one shape hold at the same places; None where they are not two such."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return ((f".{name}", one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return ((f"[{n}]", a, b) for n, (a, b) in enumerate(zip(one, other, strict=True)))
    return None


def _apart(one: Any, other: Any) -> float | None:
    """How far two values are; None where that is no finite number."""
    if not (_is_number(one) and _is_number(other)):
        return 0.0 if type(one) is type(other) and one == other else None
    try:
        apart = float(abs(one - other))
    except OverflowError:
        return None
    return apart if math.isfinite(apart) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _verdict(difference: Difference, tolerance: Tolerance) -> Verdict:
    if difference.sha256 == difference.second_sha256:
        return "identical"
    if difference.distance_max is None:
        return "different"
    if difference.measure == "numbers":
        return "equivalent" if difference.distance_max <= tolerance.number_max else "different"
    close = difference.distance_max <= tolerance.channel_max
    alike = difference.psnr_db is not None and difference.psnr_db >= tolerance.psnr_db_min
    return "equivalent" if close or alike else "different"


def _excess(difference: Difference, tolerance: Tolerance) -> float:
    if _verdict(difference, tolerance) == "identical":
        return 0.0
    if difference.distance_max is None:
        return math.inf
    bound = tolerance.number_max if difference.measure == "numbers" else tolerance.channel_max
    return difference.distance_max / bound if bound else difference.distance_max


def _require_started(comparison: Comparison) -> ComparisonStarted:
    if comparison.started is None:
        raise NotFound("no such comparison")
    return comparison.started
