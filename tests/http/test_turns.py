"""Places for uploads: who gets one, who waits, who is sent away, and that none is ever lost."""

import asyncio
from contextlib import AsyncExitStack
from random import Random

import pytest

from sightline.http.turns import TooManyUploads, Turns


async def held(turns: Turns, size_bytes: int, until: asyncio.Event, order: list[int], number: int) -> None:
    async with turns.taken(size_bytes):
        order.append(number)
        await until.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_and_no_more_in_their_order() -> None:
    turns = Turns(bytes_max=100, at_once_max=2, waiting_max=3, wait_s_max=5)
    until, order = asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(held(turns, 1, until, order, number)) for number in range(5)]
    await settle()
    assert order == [0, 1]
    with pytest.raises(TooManyUploads) as refused:
        async with turns.taken(1):
            pass
    assert refused.value.extra["retry_after_s"] > 0
    until.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    async with turns.taken(100):
        pass


async def test_space_is_shared_and_a_large_one_is_not_starved() -> None:
    turns = Turns(bytes_max=100, at_once_max=10, waiting_max=10, wait_s_max=5)
    first, order = asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(held(turns, 60, first, order, 0))]
    await settle()
    tasks += [asyncio.create_task(held(turns, size, first, order, n)) for n, size in enumerate((10_000, 1), start=1)]
    await settle()
    assert order == [0]  # the small one would fit, and does not overtake the one that wants everything
    first.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]


async def test_who_waits_too_long_is_sent_away_and_takes_nothing_with_him() -> None:
    turns = Turns(bytes_max=10, at_once_max=1, waiting_max=2, wait_s_max=0.05)
    async with turns.taken(10):
        with pytest.raises(TooManyUploads):
            async with turns.taken(1):
                pass
    async with turns.taken(10):
        pass


async def test_whoever_leaves_lets_the_next_one_through() -> None:
    turns = Turns(bytes_max=10, at_once_max=5, waiting_max=5, wait_s_max=5)
    until, order = asyncio.Event(), list[int]()
    async with turns.taken(5):
        large = asyncio.create_task(held(turns, 10, until, order, 1))
        await settle()
        small = asyncio.create_task(held(turns, 5, until, order, 2))
        await settle()
        assert order == []
        large.cancel()
        await settle()
        assert order == [2]
        until.set()
        await small
    assert large.cancelled()


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_however_they_come_and_go(seed: int) -> None:
    random = Random(seed)
    turns = Turns(bytes_max=50, at_once_max=3, waiting_max=20, wait_s_max=0.02)
    inside: list[int] = []
    most = largest = 0

    async def visit() -> None:
        nonlocal most, largest
        size_bytes = random.randint(0, 60)
        async with turns.taken(size_bytes):
            inside.append(min(size_bytes, 50))
            most, largest = max(most, len(inside)), max(largest, sum(inside))
            try:
                for _ in range(random.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                inside.remove(min(size_bytes, 50))

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(visit()))
        if random.random() < 0.3:
            random.choice(tasks).cancel()
        if random.random() < 0.5:
            await asyncio.sleep(0)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(one) for one in ended if one is not None} <= {TooManyUploads, asyncio.CancelledError}
    assert None in ended
    assert (most, inside) == (3, [])
    assert 25 < largest <= 50
    async with AsyncExitStack() as opened:  # all of it is free again
        for size in (20, 20, 10):
            await asyncio.wait_for(opened.enter_async_context(turns.taken(size)), 1)
