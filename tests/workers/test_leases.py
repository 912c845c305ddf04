"""A lease is held for as long as its worker renews it, judged by the database's clock."""

import asyncio
from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from tests.conftest_log import LogDatabase
from tests.conftest_service import until

from sightline.adapters.settings import Settings
from sightline.projections.jobs import LIVE_WORKERS
from sightline.workers.leases import PRUNE, Lease

SHORT_S = 0.4


def live(database: LogDatabase) -> set[str]:
    with database.connect() as connection:
        return {worker for (worker,) in connection.execute(LIVE_WORKERS).fetchall()}


@pytest.fixture
def lease(service_settings: Settings) -> Iterator[Lease]:
    held = Lease(replace(service_settings, worker_lease_s=SHORT_S), "w1")
    held.start()
    yield held
    held.stop()


async def test_it_is_there_from_the_start_renewed_and_given_back(lease: Lease, log_database: LogDatabase) -> None:
    assert live(log_database) == {"w1"}
    await asyncio.sleep(SHORT_S * 2)  # the one thing that shows renewal is that time passes
    assert live(log_database) == {"w1"}
    assert not lease.lost
    await asyncio.to_thread(lease.stop)
    assert live(log_database) == set(), "nobody has to wait for it to run out"


async def test_who_cannot_renew_knows_that_it_lost_the_lease(lease: Lease, log_database: LogDatabase) -> None:
    with log_database.connect(superuser=True) as superuser:
        superuser.execute("ALTER TABLE worker_leases RENAME TO gone")

        async def lost() -> bool:
            return lease.lost

        assert await until(lost)
        superuser.execute("ALTER TABLE gone RENAME TO worker_leases")

    async def held() -> bool:
        return not lease.lost and live(log_database) == {"w1"}

    assert await until(held), "and has it again once the database takes it"


async def test_old_rows_are_pruned(log_database: LogDatabase) -> None:
    with log_database.connect() as connection:
        for worker, age in (("old", "2 days"), ("recent", "1 hour")):
            connection.execute(
                "INSERT INTO worker_leases VALUES (%s, now(), clock_timestamp() - %s::interval)", [worker, age]
            )
        connection.execute(PRUNE)
        assert connection.execute("SELECT worker FROM worker_leases").fetchall() == [("recent",)]


async def test_a_lease_from_before_the_databases_clock_was_set_back_does_not_count(
    lease: Lease, log_database: LogDatabase
) -> None:
    """Of a dead worker it would last an hour more. Who lives has a true one at its next renewal."""
    with log_database.connect() as connection:
        connection.execute(
            "INSERT INTO worker_leases VALUES ('dead', clock_timestamp(), clock_timestamp() + interval '1 hour')"
        )
        connection.execute("UPDATE worker_leases SET expires_at = expires_at + interval '1 hour'")

    async def renewed() -> bool:
        return live(log_database) == {"w1"}

    assert await until(renewed)
    assert not lease.lost


async def test_a_lease_ends_with_the_epoch_of_the_log(lease: Lease, log_database: LogDatabase) -> None:
    with log_database.connect() as connection:
        connection.execute("SELECT renew_epoch()")
    assert live(log_database) == set()

    async def over() -> bool:
        return lease.over

    assert await until(over)
    assert lease.lost
    assert live(log_database) == set(), "it did not come back"
