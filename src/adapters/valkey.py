"""The client of Valkey or Redis, with time limits on everything: a hint that hangs is worse than none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio as redis

SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 1.0
CONNECTIONS_MAX = 32
QUEUED_S_MAX = 5.0


@asynccontextmanager
async def open_valkey(url: str, *, connections_max: int = CONNECTIONS_MAX) -> AsyncIterator["redis.Redis"]:
    """A client with its pool; nothing is contacted yet.

    Whoever finds every connection lent waits for one: the usual pool refuses instead, and so lost the hints of every
    burst of more commands than it had connections.
    """
    pool: redis.BlockingConnectionPool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=QUEUED_S_MAX,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        health_check_interval=30,
    )
    client = redis.Redis.from_pool(pool)
    try:
        yield client
    finally:
        await client.aclose()
