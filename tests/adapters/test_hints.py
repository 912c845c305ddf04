"""Hints in a real Valkey: what is offered is found, in order, also in bursts."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest_asyncio
import redis.asyncio as redis

from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.hints import Candidate, JobHints, Offers
from sightline.adapters.ids import uuid7
from sightline.adapters.valkey import CONNECTIONS_MAX, open_valkey

BURST = 20 * CONNECTIONS_MAX


@pytest_asyncio.fixture
async def client(valkey_server: ValkeyServer) -> "AsyncIterator[redis.Redis]":
    async with open_valkey(valkey_server.url) as opened:
        await opened.flushall()
        yield opened


async def offer_at_once(client: "redis.Redis") -> list[BaseException | None]:
    hints = JobHints(client)
    offers = [hints.offer([Candidate(uuid7(), "noop", 5, datetime.now(UTC))]) for _ in range(BURST)]
    return await asyncio.gather(*offers, return_exceptions=True)


async def test_a_burst_of_offers_loses_none(client: "redis.Redis") -> None:
    assert await offer_at_once(client) == [None] * BURST
    [key] = await client.keys()
    assert await client.zcard(key) == BURST


async def test_offers_that_nobody_waits_for_share_calls(client: "redis.Redis") -> None:
    """However fast they come, one call at a time is on its way, so that none waits for a connection in vain."""
    offers = Offers(JobHints(client))
    before = await zadds(client)
    for _ in range(BURST):
        offers.add([Candidate(uuid7(), "noop", 5, datetime.now(UTC))])
        await asyncio.sleep(0)
    await offers.close()
    [key] = await client.keys()
    assert await client.zcard(key) == BURST
    assert 0 < await zadds(client) - before < BURST / 4


async def zadds(client: "redis.Redis") -> int:
    stats = await client.info("commandstats")
    return int(stats.get("cmdstat_zadd", {"calls": 0})["calls"])


async def test_offers_go_on_after_a_failure(client: "redis.Redis") -> None:
    async with open_valkey("redis://127.0.0.1:1") as nobody:
        offers = Offers(JobHints(nobody))
        offers.add([Candidate(uuid7(), "noop", 5, datetime.now(UTC))])
        await offers.close()  # told in the log, raised to nobody
        offers._hints = JobHints(client)
        offers.add([Candidate(uuid7(), "noop", 5, datetime.now(UTC))])
        await offers.close()
    [key] = await client.keys()
    assert await client.zcard(key) == 1


async def test_a_pool_that_refuses_instead_of_waiting_loses_some(valkey_server: ValkeyServer) -> None:
    refusing = redis.Redis.from_url(valkey_server.url, max_connections=CONNECTIONS_MAX)
    try:
        assert any(await offer_at_once(refusing))
    finally:
        await refusing.aclose()
