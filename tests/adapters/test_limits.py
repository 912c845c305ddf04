"""Limits in a real Valkey: exact in any window, whatever happens to the server meanwhile."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from tests.conftest_service import until

from sightline.adapters import limits
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.limits import BUDGET_S, Bucket, Limiter, LimitsUnavailable, LocalWindows, open_limiter
from sightline.adapters.valkey import open_valkey

CLIENTS = 8
LIMIT = 20
WINDOW_S = 60  # of tests that are not about the length of one: nothing of theirs comes back meanwhile
PATIENT_S = 30.0  # of tests that are not about the budget, on a busy machine

_names = itertools.count(1)


def bucket(limit: int = LIMIT, window_s: int = WINDOW_S) -> Bucket:
    """One that nobody else uses."""
    return Bucket(f"test:{next(_names)}", limit, window_s)


@pytest_asyncio.fixture
async def limiter(valkey_server: ValkeyServer) -> AsyncIterator[Limiter]:
    async with open_limiter(valkey_server.url) as opened:
        opened._budget_s = PATIENT_S
        yield opened


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server that the test may stop."""
    with ValkeyServer(tmp_path) as server:
        yield server


Span = tuple[float, float]


def most_in_any_window(spans: Sequence[Span], window_s: float) -> int:
    """How many were surely counted within one window: asked not before it, answered before it was over."""
    starts = [asked for asked, _ in spans]
    return max(sum(start <= asked and answered < start + window_s for asked, answered in spans) for start in starts)


Taking = Callable[[Bucket], Awaitable[bool]]


async def rush(takes: Sequence[Taking], one: Bucket, enough: int) -> list[Span]:
    """Between when and when each of what so many clients took together was taken; they never pause."""
    taken = list[Span]()

    async def client(take: Taking) -> None:
        while len(taken) < enough:
            asked = time.monotonic()
            if await take(one):
                taken.append((asked, time.monotonic()))

    async with asyncio.timeout(120):
        await asyncio.gather(*map(client, takes))
    return taken


