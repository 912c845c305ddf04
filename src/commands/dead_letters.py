"""Dead letters in bulk: each is requeued by a command of its own, whose id follows from the letter."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from ..adapters.event_store.writer import StoreBusy, StoreUnavailable
from ..domain.access import NotAuthenticated
from ..domain.kernel import Caller, Rejection, derived_id
from .jobs import RequeueJob, requeue_job
from .transact import Commands

AT_ONCE = 64


class Requeued(Struct, frozen=True):
    """What became of some letters.

    Attributes:
        requeued: that wait again.
        skipped: that do not, since they are no dead letters any more, or another job has their unique key; by code.
        position: of the last event that this led to, 0 where it led to none.
    """

    requeued: int
    skipped: dict[str, int]
    position: int


async def requeue_all(commands: Commands, letters: Sequence[tuple[UUID, int]], caller: Caller) -> Requeued:
    """Requeue each (job, attempt that was its last), AT_ONCE at a time. The same letter again is the same command:
    whoever repeats this, or was cut off, requeues none twice.

    Raises:
        StoreBusy, StoreUnavailable, psycopg.OperationalError: the log takes nothing now; some may be requeued already.
        NotAuthenticated: the caller is nobody any more.
    """
    requeued, skipped, position = 0, dict[str, int](), 0
    left = iter(letters)

    async def work() -> None:
        nonlocal requeued, position
        for job_id, attempt in left:
            command_id = derived_id("requeue-dead-letter", job_id, attempt)
            own = replace(caller, command_id=command_id, request_digest="", earlier_digests=())
            try:
                receipt = await commands.execute(requeue_job, RequeueJob(job_id=job_id), own)
            except (StoreBusy, StoreUnavailable, NotAuthenticated):
                raise  # says nothing of this letter, and would be said of all that are left
            except Rejection as rejection:
                skipped[rejection.code] = skipped.get(rejection.code, 0) + 1
                continue
            if receipt.repeat or not receipt.events:
                skipped["repeated"] = skipped.get("repeated", 0) + 1
            else:
                requeued, position = requeued + 1, max(position, receipt.position)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(AT_ONCE, len(letters))):
                workers.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from group  # what each of them met; a group has no answer of its own at the door
    return Requeued(requeued, skipped, position)
