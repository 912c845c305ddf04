"""P4: how soon a job that does nothing is done, where nothing else waits.

One at a time, on a worker that waits. Ours until its completion was read in the log by the client that asked for it.
SAQ's until it ran, which is before SAQ has written that it did; and until SAQ's own client has the result, for which it
looks twice a second unless told otherwise.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
from msgspec import Struct

from sightline.adapters import logs, settings
from sightline.adapters.event_store.codec import Recorded
from sightline.adapters.event_store.reader import Tail
from sightline.adapters.ids import uuid7
from sightline.commands import jobs
from sightline.workers import lifecycle
from sightline.workers.lifecycle import Services

from . import measure
from .p3_jobs import ROOT, Ours, Peer, submit, systems

JOBS = 300
CANCELLED_JOBS = 50
TOLD_JOBS = 30  # of those that take half a second each
REST_S = 0.02
NOOP_JOBS = str(ROOT / "benchmarks/peers/noop_jobs.py")
STEPS = {"job.submitted": "submitted", "job.started": "started", "job.completed": "completed"}


class Took(Struct, frozen=True):
    """One job of ours; milliseconds from before its submission.

    Attributes:
        steps: until each event was recorded, by the database's clock, which is this machine's.
    """

    read_ms: float
    steps: dict[str, float]


class Client:
    """Of ours: says what it wants, and follows the log."""

    def __init__(self, services: Services, tail: Tail) -> None:
        self._services = services
        self._tail = tail

    async def took(self) -> Took:
        """One job."""
        began = time.time()
        receipt = await submit(self._services)
        seen = await self._until(receipt, "job.completed")
        read_ms = (time.time() - began) * 1000
        steps = {STEPS[one.topic]: (one.recorded_at.timestamp() - began) * 1000 for one in seen}
        return Took(read_ms, steps)

    async def cancelled(self) -> float:
        """Milliseconds from asking that a running job be cancelled until the log says that it was."""
        receipt = await submit(self._services, params={"sleep_s": 60})
        await self._until(receipt, "job.started")
        began = time.time()
        by = lifecycle.by_itself("local", uuid7())
        asked = await self._services.commands.execute(jobs.cancel_job, jobs.CancelJob(job_id=receipt.stream_id), by)
        await self._until(asked, "job.cancelled")
        return (time.time() - began) * 1000

    async def _until(self, receipt: Any, topic: str) -> list[Recorded]:
        """The job's events, from the receipt's on."""
        seen: list[Recorded] = []
        position = receipt.position - 1
        while not any(one.topic == topic for one in seen):
            if page := await self._services.store.reader.page(after=position):
                seen += [one for one in page if one.stream_id == receipt.stream_id]
                position = page[-1].id
            else:
                await self._tail.wait()
        return seen


class Times(Struct, frozen=True):
    took: list[Took]
    cancelled_ms: list[float]


async def measured() -> Times:
    """All jobs of ours, one after another."""
    given = settings.read()
    logs.configure(given)
    found = Times([], [])
    async with (
        lifecycle.open_services(given) as services,
        Tail(given.database_direct_url or given.database_url) as tail,
    ):
        client = Client(services, tail)
        for _ in range(JOBS):
            found.took.append(await client.took())
            await asyncio.sleep(REST_S)
        for _ in range(CANCELLED_JOBS):
            found.cancelled_ms.append(await client.cancelled())
    return found


def ours(system: Ours) -> Times:
    with system.process("project"), system.process("work"):
        return msgspec.json.decode(system.python("-m", "benchmarks.p4_rest"), type=Times)


def ran_ms(peer: Peer, count: int) -> list[float]:
    times = peer.directory / f"ran-{time.monotonic_ns()}"
    with peer.working(1, times):
        said = peer.run([NOOP_JOBS, "wait", str(count)], module=False, environ={"TIMES": str(times)})
    return msgspec.json.decode(said, type=list[float])


def told_ms(peer: Peer, count: int) -> list[float]:
    with peer.working(1, peer.directory / "told"):
        return msgspec.json.decode(peer.run([NOOP_JOBS, "told", str(count)], module=False), type=list[float])


def run(*, rounds: int, seconds: float) -> None:  # noqa: ARG001  # a taking lasts as long as its jobs take
    """Measure, print, and keep the table; `rounds` times in turn."""
    took: list[Took] = []
    cancelled: list[float] = []
    ran: list[float] = []
    told: list[float] = []
    with ExitStack() as stack:
        given = systems(stack)
        saq = given.peers["saq"]
        for _ in range(rounds):
            times = ours(given.ours)
            took += times.took
            cancelled += times.cancelled_ms
            ran += ran_ms(saq, JOBS)
            told += told_ms(saq, TOLD_JOBS)
    steps = {f"sightline: {name} in the log": [one.steps[name] for one in took] for name in STEPS.values()}
    show(
        {
            **steps,
            "sightline: read by its client": [one.read_ms for one in took],
            "saq: run": ran,
            "saq: known to its client": told,
            "sightline: cancelled while it ran, from asking on": cancelled,
        }
    )


def show(took: Mapping[str, Sequence[float]]) -> None:
    rows = []
    for name, each in took.items():
        cuts = statistics.quantiles(each, n=100)
        rows.append(
            (
                name,
                f"{statistics.median(each):.1f}",
                f"{cuts[89]:.1f}",
                f"{cuts[98]:.1f}",
                f"{max(each):.1f}",
                f"{len(each):,}",
            )
        )
    measure.show(
        "P4: from submitting a job at rest, in milliseconds",
        ("until it was", "p50", "p90", "p99", "longest", "jobs"),
        rows,
        "p4",
        (
            (
                f"One after another, {REST_S * 1000:g} ms apart, on one worker that waits. Ours is on a disk three"
                " times by the end; what SAQ has then is in memory. SAQ's client looks for a result every half second"
                " unless told otherwise; ours is woken by the log. Goal: p50 at most SAQ's, p99 at most twice SAQ's."
            ),
        ),
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(measured())))
