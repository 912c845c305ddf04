"""The limits of the sign-language service: per endpoint, on its own paths, in its own numbers, without a setting."""

from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from tests.http.door import BASE_URL, Door

from sightline.http.app import create_app

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The path, a request that it takes, and how many of them in a minute. An upload is announced at /v1/assets.
LIMITED: list[tuple[str, dict[str, Any], str, int]] = [
    ("/v1/sessions", {}, "sessions", 20),
    ("/v1/jobs", {"kind": "noop"}, "jobs", 30),
    ("/v1/assets", {"filename": "a.png", "content_type": "image/png", "size_bytes": 1}, "upload-url", 60),
]


@pytest.mark.parametrize(("path", "body", "policy", "limit"), LIMITED, ids=[one[2] for one in LIMITED])
async def test_a_path_takes_so_many_a_minute(
    door: Door, path: str, body: dict[str, Any], policy: str, limit: int
) -> None:
    services = replace(door.services, settings=replace(door.services.settings, rate_limits_enabled=True))
    services.limiter._budget_s = 30.0  # this is not about the budget, and the machine may be busy
    await services.valkey.flushall()
    app: Any = create_app(services)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL, timeout=20) as client:
        answers = [await client.post(path, json=body) for _ in range(limit + 1)]
    assert [one.status_code for one in answers] == [201] * limit + [429]
    assert {one.headers["RateLimit-Policy"] for one in answers} == {f'"{policy}";q={limit};w=60'}
    refused = answers[-1]
    assert refused.headers["RateLimit"] == f'"{policy}";r=0;t={refused.headers["Retry-After"]}'
    assert refused.json()["detail"] == f"rate_limited: {limit} a minute"
