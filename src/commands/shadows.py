"""Commands about shadows: begin one on a candidate, and say what all of it came to."""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from ..domain import model_slots, models, shadows
from ..domain.comparisons import Tolerance
from ..domain.kernel import Invalid, NotFound
from ..domain.kinds import KINDS
from ..domain.shadows import Result, Shadow
from .transaction import Loaded, Transaction


class StartShadow(Struct, frozen=True, kw_only=True):
    """Attributes:
    kinds: of jobs; those that need the candidate's task.
    sample: completed jobs of these kinds, from `since` until `until`.
    """

    shadow_id: UUID
    model_id: UUID
    kinds: tuple[str, ...]
    since: datetime
    until: datetime
    sample: tuple[UUID, ...]
    tolerance: Tolerance


class JudgeShadow(Struct, frozen=True, kw_only=True):
    shadow_id: UUID
    results: tuple[Result, ...]


async def start_shadow(tx: Transaction, command: StartShadow) -> Loaded[Shadow]:
    shadow = await tx.create(shadows.AGGREGATE, command.shadow_id)
    model = await tx.look(models.AGGREGATE, command.model_id)
    if model.status is None:
        raise NotFound("no such model")
    if model.status != "synced":
        raise model_slots.ModelNotSynced(f"the model is {model.status}")
    if not command.kinds or not set(command.kinds) <= set(kinds_of(model.task)):
        raise Invalid(f"the kinds that need {model.task} are: {', '.join(kinds_of(model.task)) or 'none'}")
    events = shadows.start(
        shadow.state,
        model_id=command.model_id,
        task=model.task,
        kinds=command.kinds,
        since=command.since,
        until=command.until,
        sample=command.sample,
        tolerance=command.tolerance,
        by=tx.caller.actor,
        now=tx.caller.now,
    )
    return tx.say(shadow, events)


async def judge_shadow(tx: Transaction, command: JudgeShadow) -> Loaded[Shadow]:
    shadow = await tx.load(shadows.AGGREGATE, command.shadow_id)
    return tx.say(shadow, shadows.judge(shadow.state, results=command.results, now=tx.caller.now))


def kinds_of(task: str) -> tuple[str, ...]:
    """The kinds of job that need a model for this task."""
    return tuple(kind.name for kind in KINDS.values() if kind.task == task)
