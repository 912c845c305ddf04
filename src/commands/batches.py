"""Commands about batches: of whoever asks for one, and of the clock, which cancels their jobs and tells their end."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from ..domain import assets, batches, jobs, kinds, sessions
from ..domain.batches import Batch, Counts
from ..domain.jobs import Job
from ..domain.kernel import InvalidState, NotFound, require_within
from . import quotas
from .jobs import ended, parsed, pinned_model, say
from .transaction import Loaded, Transaction

STREAMS_PER_READ = 200
JOBS_PER_TURN = 200  # decided at a stretch; then whatever else this process serves has a turn


class JobOfBatch(Struct, frozen=True, kw_only=True):
    """What is the job's own.

    Attributes:
        params: over those of the batch.
        ref: what the caller calls it.
    """

    params: dict[str, Any] = {}
    inputs: tuple[UUID, ...] = ()
    ref: str | None = None


class SubmitBatch(Struct, frozen=True, kw_only=True):
    """Ask for many pieces of computing at once; all of them or none.

    Attributes:
        params: of the kind, for every job.
        model_version_id: another version than the task's active one, for every job.
        pending_max: how many jobs of the kind may wait, these included.
    """

    batch_id: UUID
    kind: str
    members: Sequence[JobOfBatch]
    params: dict[str, Any] = {}
    session_id: UUID | None = None
    model_version_id: UUID | None = None
    priority: int = jobs.PRIORITY_DEFAULT
    timeout_s: int = jobs.TIMEOUT_S_DEFAULT
    attempts_max: int = jobs.ATTEMPTS_DEFAULT
    not_before: datetime | None = None
    pending_max: int


class CancelBatch(Struct, frozen=True, kw_only=True):
    batch_id: UUID


class CancelJobOfBatch(Struct, frozen=True, kw_only=True):
    batch_id: UUID
    job_id: UUID


class CompleteBatch(Struct, frozen=True, kw_only=True):
    """`counts`: as they were found, every job ended."""

    batch_id: UUID
    counts: Counts


async def submit_batch(tx: Transaction, command: SubmitBatch) -> Loaded[Batch]:
    """One append holds the batch and all of its jobs."""
    batch = await tx.create(batches.AGGREGATE, command.batch_id)
    await tx.end_if_repeated()  # or all of it would be decided and sent, to learn that it was there before
    tx.say(
        batch,
        batches.submit(
            batch.state, owner=tx.caller.actor, kind=command.kind, total=len(command.members), now=tx.caller.now
        ),
    )
    # All that may be refused comes before the first job: before a refusal that rests on a cache, every stream that was
    # touched by then is asked whether it moved.
    params = await _parsed(command)
    if command.session_id is not None:
        sessions.require_active(await tx.look(sessions.AGGREGATE, command.session_id), tx.caller.now)
    await _require_clean(tx, command.members)
    version_id, sha256 = await pinned_model(tx, kinds.KINDS[command.kind], command.model_version_id)
    for number, one in enumerate(command.members, 1):
        job = await tx.create(jobs.AGGREGATE, batches.job_id(command.batch_id, number))
        events = jobs.submit(
            job.state,
            kind=command.kind,
            owner=tx.caller.actor,
            inputs=one.inputs,
            params=params[number - 1],
            session_id=command.session_id,
            batch_id=command.batch_id,
            model_version_id=version_id,
            model_sha256=sha256,
            priority=command.priority,
            timeout_s=command.timeout_s,
            attempts_max=command.attempts_max,
            counted=await quotas.reserve_job(tx, job.stream_id),
            not_before=command.not_before,
            ref=one.ref,
            now=tx.caller.now,
        )
        say(tx, job, events, pending_max=command.pending_max)
        await _give_way(number)
    return batch


async def cancel_batch(tx: Transaction, command: CancelBatch) -> Loaded[Batch]:
    batch = await tx.load(batches.AGGREGATE, command.batch_id)
    return tx.say(batch, batches.cancel(batch.state, by=tx.caller.actor, now=tx.caller.now))


async def cancel_job_of_batch(tx: Transaction, command: CancelJobOfBatch) -> Loaded[Job]:
    """On behalf of whoever cancelled the batch.

    Raises:
        InvalidState: nobody did, or the batch was over since; or the job is.
    """
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    batch = await tx.look(batches.AGGREGATE, command.batch_id)
    if jobs.require_present(job.state).batch_id != command.batch_id:
        raise NotFound("no such job in this batch")
    if batch.cancelled is None or not batches.is_cancelling(batch):
        raise InvalidState("the batch is not being cancelled")
    return await ended(tx, job, jobs.cancel(job.state, by=batch.cancelled.by, now=tx.caller.now))


async def complete_batch(tx: Transaction, command: CompleteBatch) -> Loaded[Batch]:
    batch = await tx.load(batches.AGGREGATE, command.batch_id)
    return tx.say(batch, batches.complete(batch.state, counts=command.counts, now=tx.caller.now))


async def _parsed(command: SubmitBatch) -> list[dict[str, Any]]:
    """The parameters of each job, those of the batch and defaults filled in.

    Raises:
        UnknownKind: no such kind.
        InvalidParameters: what one of them asks for is not what the kind takes.
    """
    found = []
    for number, one in enumerate(command.members, 1):
        try:
            found.append(parsed(command.kind, {**command.params, **one.params}, one.inputs)[1])
        except kinds.InvalidParameters as error:
            raise kinds.InvalidParameters(f"job {number}: {error.detail}") from error
        await _give_way(number)
    return found


async def _require_clean(tx: Transaction, wanted: Sequence[JobOfBatch]) -> None:
    """Every input is there and may be read; looked up many at a time."""
    ids = list(dict.fromkeys(asset_id for one in wanted for asset_id in one.inputs))
    require_within("the number of different inputs", len(ids), 0, batches.INPUTS_MAX)
    for start in range(0, len(ids), STREAMS_PER_READ):
        some = ids[start : start + STREAMS_PER_READ]
        await tx.commands.fold_streams(assets.AGGREGATE, some)
        for asset_id in some:
            assets.require_clean(await tx.look(assets.AGGREGATE, asset_id))


async def _give_way(number: int) -> None:
    if number % JOBS_PER_TURN == 0:
        await asyncio.sleep(0)
