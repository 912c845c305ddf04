"""Quotas: limits are a command; reservations are said by the commands that they are for, in the same append.

What is exact. Jobs and bytes: the append that submits a job or announces an upload also moves the day's counter, and is
refused under the log's lock where that would pass the limit. However many ask at once, a day never comes to more.

Seconds of computing: an attempt is charged when it ends, with what it used, for the day on which it ends. That cannot
be refused, since it is used by then. So a job is refused from the moment on that the ended attempts of the day have
reached the limit, exactly; what was admitted before runs to its end, and the day may come to more by those attempts.

Whoever has no limits leaves no trace here: the append only holds that there are none, at no look at the log.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from ..domain import quotas
from ..domain.jobs import Job, is_pending, is_terminal
from ..domain.quotas import RESOURCES, Amounts, Limits, Quota, QuotaExceeded
from .transaction import Loaded, Transaction

# A job takes so much of the day's seconds when it is submitted: the log refuses upward moves, and only those.
ADMISSION_MS = 1


class SetQuotaLimit(Struct, frozen=True, kw_only=True):
    """All of a principal's limits; None: no limit."""

    principal: str
    limits: Limits


async def set_quota_limit(tx: Transaction, command: SetQuotaLimit) -> Loaded[Quota]:
    quota = await tx.load(quotas.AGGREGATE, quotas.limits_id(command.principal))
    events = quotas.set_limits(
        quota.state, principal=command.principal, limits=command.limits, by=tx.caller.actor, now=tx.caller.now
    )
    return tx.say(quota, events)


async def reserve_job(tx: Transaction, job_id: UUID) -> bool:
    """Count a job that is about to be submitted by the caller, and its attempts later; False: the caller has no limits.

    The append is refused with QuotaExceeded where the day has no room.
    """
    return await _reserve(tx, job_id, Amounts(jobs=1, compute_ms=ADMISSION_MS))


async def reserve_upload(tx: Transaction, asset_id: UUID, size_bytes: int) -> bool:
    """Count the bytes of an upload, as announced. They stay counted: its signed URL may bring them until it expires."""
    return await _reserve(tx, asset_id, Amounts(size_bytes=size_bytes))


async def settle(tx: Transaction, job_id: UUID, before: Job, after: Job) -> None:
    """Charge an attempt that ended just now; take back a job that ended before any attempt began. Most jobs are not
    counted, and cost nothing here.
    """
    submitted = after.submitted
    if submitted is None or not submitted.counted:
        return
    if before.status == "processing" and after.status != "processing" and before.started_at is not None:
        used = tx.caller.now - before.started_at
        amounts = Amounts(compute_ms=max(round(used.total_seconds() * 1000), 0))
        await _count(tx, submitted.owner, job_id, quotas.reserved_id(job_id, before.attempt), amounts, Limits())
    elif is_pending(before) and is_terminal(after) and before.attempt == 0:
        reservation = await tx.load(quotas.AGGREGATE, quotas.reserved_id(job_id))
        held = reservation.state
        if tx.say(reservation, quotas.release(held, by=tx.caller.actor, now=tx.caller.now)).said:
            _move(tx, held.principal, str(held.day), held.amounts, -1, Limits())


async def _reserve(tx: Transaction, thing_id: UUID, amounts: Amounts) -> bool:
    principal = tx.caller.actor
    limits = (await tx.look(quotas.AGGREGATE, quotas.limits_id(principal), rare=True)).limits
    if limits is None or limits == Limits():
        return False
    await _count(tx, principal, thing_id, quotas.reserved_id(thing_id), amounts, limits)
    return True


async def _count(
    tx: Transaction, principal: str, thing_id: UUID, stream_id: UUID, amounts: Amounts, limits: Limits
) -> None:
    """Say the reservation, and move the day's counters, none of them past its limit."""
    reservation = await tx.create(quotas.AGGREGATE, stream_id)
    said = quotas.reserve(
        reservation.state, principal=principal, reserved_for=thing_id, amounts=amounts, now=tx.caller.now
    )
    if tx.say(reservation, said).said:
        _move(tx, principal, str(tx.caller.now.date()), amounts, 1, limits)


def _move(tx: Transaction, principal: str, day: str, amounts: Amounts, sign: int, limits: Limits) -> None:
    for resource in RESOURCES:
        if amount := getattr(amounts, resource):
            limit = limits.of(resource)
            tx.guard(counter(principal, day, resource), sign * amount, limit, _refusal(resource, tx.caller.now))


def counter(principal: str, day: str, resource: quotas.Resource) -> str:
    """The counter of what a principal's day (`2026-03-01`) comes to; removed when that day is long over."""
    return f"quota:{day}:{resource}:{quotas.limits_id(principal)}"


_WORDS: dict[quotas.Resource, str] = {
    "jobs": "jobs",
    "size_bytes": "bytes of uploads",
    "compute_ms": "seconds of computing",
}


def _refusal(resource: quotas.Resource, now: datetime) -> QuotaExceeded:
    return QuotaExceeded(f"the day's {_WORDS[resource]} are used up", retry_after_s=quotas.day_ends_in_s(now))
