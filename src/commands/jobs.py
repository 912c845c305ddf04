"""Commands of whoever asks for a job. Those of its worker and of the clock are in `attempts`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from ..adapters.hints import Candidate
from ..domain import assets, jobs, kinds, model_slots, models, sessions, unique_keys
from ..domain.jobs import Job
from ..domain.kernel import InvalidState, NotFound, QueueFull
from . import queues, quotas
from .transaction import Loaded, Transaction


class NoActiveModel(InvalidState):
    """The kind needs a model and its task has no active version."""

    code = "no_active_model"


class SubmitJob(Struct, frozen=True, kw_only=True):
    """Ask for one piece of computing.

    Attributes:
        params: of the kind; unknown ones are refused, missing ones get its defaults.
        model_version_id: another version than the task's active one.
        not_before: when its first attempt may begin.
        unique_key: of which the owner has one unfinished job of this kind.
        pending_max: how many jobs of the kind may wait, this one included.
    """

    job_id: UUID
    kind: str
    inputs: tuple[UUID, ...] = ()
    params: dict[str, Any] = {}
    session_id: UUID | None = None
    model_version_id: UUID | None = None
    priority: int = jobs.PRIORITY_DEFAULT
    timeout_s: int = jobs.TIMEOUT_S_DEFAULT
    attempts_max: int = jobs.ATTEMPTS_DEFAULT
    callback_url: str | None = None
    not_before: datetime | None = None
    unique_key: str | None = None
    pending_max: int


class CancelJob(Struct, frozen=True, kw_only=True):
    job_id: UUID


class RequeueJob(Struct, frozen=True, kw_only=True):
    job_id: UUID


class DeleteJob(Struct, frozen=True, kw_only=True):
    job_id: UUID


class ExpireJob(Struct, frozen=True, kw_only=True):
    job_id: UUID


async def submit_job(tx: Transaction, command: SubmitJob) -> Loaded[Job]:
    kind, params = parsed(command.kind, command.params, command.inputs)
    job = await tx.create(jobs.AGGREGATE, command.job_id)
    if job.state.status is None:
        if command.session_id is not None:
            sessions.require_active(await tx.look(sessions.AGGREGATE, command.session_id), tx.caller.now)
        for asset_id in command.inputs:
            assets.require_clean(await tx.look(assets.AGGREGATE, asset_id))
    version_id, sha256 = await pinned_model(tx, kind, command.model_version_id)
    counted = job.state.status is None and await quotas.reserve_job(tx, command.job_id)
    events = jobs.submit(
        job.state,
        kind=kind.name,
        owner=tx.caller.actor,
        inputs=command.inputs,
        params=params,
        session_id=command.session_id,
        model_version_id=version_id,
        model_sha256=sha256,
        priority=command.priority,
        timeout_s=command.timeout_s,
        attempts_max=command.attempts_max,
        callback_url=command.callback_url,
        counted=counted,
        not_before=command.not_before,
        unique_key=command.unique_key,
        now=tx.caller.now,
    )
    await take_unique_key(tx, job.stream_id, events)
    return say(tx, job, events, pending_max=command.pending_max)


async def cancel_job(tx: Transaction, command: CancelJob) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    return await ended(tx, job, jobs.cancel(job.state, by=tx.caller.actor, now=tx.caller.now))


async def requeue_job(tx: Transaction, command: RequeueJob) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    events = jobs.requeue(job.state, by=tx.caller.actor, now=tx.caller.now)
    if events and job.state.submitted is not None:
        # Another may have taken its key since it was over.
        await take_unique_key(tx, job.stream_id, [job.state.submitted])
    return say(tx, job, events)


async def delete_job(tx: Transaction, command: DeleteJob) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    return await ended(tx, job, jobs.delete(job.state, by=tx.caller.actor, now=tx.caller.now))


async def expire_job(tx: Transaction, command: ExpireJob) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    return await ended(tx, job, jobs.expire(job.state, now=tx.caller.now))


async def ended(tx: Transaction, job: Loaded[Job], events: list[jobs.Event]) -> Loaded[Job]:
    """Say how a job ended, if it did, and settle what it was counted for."""
    before = job.state
    say(tx, job, events)
    await quotas.settle(tx, job.stream_id, before, job.state)
    return job


async def take_unique_key(tx: Transaction, job_id: UUID, events: Sequence[jobs.Event]) -> None:
    """For a job that is about to wait: take the key that its submission, if it is among `events`, asks for.

    Raises:
        JobExists: a job that is not over holds it.
    """
    for submitted in events:
        if isinstance(submitted, jobs.JobSubmitted) and submitted.unique_key is not None:
            owner, kind, key = submitted.owner, submitted.kind, submitted.unique_key
            unique = await tx.load(unique_keys.AGGREGATE, unique_keys.unique_key_id(owner, kind, key))
            holder = unique.state.holder
            over = holder is None or jobs.is_terminal(await tx.look(jobs.AGGREGATE, holder))
            said = unique_keys.take(
                unique.state, owner=owner, kind=kind, key=key, job_id=job_id, holder_over=over, now=tx.caller.now
            )
            tx.say(unique, said)


def parsed(name: str, params: dict[str, Any], inputs: Sequence[UUID]) -> tuple[kinds.Kind, dict[str, Any]]:
    """The kind and its parameters, defaults filled in.

    Raises:
        UnknownKind: no such kind.
        InvalidParameters: what was asked for is not what the kind takes.
    """
    kind, found = kinds.parse(name, params)
    if len(inputs) != kind.inputs:
        raise kinds.InvalidParameters(f"{kind.name} takes {kind.inputs} inputs, not {len(inputs)}")
    return kind, msgspec.to_builtins(found)


async def pinned_model(
    tx: Transaction, kind: kinds.Kind, version_id: UUID | None
) -> tuple[UUID, str] | tuple[None, None]:
    """The version that a job submitted now runs on, whatever is activated later."""
    if kind.task is None:
        if version_id is not None:
            raise kinds.InvalidParameters(f"{kind.name} takes no model")
        return None, None
    chosen = version_id
    if chosen is None:
        chosen = (await tx.look(model_slots.AGGREGATE, model_slots.slot_id(kind.task))).active
    if chosen is None:
        raise NoActiveModel(f"no model is active for {kind.task}")
    model = await tx.look(models.AGGREGATE, chosen)
    if model.status is None:
        raise NotFound("no such model")
    if model.task != kind.task:
        raise kinds.InvalidParameters(f"the model is for {model.task}, {kind.name} needs {kind.task}")
    if model.status != "synced" or model.sha256 is None:
        raise model_slots.ModelNotSynced(f"the model is {model.status}")
    return chosen, model.sha256


def say(tx: Transaction, job: Loaded[Job], events: list[jobs.Event], *, pending_max: int | None = None) -> Loaded[Job]:
    """Say `events`, count the job in or out of those that wait for its kind, for later ones too, and of those that run,
    and hint at it if it waits now.
    """
    before = job.state
    waited = jobs.is_pending(before)
    tx.say(job, events)
    queues.leave(tx, before, job.state)
    waits = jobs.is_pending(job.state)
    submitted = job.state.submitted
    if submitted is None or waits == waited:
        return job
    kind = submitted.kind
    refusal = QueueFull(f"{pending_max} {kind} jobs are waiting", retry_after_s=5)
    tx.guard(pending_key(kind), 1 if waits else -1, pending_max if waits else None, refusal)
    if jobs.is_due(job.state, tx.caller.now):
        # A retry that has to wait is offered by the clock when its time has come: a worker would only drop it.
        tx.waiting(Candidate(job.stream_id, kind, submitted.priority, submitted.at, submitted.owner))
    return job


def pending_key(kind: str) -> str:
    """The counter of jobs that wait for a kind."""
    return f"jobs_pending:{kind}"
