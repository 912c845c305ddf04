"""The client of Valkey or Redis, with time limits on everything: a hint that hangs is worse than none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio as redis

SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 1.0


@asynccontextmanager
async def open_valkey(url: str) -> AsyncIterator["redis.Redis"]:
    """A client with its pool; nothing is contacted yet."""
    client = redis.Redis.from_url(
        url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S, health_check_interval=30
    )
    try:
        yield client
    finally:
        await client.aclose()
