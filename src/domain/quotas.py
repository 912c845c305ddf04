"""A quota: how much a principal may ask for in one day (UTC).

Two sorts of streams. One per principal says its limits, set and set again. And each thing that counts (a job, an
upload, the seconds of an attempt) has a reservation of its own, which is held or released. What a day comes to is a
counter that the log moves with the append (commands/quotas.py): a stream that all of a principal's jobs write to would
make them wait for each other, and a worker's result could lose against its owner's next request.
"""

from datetime import date, datetime, time, timedelta
from math import ceil
from typing import Literal, get_args
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .kernel import Aggregate, Rejection, derived_id, require_within

Resource = Literal["jobs", "size_bytes", "compute_ms"]
RESOURCES: tuple[Resource, ...] = get_args(Resource)
AMOUNT_MAX = 2**53
PRINCIPAL_CHARS_MAX = 200


class Amounts(Struct, frozen=True):
    """How much of each.

    Attributes:
        size_bytes: of uploads, as they are announced.
        compute_ms: of attempts at jobs, from their start to their end.
    """

    jobs: int = 0
    size_bytes: int = 0
    compute_ms: int = 0


class Limits(Struct, frozen=True):
    """What one day may come to; None: anything."""

    jobs_per_day: int | None = None
    bytes_per_day: int | None = None
    compute_s_per_day: int | None = None

    def of(self, resource: Resource) -> int | None:
        """In the resource's own unit."""
        match resource:
            case "jobs":
                return self.jobs_per_day
            case "size_bytes":
                return self.bytes_per_day
            case "compute_ms":
                return None if self.compute_s_per_day is None else self.compute_s_per_day * 1000


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class QuotaLimitSet(Struct, frozen=True, kw_only=True, tag="quota.limit_set"):
    """The principal's limits from now on, all of them; None: no limit."""

    at: datetime
    principal: str
    jobs_per_day: int | None
    bytes_per_day: int | None
    compute_s_per_day: int | None
    by: str


class QuotaReserved(Struct, frozen=True, kw_only=True, tag="quota.reserved"):
    """Counted for `day`, because of the job or the asset `reserved_for`."""

    at: datetime
    principal: str
    day: date
    reserved_for: UUID
    jobs: int = 0
    size_bytes: int = 0
    compute_ms: int = 0


class QuotaReleased(Struct, frozen=True, kw_only=True, tag="quota.released"):
    """It does not count after all."""

    at: datetime
    by: str


Event = QuotaLimitSet | QuotaReserved | QuotaReleased


# State


class Quota(Struct, frozen=True):
    """A principal's limits, or one reservation; neither, before anything was said.

    Attributes:
        day: that the reservation counts for; None where this is about limits.
        held: it still does.
    """

    principal: str = ""
    limits: Limits | None = None
    day: date | None = None
    reserved_for: UUID | None = None
    amounts: Amounts = Amounts()
    held: bool = False


# Rejections


class QuotaExceeded(Rejection):
    code = "quota_exceeded"


def evolve(quota: Quota, event: Event) -> Quota:
    match event:
        case QuotaLimitSet(principal=principal):
            limits = Limits(event.jobs_per_day, event.bytes_per_day, event.compute_s_per_day)
            return Quota(principal, limits)
        case QuotaReserved(principal=principal, day=day, reserved_for=reserved_for):
            amounts = Amounts(event.jobs, event.size_bytes, event.compute_ms)
            return Quota(principal, None, day, reserved_for, amounts, held=True)
        case QuotaReleased():
            return replace(quota, held=False)


AGGREGATE = Aggregate("quota", Quota(), evolve, owner=lambda quota: quota.principal)


# Decisions


def set_limits(quota: Quota, *, principal: str, limits: Limits, by: str, now: datetime) -> list[Event]:
    """From now on, for what was counted today already too."""
    require_within("the length of principal", len(principal), 1, PRINCIPAL_CHARS_MAX)
    for name in limits.__struct_fields__:
        if (value := getattr(limits, name)) is not None:
            require_within(name, value, 0, AMOUNT_MAX // 1000)
    if quota.limits == limits:
        return []
    return [
        QuotaLimitSet(
            at=now,
            principal=principal,
            jobs_per_day=limits.jobs_per_day,
            bytes_per_day=limits.bytes_per_day,
            compute_s_per_day=limits.compute_s_per_day,
            by=by,
        )
    ]


def reserve(quota: Quota, *, principal: str, reserved_for: UUID, amounts: Amounts, now: datetime) -> list[Event]:
    """Count it for today. Whether there is room is the counters' to say, in the same append."""
    if quota.day is not None:
        return []
    for resource in RESOURCES:
        require_within(resource, getattr(amounts, resource), 0, AMOUNT_MAX)
    return [
        QuotaReserved(
            at=now,
            principal=principal,
            day=now.date(),
            reserved_for=reserved_for,
            jobs=amounts.jobs,
            size_bytes=amounts.size_bytes,
            compute_ms=amounts.compute_ms,
        )
    ]


def release(quota: Quota, *, by: str, now: datetime) -> list[Event]:
    """Silent where nothing is held, which is so for everybody without limits."""
    return [QuotaReleased(at=now, by=by)] if quota.held else []


# Questions


def limits_id(principal: str) -> UUID:
    """The stream of a principal's limits."""
    return derived_id("quota-limits", principal)


def reserved_id(thing_id: UUID, attempt: int | None = None) -> UUID:
    """The stream of the reservation for a job, an asset, or the seconds of one attempt."""
    return derived_id("quota-reserved", thing_id, *([] if attempt is None else [attempt]))


def day_ends_in_s(now: datetime) -> int:
    """Whole seconds, rounded up, until another day begins."""
    tomorrow = datetime.combine(now.date() + timedelta(days=1), time(), now.tzinfo)
    return ceil((tomorrow - now).total_seconds())
