"""Hints in a real Valkey: what is offered is found, in order, also in bursts."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import pytest_asyncio
import redis.asyncio as redis

from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.hints import PRIORITY_STEP, Candidate, JobHints, Offers
from sightline.adapters.ids import uuid7
from sightline.adapters.valkey import CONNECTIONS_MAX, open_valkey

BURST = 20 * CONNECTIONS_MAX


@pytest_asyncio.fixture
async def client(valkey_server: ValkeyServer) -> "AsyncIterator[redis.Redis]":
    async with open_valkey(valkey_server.url) as opened:
        await opened.flushall()
        yield opened


def candidate(owner: str = "ada", priority: int = 5, kind: str = "noop", since: datetime | None = None) -> Candidate:
    return Candidate(uuid7(), kind, priority, since or datetime.now(UTC), owner)


async def offer_at_once(client: "redis.Redis") -> list[BaseException | None]:
    hints = JobHints(client)
    offers = [hints.offer([candidate()]) for _ in range(BURST)]
    return await asyncio.gather(*offers, return_exceptions=True)


async def test_a_burst_of_offers_loses_none(client: "redis.Redis") -> None:
    assert await offer_at_once(client) == [None] * BURST
    assert await client.zcard("sightline:waiting:noop") == BURST


async def test_offers_that_nobody_waits_for_share_calls(client: "redis.Redis") -> None:
    """However fast they come, one call at a time is on its way, so that none waits for a connection in vain."""
    offers = Offers(JobHints(client))
    before = await calls(client)
    for _ in range(BURST):
        offers.add([candidate()])
        await asyncio.sleep(0)
    await offers.close()
    assert await client.zcard("sightline:waiting:noop") == BURST
    assert 0 < await calls(client) - before < BURST / 2


async def calls(client: "redis.Redis") -> int:
    stats = await client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def test_offers_go_on_after_a_failure(client: "redis.Redis") -> None:
    async with open_valkey("redis://127.0.0.1:1") as nobody:
        offers = Offers(JobHints(nobody))
        offers.add([candidate()])
        await offers.close()  # told in the log, raised to nobody
        offers._hints = JobHints(client)
        offers.add([candidate()])
        await offers.close()
    assert await client.zcard("sightline:waiting:noop") == 1


async def test_a_pool_that_refuses_instead_of_waiting_loses_some(valkey_server: ValkeyServer) -> None:
    refusing = redis.Redis.from_url(valkey_server.url, max_connections=CONNECTIONS_MAX)
    try:
        assert any(await offer_at_once(refusing))
    finally:
        await refusing.aclose()


# Whose turn it is


async def place_of(client: "redis.Redis", one: Candidate) -> int:
    """How many are taken before it."""
    hints = JobHints(client)
    for number in range(10_000):
        if await hints.take_more(one.kind, count=1) == [one.job_id]:
            return number
    raise LookupError


async def test_a_flood_of_one_principal_holds_up_nobody_elses(client: "redis.Redis") -> None:
    hints = JobHints(client)
    await hints.offer([candidate("ada") for _ in range(1_000)])
    graces = candidate("grace")
    await hints.offer([graces])
    assert await place_of(client, graces) <= 2


async def test_first_in_first_out_would_hold_it_up(client: "redis.Redis") -> None:
    """The control: the same jobs, by when they came."""
    flood, graces = [candidate("ada") for _ in range(1_000)], candidate("grace")
    scores = {one.job_id.bytes + b"\5": one.since.timestamp() for one in [*flood, graces]}
    await client.zadd("sightline:waiting:noop", scores)
    assert await place_of(client, graces) == 1_000


async def test_a_flood_that_has_been_worked_on_for_long_is_no_older_for_it(client: "redis.Redis") -> None:
    """Turns are counted, not seconds: however slow the work, a newcomer comes next but one."""
    hints = JobHints(client)
    await hints.offer([candidate("ada") for _ in range(1_000)])
    await hints.take_more("noop", count=700)
    graces = candidate("grace")
    await hints.offer([graces])
    assert await place_of(client, graces) <= 2


async def test_two_floods_take_turns(client: "redis.Redis") -> None:
    hints = JobHints(client)
    owners: dict[UUID, str] = {}
    for owner in ("ada", "grace"):
        some = [candidate(owner) for _ in range(100)]
        owners |= {one.job_id: owner for one in some}
        await hints.offer(some)
    first = [owners[one] for one in await hints.take_more("noop", count=100)]
    assert 45 <= first.count("grace") <= 55


async def test_the_urgent_of_one_principal_go_first_and_the_others_are_not_passed_for_ever(
    client: "redis.Redis",
) -> None:
    hints = JobHints(client)
    patient = candidate(priority=9)
    await hints.offer([patient, *(candidate(priority=9) for _ in range(50))])
    taken = []
    for _ in range(9 * PRIORITY_STEP + 2):
        await hints.offer([candidate(priority=0)])
        taken += await hints.take_more("noop", count=1)
    assert 8 * PRIORITY_STEP < taken.index(patient.job_id) <= 9 * PRIORITY_STEP, "or it starves"


async def test_the_eldest_of_a_line_goes_first_and_keeps_its_place(client: "redis.Redis") -> None:
    hints = JobHints(client)
    now = datetime.now(UTC)
    some = [candidate(since=now - timedelta(seconds=n)) for n in range(5)]
    await hints.offer(some)
    await hints.offer(some[::-1])  # as the clock does each second
    assert await hints.take_more("noop", count=9) == [one.job_id for one in some[::-1]]


async def test_one_that_may_not_start_goes_back_to_its_place_and_its_kind_is_passed_over(
    client: "redis.Redis",
) -> None:
    hints = JobHints(client)
    some = [candidate() for _ in range(3)]
    await hints.offer(some)
    other = candidate(kind="embed")
    [first] = await hints.take(["noop", "embed"], count=1, timeout_s=1)
    await hints.put_back([first], hold_s=60)
    await hints.offer([other])
    assert await hints.take(["noop", "embed"], count=1, timeout_s=1) == [other.job_id]
    assert await hints.take(["noop"], count=1, timeout_s=0.01) == []
    hints.release("noop")
    assert await hints.take(["noop"], count=9, timeout_s=1) == [one.job_id for one in some]
    assert first == some[0].job_id


async def test_a_kind_that_is_held_is_taken_from_again_when_that_is_over(client: "redis.Redis") -> None:
    hints = JobHints(client)
    one = candidate()
    await hints.offer([one])
    await hints.put_back(await hints.take(["noop"], count=1, timeout_s=1), hold_s=0.05)
    async with asyncio.timeout(60):
        while not (taken := await hints.take(["noop", "embed"], count=1, timeout_s=10)):
            pass
    assert taken == [one.job_id]


async def test_lines_are_forgotten_when_nobody_waits_or_there_are_too_many(
    client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    hints = JobHints(client)
    await hints.offer([candidate(f"owner-{n}") for n in range(20)])
    assert await client.hlen("sightline:lines:noop") == 21
    await hints.take_more("noop", count=99)
    await hints.offer([candidate()])
    assert await client.hlen("sightline:lines:noop") == 2
    monkeypatch.setattr("sightline.adapters.hints.LINES_MAX", 1)
    await hints.offer([candidate("grace")])
    assert await client.hlen("sightline:lines:noop") == 2


async def test_no_more_are_kept_than_a_kind_may(client: "redis.Redis", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.adapters.hints.OFFERED_MAX", 10)
    some = [candidate() for _ in range(20)]
    await JobHints(client).offer(some)
    assert await JobHints(client).take_more("noop", count=99) == [one.job_id for one in some[:10]]
