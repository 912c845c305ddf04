"""Many logins, each claiming to come from somewhere else: how many are let through.

`python -m tests.http.login_flood --logins 10000` starts the parts and the application, sends them through a proxy that
is not trusted (every X-Forwarded-For is made up) and through one that is (every one is true), and prints what came
through beside what the documents say. It ends with status 1 where that is more.
"""

import asyncio
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import httpx
import structlog
from msgspec import Struct
from msgspec.structs import replace
from tests.conftest_log import database
from tests.http.door import BASE_URL, opened, settings_for

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.limits import WINDOW_S
from sightline.adapters.settings import Settings
from sightline.http.app import create_app
from sightline.http.limits import ACCOUNT_FACTOR
from sightline.http.services import Services

AT_ONCE = 16
PROXY = "10.0.0.1"
SECRET = "a secret of thirty-two bytes or more for floods"


class Flood(Struct, frozen=True):
    """Attributes:
    through: logins that were tried, whatever came of them; the others got 429, or 503 where nobody could tell.
    limit: the most that the documents allow for in that time.
    """

    statuses: dict[int, int]
    seconds: float
    limit: int

    @property
    def through(self) -> int:
        return sum(count for status, count in self.statuses.items() if status not in {429, 503})


def rotating(number: int) -> str:
    """Another client for each login: 16 million of them."""
    return f"100.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


async def flood(services: Services, logins: int, *, per_window: int, peer: str = PROXY) -> Flood:
    """So many logins on one account, each with a forwarded address of its own, from the socket of `peer`."""
    app: Any = create_app(services)
    transport = httpx.ASGITransport(app, client=(peer, 40_000))
    statuses: Counter[int] = Counter()
    numbers = iter(range(logins))
    started = time.monotonic()
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, timeout=60) as client:

        async def guess() -> None:
            for number in numbers:
                answer = await client.post(
                    "/v1/auth/login",
                    json={"email": "ada@example.org", "password": f"a guess, number {number}"},
                    headers={"X-Forwarded-For": rotating(number)},
                )
                statuses[answer.status_code] += 1

        await asyncio.gather(*(guess() for _ in range(AT_ONCE)))
    seconds = time.monotonic() - started
    return Flood(dict(statuses), seconds, per_window * (int(seconds // WINDOW_S) + 1))


async def _both(settings: Settings, logins: int) -> list[tuple[str, Flood]]:
    found = []
    limit = settings.limit_login_per_minute
    for name, proxies, per_window in (
        ("made-up addresses", [], limit),
        ("true addresses, one account", [f"{PROXY}/32"], limit * ACCOUNT_FACTOR),
    ):
        async with opened(replace(settings, trusted_proxies=proxies)) as door:
            await door.services.valkey.flushall()
            found.append((name, await flood(door.services, logins, per_window=per_window)))
    return found


@click.command()
@click.option("--logins", default=10_000, show_default=True)
def main(logins: int) -> None:
    """Send so many logins, twice."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with (
        tempfile.TemporaryDirectory(prefix="sightline-flood-") as directory,
        PostgresServer(Path(directory)) as server,
        ValkeyServer(Path(directory)) as valkey,
        database(server, "flood", "template1") as made,
    ):
        postgres.migrate(made.dsn)
        settings = settings_for(made, valkey.url, Path(directory) / "data", auth_enabled=True, secret_key=SECRET)
        found = asyncio.run(_both(settings, logins))
    for name, one in found:
        click.echo(f"{name}: {logins} logins in {one.seconds:.0f} s: {one.through} let through, at most {one.limit}")
    sys.exit(any(one.through > one.limit for _, one in found))


if __name__ == "__main__":
    main()
