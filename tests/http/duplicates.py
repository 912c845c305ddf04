"""R9 at the door: requests that clients send again, all at once, to two processes that know nothing of each other.

`python -m tests.http.duplicates --keys 10000` starts the parts and two API processes with authentication on, sends each
job five times at the same moment under one Idempotency-Key, then the same key with another body, then the job once
more; and counts what the log holds. It ends with status 1 where that is not one job for each key.
"""

import asyncio
import logging
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import click
import httpx
import structlog
from msgspec import Struct
from rich.progress import Progress
from tests.conftest_log import LogDatabase, database
from tests.http.door import opened, settings_for
from tests.http.identity import SECRET, registered, token_of
from tests.http.process import CODE, Running, started

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.domain.access import Role

DUPLICATES = 5
PROCESSES = 2
KEYS_AT_ONCE = 16
CODE_WITHOUT_KEYS = f"from sightline.http import manners; manners.derived_id = lambda *_: manners.uuid7(); {CODE}"
"""The control: a key says nothing about which command it is."""


class Duplicates(Struct, frozen=True):
    """What clients were told, and what the log holds.

    Attributes:
        effects: jobs in the log.
        keys_with_one_job: keys all of whose answers, if any named a job, named the same one.
        duplicates: answers to the requests sent at once, by status and code.
        others: to the same keys with another body.
        replays: to the same requests later.
    """

    keys: int
    effects: int
    keys_with_one_job: int
    duplicates: dict[str, int]
    others: dict[str, int]
    replays: dict[str, int]

    @property
    def is_exact(self) -> bool:
        """One job for each key; whoever was not told of it was told to wait, or that the key is another request's."""
        return (
            self.effects == self.keys == self.keys_with_one_job
            and self.duplicates.keys() <= {"201", "409 idempotency_key_in_use"}
            and self.others == {"422 idempotency_key_reused": self.keys}
            and self.replays == {"201": self.keys}
        )


class _Tally:
    def __init__(self) -> None:
        self.duplicates: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.replays: Counter[str] = Counter()
        self.keys_with_one_job = 0

    async def knock(self, clients: list[httpx.AsyncClient], number: int) -> None:
        """All that is asked under one key."""
        key = {"Idempotency-Key": f"order-{number}"}
        job = {"kind": "noop", "priority": number % 10}

        async def ask(copy: int, body: dict[str, Any]) -> tuple[str, str]:
            answer = await clients[(number + copy) % len(clients)].post("/v1/jobs", json=body, headers=key)
            found = answer.json()
            if answer.status_code == 409:
                assert answer.headers["Retry-After"] == "1"
            return f"{answer.status_code} {found.get('code', '')}".strip(), found.get("id", "")

        answers = await asyncio.gather(*(ask(copy, job) for copy in range(DUPLICATES)))
        self.duplicates.update(status for status, _ in answers)
        other, _ = await ask(number, job | {"priority": (number + 1) % 10})
        self.others[other] += 1
        later = await ask(number + 1, job)
        self.replays[later[0]] += 1
        self.keys_with_one_job += len({job_id for _, job_id in [*answers, later] if job_id}) == 1


async def duplicates(processes: list[Running], made: LogDatabase, token: dict[str, str], keys: int) -> Duplicates:
    """Send so many keys, each DUPLICATES times at once, by turns to each of the processes."""
    tally = _Tally()
    numbers = iter(range(keys))
    with Progress(disable=not sys.stderr.isatty()) as progress:
        shown = progress.add_task("keys", total=keys)

        async def one_of_many() -> None:
            async with AsyncExitStack() as stack:
                opening = [httpx.AsyncClient(base_url=one.url, headers=token, timeout=60) for one in processes]
                clients = [await stack.enter_async_context(client) for client in opening]
                for number in numbers:
                    await tally.knock(clients, number)
                    progress.advance(shown)

        await asyncio.gather(*(one_of_many() for _ in range(KEYS_AT_ONCE)))
    with made.connect() as connection:
        counted: Any = connection.execute("SELECT count(*) FROM events WHERE topic = 'job.submitted'").fetchone()
    return Duplicates(
        keys,
        counted[0],
        tally.keys_with_one_job,
        dict(tally.duplicates),
        dict(tally.others),
        dict(tally.replays),
    )


async def run(made: LogDatabase, redis_url: str, directory: Path, keys: int, *, code: str = CODE) -> Duplicates:
    """An operator, two processes of the service running `code`, and so many keys."""
    door_settings = {"auth_enabled": True, "secret_key": SECRET}
    async with opened(settings_for(made, redis_url, directory / "data", **door_settings)) as door:
        await registered(door, "grace@example.org", Role.OPERATOR)
        token = await token_of(door, "grace@example.org")
    environ = {
        "auth_enabled": "true",
        "secret_key": SECRET,
        "database_url": made.dsn,
        "redis_url": redis_url,
        "limit_jobs_per_minute": "1000000",  # a flood is another test's
    }
    with ExitStack() as stack:
        processes = [stack.enter_context(started(directory / "data", code=code, **environ)) for _ in range(PROCESSES)]
        return await duplicates(processes, made, token, keys)


@click.command()
@click.option("--keys", default=10_000, show_default=True)
@click.option("--control", is_flag=True, help="With processes to which a key says nothing.")
def main(keys: int, *, control: bool) -> None:
    """Send so many keys five times each, and count what came of it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with (
        tempfile.TemporaryDirectory(prefix="sightline-duplicates-") as directory,
        PostgresServer(Path(directory)) as server,
        ValkeyServer(Path(directory)) as valkey,
        database(server, "duplicates", "template1") as made,
    ):
        postgres.migrate(made.dsn)
        started_s = time.monotonic()
        found = asyncio.run(run(made, valkey.url, Path(directory), keys, code=CODE_WITHOUT_KEYS if control else CODE))
        took_s = time.monotonic() - started_s
    click.echo(f"{found.keys:,} keys, each {DUPLICATES} times at once over {PROCESSES} processes, in {took_s:.0f} s")
    click.echo(
        f"jobs in the log: {found.effects:,}; keys all of whose answers name one job: {found.keys_with_one_job:,}"
    )
    for name in ("duplicates", "others", "replays"):
        click.echo(f"{name}: {getattr(found, name)}")
    sys.exit(not found.is_exact)


if __name__ == "__main__":
    main()
