"""Commands about a job that is run again: by whom it was asked for, and by the worker that compares."""

from uuid import UUID

from msgspec import Struct

from ..domain import comparisons, jobs
from ..domain.comparisons import Comparison, Difference, Ran, Tolerance
from .jobs import SubmitJob, submit_job
from .transaction import Loaded, Transaction


class StartComparison(Struct, frozen=True, kw_only=True):
    """Submit a completed job again, with its own inputs and parameters, and compare.

    Attributes:
        candidate: another version than the one that the job was pinned to: then this is part of a shadow.
    """

    comparison_id: UUID
    of_job: UUID
    tolerance: Tolerance
    candidate: UUID | None = None
    priority: int = jobs.PRIORITY_DEFAULT
    pending_max: int


class RefuseComparison(Struct, frozen=True, kw_only=True):
    """Of a shadow: the job cannot be submitted again on the candidate, and why."""

    comparison_id: UUID
    of_job: UUID
    candidate: UUID
    tolerance: Tolerance
    reason: str


class JudgeComparison(Struct, frozen=True, kw_only=True):
    comparison_id: UUID
    differences: tuple[Difference, ...]
    first: Ran
    second: Ran


class GiveUpComparison(Struct, frozen=True, kw_only=True):
    comparison_id: UUID
    reason: str


async def start_comparison(tx: Transaction, command: StartComparison) -> Loaded[Comparison]:
    """The job and its comparison begin together, or neither does. Whoever asks owns both."""
    comparison = await tx.create(comparisons.AGGREGATE, command.comparison_id)
    if comparison.state.started is not None:
        return comparison
    job = await tx.look(jobs.AGGREGATE, command.of_job)
    comparisons.require_result(job)
    asked = jobs.require_present(job)
    version_id = command.candidate or asked.model_version_id
    again = SubmitJob(
        job_id=comparisons.rerun_id(command.comparison_id),
        kind=asked.kind,
        inputs=asked.inputs,
        params=asked.params,
        model_version_id=version_id,
        priority=command.priority,
        timeout_s=asked.timeout_s,
        attempts_max=asked.attempts_max,
        pending_max=command.pending_max,
    )
    rerun = await submit_job(tx, again)
    events = comparisons.start(
        comparison.state,
        owner=tx.caller.actor,
        of_job=command.of_job,
        rerun_job=rerun.stream_id,
        is_shadow=command.candidate is not None,
        model_version_id=version_id,
        tolerance=command.tolerance,
        now=tx.caller.now,
    )
    return tx.say(comparison, events)


async def refuse_comparison(tx: Transaction, command: RefuseComparison) -> Loaded[Comparison]:
    comparison = await tx.create(comparisons.AGGREGATE, command.comparison_id)
    if comparison.state.started is not None:
        return comparison
    events = comparisons.start(
        comparison.state,
        owner=tx.caller.actor,
        of_job=command.of_job,
        rerun_job=None,
        is_shadow=True,
        model_version_id=command.candidate,
        tolerance=command.tolerance,
        now=tx.caller.now,
    )
    tx.say(comparison, events)
    return tx.say(comparison, comparisons.give_up(comparison.state, reason=command.reason, now=tx.caller.now))


async def judge_comparison(tx: Transaction, command: JudgeComparison) -> Loaded[Comparison]:
    comparison = await tx.load(comparisons.AGGREGATE, command.comparison_id)
    events = comparisons.judge(
        comparison.state,
        differences=command.differences,
        first=command.first,
        second=command.second,
        now=tx.caller.now,
    )
    return tx.say(comparison, events)


async def give_up_comparison(tx: Transaction, command: GiveUpComparison) -> Loaded[Comparison]:
    comparison = await tx.load(comparisons.AGGREGATE, command.comparison_id)
    return tx.say(comparison, comparisons.give_up(comparison.state, reason=command.reason, now=tx.caller.now))
