"""P4: how soon a job that does nothing is done, where nothing else waits.

One at a time, on a worker that waits. Ours until its completion was read in the log by the client that asked for it.
SAQ's until it ran, which is before SAQ has written that it did; and until SAQ's own client has the result, for which it
looks twice a second unless told otherwise.
"""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec
from msgspec import Struct

from sightline.adapters import logs, settings
from sightline.adapters.event_store.codec import Recorded
from sightline.adapters.event_store.reader import Tail
from sightline.workers import lifecycle

from . import measure
from .p3_jobs import ROOT, Ours, Peer, submit, systems

JOBS = 300
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


async def wait(count: int) -> list[Took]:
    """So many jobs of ours, one after another."""
    given = settings.read()
    logs.configure(given)
    took = []
    async with (
        lifecycle.open_services(given) as services,
        Tail(given.database_direct_url or given.database_url) as tail,
    ):
        for _ in range(count):
            began = time.time()
            receipt = await submit(services)
            seen: list[Recorded] = []
            position = receipt.position - 1
            while not any(one.topic == "job.completed" for one in seen):
                if page := await services.store.reader.page(after=position):
                    seen += [one for one in page if one.stream_id == receipt.stream_id]
                    position = page[-1].id
                else:
                    await tail.wait()
            read_ms = (time.time() - began) * 1000
            steps = {STEPS[one.topic]: (one.recorded_at.timestamp() - began) * 1000 for one in seen}
            took.append(Took(read_ms, steps))
            await asyncio.sleep(REST_S)
    return took


def ours_ms(ours: Ours, count: int) -> list[Took]:
    with ours.running(1):
        return msgspec.json.decode(ours.python("-m", "benchmarks.p4_rest", str(count)), type=list[Took])


def ran_ms(peer: Peer, directory: Path, count: int) -> list[float]:
    times = directory / f"ran-{time.monotonic_ns()}"
    with peer.working(1, times):
        said = peer.run([NOOP_JOBS, "wait", str(count)], module=False, environ={"TIMES": str(times)})
    return msgspec.json.decode(said, type=list[float])


def told_ms(peer: Peer, directory: Path, count: int) -> list[float]:
    with peer.working(1, directory / "told"):
        return msgspec.json.decode(peer.run([NOOP_JOBS, "told", str(count)], module=False), type=list[float])


def run(*, rounds: int, seconds: float) -> None:  # noqa: ARG001  # a taking lasts as long as its jobs take
    """Measure, print, and keep the table; `rounds` times in turn."""
    ours: list[Took] = []
    ran: list[float] = []
    told: list[float] = []
    with ExitStack() as stack:
        given = systems(stack)
        saq = given.peers["saq"]
        for _ in range(rounds):
            ours += ours_ms(given.ours, JOBS)
            ran += ran_ms(saq, saq.directory, JOBS)
            told += told_ms(saq, saq.directory, TOLD_JOBS)
    steps = {
        f"sightline, {name} in the log": [one.steps[name] for one in ours]
        for name in ("submitted", "started", "completed")
    }
    show(
        {
            **steps,
            "sightline, read by its client": [one.read_ms for one in ours],
            "saq, ran": ran,
            "saq, known to its client": told,
        }
    )


def show(took: Mapping[str, Sequence[float]]) -> None:
    rows = []
    for name, each in took.items():
        cuts = statistics.quantiles(each, n=100)
        rows.append((name, f"{statistics.median(each):.1f}", f"{cuts[89]:.1f}", f"{cuts[98]:.1f}", f"{len(each):,}"))
    measure.show(
        "P4: from submitting a job at rest, in milliseconds",
        ("until it was", "p50", "p90", "p99", "jobs"),
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


@click.command()
@click.argument("count", type=int)
def main(count: int) -> None:
    """Print what so many jobs of ours took; in a process of its own, as a client is."""
    click.echo(msgspec.json.encode(asyncio.run(wait(count))))


if __name__ == "__main__":
    main()