async def test_eight_clients_together_never_get_more_than_the_limit_in_any_window(valkey_server: ValkeyServer) -> None:
    async def shared(limiter: Limiter) -> Taking:
        async def take(one: Bucket) -> bool:
            [verdict] = await limiter.take([one])
            return verdict.allowed

        return take

    async with open_limiter(valkey_server.url) as first, open_limiter(valkey_server.url) as second:
        first._budget_s = second._budget_s = PATIENT_S
        takes = [await shared(limiter) for limiter in (first, second) * (CLIENTS // 2)]
        taken = await rush(takes, bucket(window_s=1), 2 * LIMIT + 1)  # two windows that are full, and a third begins
    assert most_in_any_window(taken, 1) <= LIMIT
    assert most_in_any_window(taken, 30) > LIMIT, "the control: what is longer than a window holds more"


async def test_looking_first_and_counting_after_would_let_more_through(valkey_server: ValkeyServer) -> None:
    """The control: what the script does in one step, in two; each time all of them look before the first counts."""
    looked, one = asyncio.Barrier(CLIENTS), bucket()
    async with open_valkey(valkey_server.url) as client:

        async def take() -> bool:
            room = await client.llen(one.key) < one.limit
            await looked.wait()
            if not room:
                return False
            await client.rpush(one.key, "1")
            await client.expire(one.key, one.window_s)
            await looked.wait()
            return True

        async def three() -> int:
            return sum([await take() for _ in range(3)])

        taken = sum(await asyncio.gather(*(three() for _ in range(CLIENTS))))
    assert taken == 3 * CLIENTS > LIMIT


async def test_what_is_left_and_when_it_comes_back(limiter: Limiter) -> None:
    one = bucket(limit=3, window_s=600)
    said = [(await limiter.take([one]))[0] for _ in range(4)]
    assert [(verdict.allowed, verdict.remaining) for verdict in said] == [(True, 2), (True, 1), (True, 0), (False, 0)]
    assert all(500 < verdict.reset_s <= 600 for verdict in said)
    assert [verdict.retry_after_s for verdict in said[:3]] == [0, 0, 0]
    assert said[3].retry_after_s == said[3].reset_s


async def test_room_comes_back_one_request_at_a_time(limiter: Limiter) -> None:
    one = bucket(limit=2, window_s=600)
    for ago_s in (599, 300):
        await limiter._client.rpush(one.key, str(int((time.time() - ago_s) * 1_000_000)))

    async def taken() -> bool:
        return (await limiter.take([one]))[0].allowed

    await until(taken)
    assert not (await limiter.take([one]))[0].allowed, "half a window later there was room for one, not for two"


async def test_all_buckets_have_room_or_none_is_counted(limiter: Limiter) -> None:
    narrow, wide = bucket(limit=1), bucket(limit=5)
    assert [one.allowed for one in await limiter.take([narrow, wide])] == [True, True]
    refused = await limiter.take([narrow, wide])
    assert [(one.allowed, one.remaining) for one in refused] == [(False, 0), (False, 4)]
    assert [bool(one.retry_after_s) for one in refused] == [True, False]
    [alone] = await limiter.take([wide])
    assert alone.remaining == 3


async def test_nothing_is_kept_longer_than_its_window(limiter: Limiter) -> None:
    one = bucket(limit=2)
    for _ in range(5):
        await limiter.take([one])
    assert await limiter._client.llen(one.key) == 2
    assert 0 < await limiter._client.pttl(one.key) <= WINDOW_S * 1000


async def test_a_clock_that_was_set_back_locks_nobody_out(limiter: Limiter) -> None:
    one = bucket(limit=1, window_s=60)
    await limiter._client.rpush(one.key, str(int((time.time() + 3600) * 1_000_000)))
    assert (await limiter.take([one]))[0].allowed


async def test_a_server_that_forgot_the_script_is_told_again(limiter: Limiter) -> None:
    await limiter.take([bucket()])
    await limiter._client.script_flush()
    one = bucket(limit=1)
    assert [(await limiter.take([one]))[0].allowed for _ in range(2)] == [True, False]
    await limiter._client.flushall()
    assert (await limiter.take([one]))[0].allowed, "a flush forgets what was counted: limits are no record"


# Valkey away


async def allowed(limiter: Limiter, one: Bucket, tries: int) -> int:
    return sum([(await limiter.take([one]))[0].allowed for _ in range(tries)])


async def test_without_valkey_each_process_gives_its_part(own_server: ValkeyServer) -> None:
    async with open_limiter(own_server.url, processes=4) as limiter:
        await limiter.take([bucket()])
        own_server.stop()
        assert await allowed(limiter, bucket(limit=20, window_s=60), 30) == 5
        assert await allowed(limiter, bucket(limit=2, window_s=60), 30) == 1, "nobody is locked out by a division"
        with pytest.raises(LimitsUnavailable):
            await limiter.take([bucket()], fails_closed=True)
        with pytest.raises(LimitsUnavailable):
            await limiter.remembers("who")
        await limiter.remember("who", 1)


async def test_a_valkey_that_hangs_costs_its_budget_once_a_second(own_server: ValkeyServer) -> None:
    async with open_limiter(own_server.url) as limiter:
        await limiter.take([bucket()])
        assert own_server._process is not None
        os.kill(own_server._process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            await limiter.take([bucket()])
            first_s = time.monotonic() - started
            await allowed(limiter, bucket(), 500)
            rest_s = time.monotonic() - started - first_s
        finally:
            os.kill(own_server._process.pid, signal.SIGCONT)
        assert BUDGET_S * 0.9 <= first_s < PATIENT_S, "it was given up"
        assert rest_s < 500 * BUDGET_S, "without a breaker each of them would have waited"

        async def shared() -> bool | None:
            await limiter.take([bucket()])
            return True if limiter._asks_at == 0 else None

        await until(shared)


async def test_a_valkey_that_was_killed_and_started_again_is_used_again(tmp_path: Path) -> None:
    one = bucket(limit=3, window_s=60)
    with ValkeyServer(tmp_path) as server:
        url = server.url
        async with open_limiter(url) as limiter:
            limiter._budget_s = PATIENT_S
            assert await allowed(limiter, one, 5) == 3
            assert server._process is not None
            server._process.kill()
            server.stop()
            assert await allowed(limiter, one, 5) == 3, "counted here now, from nothing"
            server.start()

            async def shared() -> bool | None:
                with_room = await limiter.take([one])
                return True if limiter._asks_at == 0 and with_room else None

            await until(shared)
            assert await limiter._client.llen(one.key) == 1


def test_local_windows_are_exact_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOCAL_KEYS_MAX", 100)
    windows = LocalWindows(1)
    one = bucket(limit=3, window_s=60)
    taken = [(now, now) for now in range(600) if windows.take([one], float(now))[0].allowed]
    assert most_in_any_window(taken, 60) == 3
    assert len(taken) == 30
    for _ in range(1_000):
        windows.take([bucket()], 600.0)
    assert len(windows) == 100
