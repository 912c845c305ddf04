"""Who is offered again, in which place a job waits, and for how long."""

from datetime import timedelta

import pytest
from psycopg import sql
from tests.conftest_service import Service, by

from sightline.adapters.hints import PRIORITY_STEP
from sightline.adapters.ids import uuid7
from sightline.commands import jobs as commands
from sightline.commands import queues
from sightline.projections import jobs
from sightline.projections.queues import figures, paused_kinds
from sightline.projections.waiting import Estimate, Line, Pace, estimate, passed_by
from sightline.workers import lifecycle
from sightline.workers.clock import Clock

LIMIT = 10


async def submit(service: Service, owner: str, count: int = 1, **changed: object) -> None:
    for _ in range(count):
        command = commands.SubmitJob(job_id=uuid7(), kind="noop", pending_max=1_000, **changed)  # type: ignore[arg-type]  # its fields
        await service.run(commands.submit_job, command, by(owner))


async def flooded(service: Service) -> list[str]:
    """Owners of what is offered again, where one has many that are older than another's."""
    await submit(service, "ada", 3 * LIMIT)
    await submit(service, "grace")
    await submit(service, "ada", 2, priority=0)
    await service.caught_up()
    found = await jobs.waiting(service.reads, kinds=["noop"], now=lifecycle.now(), limit=LIMIT)
    return [f"{one.owner}:{one.priority}" for one in found]


async def test_a_flood_hides_nobody_from_the_refill(service: Service) -> None:
    found = await flooded(service)
    assert (found.count("grace:5"), found.count("ada:0"), found.count("ada:5")) == (1, 2, LIMIT // 3)


async def test_by_age_alone_it_would(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same limit, over all that waits of the kind."""
    by_age = sql.SQL(
        "SELECT to_json(j) FROM (SELECT job_id, kind, owner, priority, created_at AS since FROM jobs"
        " WHERE kind = ANY (%(kinds)s) AND status = 'pending' ORDER BY created_at LIMIT %(limit)s) AS j"
    )
    monkeypatch.setattr(jobs, "WAITING", by_age)
    assert set(await flooded(service)) == {"ada:5"}


async def due(service: Service) -> tuple[int, int, int]:
    """How many could start now: as the autoscaler is told, as the queue shows, and as workers are offered. Of three
    jobs one is for later, and one was made before the clock was set back.
    """
    now = lifecycle.now()
    await submit(service, "ada")
    await submit(service, "ada", not_before=now + timedelta(hours=1))
    ahead = commands.SubmitJob(job_id=uuid7(), kind="noop", pending_max=1_000)
    await service.run(commands.submit_job, ahead, by(now=now + timedelta(hours=1)))
    await service.caught_up()
    now = lifecycle.now()
    [depth] = await jobs.depths(service.reads, now=now)
    [queue] = (await figures(service.reads, kinds=["noop"], now=now)).rows
    assert queue.pending + queue.scheduled == 3
    assert 0 < depth.oldest_s < 60
    assert queue.oldest_s == depth.oldest_s
    return depth.waiting, queue.pending, len(await jobs.waiting(service.reads, kinds=["noop"], now=now, limit=LIMIT))


async def test_whoever_counts_what_waits_counts_the_same(service: Service) -> None:
    assert await due(service) == (2, 2, 2)


async def test_by_a_definition_of_its_own_one_of_them_would_not(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the moment of being made, where there is no other, for the time from which on it is due."""
    its_own = jobs.DEPTHS.as_string(None).replace(
        jobs.TIMES["due"].as_string(None), "coalesce(not_before, created_at) <= %(now)s"
    )
    monkeypatch.setattr(jobs, "DEPTHS", sql.SQL(its_own))
    assert await due(service) == (1, 2, 2)


async def test_the_refill_leaves_out_what_is_for_later_and_what_is_paused(service: Service) -> None:
    now = lifecycle.now()
    await submit(service, "ada", 2)
    await submit(service, "ada", not_before=now + timedelta(hours=1))
    await service.caught_up()
    assert len(await jobs.waiting(service.reads, kinds=["noop"], now=now, limit=LIMIT)) == 2
    later = now + timedelta(hours=1, seconds=1)
    assert len(await jobs.waiting(service.reads, kinds=["noop"], now=later, limit=LIMIT)) == 3

    clock, hints = Clock(service.services), service.services.hints
    await service.commands.close()
    await hints.take_more("noop", count=9)
    await service.run(queues.pause_queue, queues.PauseQueue(kind="noop"))
    await service.caught_up()
    assert await paused_kinds(service.reads) == {"noop"}
    await clock.refill_hints(later)
    assert await hints.take_more("noop", count=9) == []
    await service.run(queues.resume_queue, queues.ResumeQueue(kind="noop"))
    await service.caught_up()
    await clock.refill_hints(later)
    assert len(await hints.take_more("noop", count=9)) == 3


@pytest.mark.parametrize(
    ("lines", "priority", "before"),
    [
        ([], 5, 0),
        ([Line(5, own=True, jobs=10, before=4)], 5, 4),
        ([Line(5, own=True, jobs=10, before=4), Line(5, own=False, jobs=1000, before=0)], 5, 8),
        ([Line(5, own=True, jobs=10, before=4), Line(5, own=False, jobs=2, before=0)], 5, 6),
        ([Line(5, own=True, jobs=1, before=0), Line(4, own=False, jobs=1000, before=0)], 5, PRIORITY_STEP),
        ([Line(5, own=True, jobs=1, before=0), Line(6, own=False, jobs=1000, before=0)], 5, 0),
    ],
    ids=["alone", "in its line", "lines take turns", "a short line", "more urgent", "less urgent"],
)
def test_a_place_is_counted_as_turns_are_taken(lines: list[Line], priority: int, before: int) -> None:
    assert passed_by(lines, priority) == before


def test_an_estimate_is_so_many_gaps() -> None:
    steady = Pace(gaps=50, gap_s=2.0, gap_sd_s=0.0, wait_p50_s=9, wait_p90_s=9)
    assert estimate(steady, 9) == Estimate(20.0, 20.0)
    uneven = Pace(gaps=50, gap_s=2.0, gap_sd_s=1.0, wait_p50_s=9, wait_p90_s=9)
    assert estimate(uneven, 99) == Estimate(200.0, 212.816)
    assert estimate(steady, 0, delay_s=60) == Estimate(60.0, 60.0)


def test_without_a_pace_only_whoever_is_next_is_told_something() -> None:
    idle = Pace(gaps=1, gap_s=600.0, gap_sd_s=None, wait_p50_s=0.01, wait_p90_s=0.05)
    assert estimate(idle, 0) == Estimate(0.01, 0.05)
    assert estimate(idle, 1) is None
    assert estimate(Pace(0, None, None, None, None), 0) is None
