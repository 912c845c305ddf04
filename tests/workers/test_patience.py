"""What fails rests, for longer each time; the others have their turn, and there is an end to it."""

import time
from uuid import UUID

import pytest
from tests.conftest_log import LogDatabase
from tests.conftest_service import Service
from tests.projections.test_quarantine import rewrite
from tests.workers.test_comparisons import comparison, depth_model, registered, rerun, shadowed, verdicts

from sightline.adapters.ids import uuid7
from sightline.commands import attempts
from sightline.domain import comparisons
from sightline.domain.jobs import Artifact, Provenance
from sightline.workers import comparisons as workers
from sightline.workers import lifecycle, patience
from sightline.workers.comparisons import Comparer
from sightline.workers.patience import Patience


def test_it_rests_until_its_time_and_is_counted_until_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    one, other = uuid7(), uuid7()
    kept = Patience((1.0, 10.0))
    assert [kept.failed(one), kept.failed(other), kept.failed(other), kept.failed(other)] == [1, 1, 2, 3]
    assert kept.resting() == [one, other]
    now += 1.0
    assert kept.resting() == [other]
    now += 9.0
    assert kept.resting() == []
    kept.forget(other)
    assert [kept.failed(one), kept.failed(other)] == [2, 1]


def test_it_remembers_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RESTING_MAX", 3)
    kept, ids = Patience((60.0,)), [uuid7() for _ in range(4)]
    for one in [*ids[:3], ids[0], ids[3]]:
        kept.failed(one)
    assert kept.resting() == [ids[2], ids[0], ids[3]], "whoever failed longest ago goes"


# Of the comparer


async def due_since(service: Service, *keys: str) -> list[UUID]:
    """Comparisons whose two runs differ in one picture, in the order in which their second runs ended; `keys`: where
    the pictures would be.
    """
    found = []
    for key in keys:
        jobs = [await service.submit()]
        await with_picture(service, jobs[0], key, "a")
        found.append(await rerun(service, jobs[0]))
        await with_picture(service, comparisons.rerun_id(found[-1]), key, "b")
    await service.caught_up()
    return found


async def with_picture(service: Service, job_id: UUID, key: str, digit: str) -> None:
    start = attempts.StartJob(job_id=job_id, worker="w", lease_until=lifecycle.now())
    await service.run(attempts.start_job, start)
    output = Artifact(name="a.png", object_key=key, sha256=digit * 64, size_bytes=1, content_type="image/png")
    done = attempts.CompleteJob(
        job_id=job_id, attempt=1, worker="w", outputs=(output,), manifest={}, timings={}, receipt=Provenance()
    )
    await service.run(attempts.complete_job, done)


NO_KEY = "not a key"  # of which every store says the same, however often it is asked
MISSING = "artifacts/missing/a.png"  # a verdict: there is nothing to compare


@pytest.mark.parametrize("rest_s", [3_600.0, 0.0])
async def test_one_that_can_never_be_compared_lets_the_others_go_first(
    service: Service, monkeypatch: pytest.MonkeyPatch, rest_s: float
) -> None:
    """The control: of those that need no rest the eldest is always the next."""
    monkeypatch.setattr(workers, "REST_S", (rest_s,) * 9)
    monkeypatch.setattr(workers, "PER_STEP_MAX", 1)
    hopeless, other = await due_since(service, NO_KEY, MISSING)
    comparer = Comparer(service.services)
    assert [await comparer.step() for _ in range(3)] == ([0, 1, 0] if rest_s else [0, 0, 0])
    assert await verdicts(service, [hopeless, other]) == [0, int(rest_s > 0)]


@pytest.mark.parametrize("tries_max", [4, 1_000])
async def test_what_it_was_tried_for_in_vain_is_its_verdict(
    service: Service, monkeypatch: pytest.MonkeyPatch, tries_max: int
) -> None:
    """The control: without a bound it is tried for ever."""
    monkeypatch.setattr(workers, "REST_S", (0.0,))
    monkeypatch.setattr(workers, "TRIES_MAX", tries_max)
    [hopeless] = await due_since(service, NO_KEY)
    comparer = Comparer(service.services)
    for tries in range(1, 6):
        await comparer.step()
        await service.caught_up()
        assert await verdicts(service, [hopeless]) == [int(tries >= tries_max)]
    said = (await comparison(service, hopeless)).judged
    if tries_max == 4:
        assert said is not None
        assert (said.verdict, said.reason) == ("failed", "not compared in 4 tries: invalid_key")


@pytest.mark.parametrize("rest_s", [3_600.0, 0.0])
async def test_a_shadow_that_cannot_be_followed_holds_up_no_other(
    service: Service, log_database: LogDatabase, monkeypatch: pytest.MonkeyPatch, rest_s: float
) -> None:
    """The first one's stream cannot be read by whoever has not read it yet; both are of a job that there is not. The
    control: without a rest the eldest is always the next.
    """
    monkeypatch.setattr(workers, "REST_S", (rest_s,))
    monkeypatch.setattr(workers, "SHADOWS_MAX", 1)
    candidate = await registered(service, "next", depth_model(1.0))
    nothing = uuid7()
    unreadable, other = [await shadowed(service, candidate, [nothing]) for _ in range(2)]
    await service.caught_up()
    [started] = await service.events(unreadable)
    rewrite(log_database, "data = jsonb_set(data::jsonb, '{task}', '7')", started.id)
    async with lifecycle.open_services(service.settings) as elsewhere:
        comparer = Comparer(elsewhere)
        for _ in range(3):  # the job is refused, the first is not judged, the second is
            await comparer.step()
            await service.caught_up()
    assert await verdicts(service, [unreadable, other]) == [0, int(rest_s > 0)]
