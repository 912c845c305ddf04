"""The watchdog: what analysts SET is theirs, how long they last is not."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from msgspec.structs import replace
from tests.conftest_analysts import AnalystDatabase, as_analyst
from tests.conftest_service import short_lived, until

from sightline.adapters import metrics
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.workers import clock, lifecycle, watchdog
from sightline.workers.lifecycle import Services, now

QUERY_S_MAX = 0.6
LATE_S_MAX = 2.0
SLOW = "SELECT pg_sleep(20)"
BUSY = "SELECT count(*) FROM generate_series(1, 100000) AS a, generate_series(1, 100000) AS b"
CATCHING = """
DO $$ BEGIN
    FOR n IN 1..50 LOOP
        BEGIN PERFORM pg_sleep(20); EXCEPTION WHEN query_canceled THEN NULL; END;
    END LOOP;
END $$
"""
COMMITTING = "DO $$ BEGIN FOR n IN 1..100000 LOOP PERFORM pg_sleep(0.01); COMMIT; END LOOP; END $$"


@pytest_asyncio.fixture
async def services(
    analyst_database: AnalystDatabase, valkey_server: ValkeyServer, tmp_path: Path
) -> AsyncIterator[Services]:
    given = short_lived(analyst_database.log.dsn, valkey_server.url, tmp_path)
    async with lifecycle.open_services(replace(given, analyst_query_s_max=QUERY_S_MAX)) as opened:
        yield opened


@asynccontextmanager
async def watching(services: Services) -> AsyncIterator[None]:
    """As the clock does it, at the clock's own pace."""

    async def tick() -> None:
        while True:
            await watchdog.watch(services, now())
            await asyncio.sleep(clock.TICK_S)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.wait({ticking})


@pytest.fixture
def session(analyst_database: AnalystDatabase) -> Iterator[psycopg.Connection]:
    with analyst_database.analyst() as dsn, as_analyst(dsn) as connection:
        for name in ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"):
            connection.execute(f"SET {name} = 0".encode())
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("SET application_name = 'sightline'")
        yield connection


async def lasted(session: psycopg.Connection, statement: str) -> tuple[float, psycopg.Error | None]:
    """Seconds that a statement took, and what ended it."""
    begun = time.monotonic()
    try:
        await asyncio.to_thread(session.execute, statement.encode())
    except psycopg.Error as error:
        return time.monotonic() - begun, error
    return time.monotonic() - begun, None


@pytest.mark.parametrize("statement", [SLOW, BUSY])
async def test_a_long_query_is_cancelled(services: Services, session: psycopg.Connection, statement: str) -> None:
    async with watching(services):
        took_s, error = await lasted(session, statement)
    assert isinstance(error, psycopg.errors.QueryCanceled)
    assert QUERY_S_MAX < took_s < QUERY_S_MAX + LATE_S_MAX
    assert session.execute("SELECT 1").fetchone() == (1,)  # the session lives on


async def test_without_the_watchdog_it_goes_on(services: Services, session: psycopg.Connection) -> None:
    """The control: what was SET away held nothing."""
    took_s, error = await lasted(session, f"SELECT pg_sleep({QUERY_S_MAX + LATE_S_MAX + 0.2})")
    assert error is None
    assert took_s > QUERY_S_MAX + LATE_S_MAX


async def test_a_query_that_is_short_enough_is_left_alone(services: Services, session: psycopg.Connection) -> None:
    async with watching(services):
        for _ in range(8):
            assert await lasted(session, "SELECT pg_sleep(0.3)") > (0.3, None)


@pytest.mark.parametrize("statement", [CATCHING, COMMITTING])
async def test_a_loop_that_catches_or_commits_loses_its_session(
    services: Services, session: psycopg.Connection, analyst_database: AnalystDatabase, statement: str
) -> None:
    """Where the server is not hardened, so that an analyst may loop at all."""
    with analyst_database.log.connect(superuser=True) as superuser:
        superuser.execute("GRANT USAGE ON LANGUAGE plpgsql TO PUBLIC")
        try:
            async with watching(services):
                took_s, error = await lasted(session, statement)
        finally:
            superuser.execute("REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC")
    assert took_s < QUERY_S_MAX + watchdog.GRACE_S + LATE_S_MAX
    if statement == CATCHING:
        assert isinstance(error, psycopg.OperationalError)
        assert session.closed


async def test_a_client_that_does_not_read_loses_its_session(
    services: Services, session: psycopg.Connection, analyst_database: AnalystDatabase
) -> None:
    """Such a backend waits in its write and hears of no cancel."""
    session.pgconn.send_query(b"SELECT repeat('x', 1000000) FROM generate_series(1, 1000)")
    async with watching(services):
        await until_gone(analyst_database, session)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
async def test_a_transaction_left_open_loses_its_session(
    services: Services, session: psycopg.Connection, analyst_database: AnalystDatabase, level: str
) -> None:
    session.execute(f"BEGIN ISOLATION LEVEL {level}".encode())
    session.execute("SELECT FROM analytics.jobs")
    async with watching(services):
        await until_gone(analyst_database, session)


async def test_small_steps_do_not_keep_a_transaction_open(
    services: Services, session: psycopg.Connection, analyst_database: AnalystDatabase
) -> None:
    session.execute("BEGIN")
    begun, error = time.monotonic(), None
    async with watching(services):
        while error is None:
            _, error = await lasted(session, "SELECT pg_sleep(0.05)")
    assert time.monotonic() < begun + QUERY_S_MAX + watchdog.GRACE_S + LATE_S_MAX


async def test_a_lock_that_migrations_wait_for_is_let_go(
    services: Services, session: psycopg.Connection, analyst_database: AnalystDatabase
) -> None:
    with analyst_database.log.connect(superuser=True) as superuser:
        superuser.execute("GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint) TO PUBLIC")
        try:
            session.execute("SELECT pg_advisory_lock(hashtext('sightline.migrate'))")
            async with watching(services):
                await until_gone(analyst_database, session)
        finally:
            superuser.execute("REVOKE EXECUTE ON FUNCTION pg_advisory_lock(bigint) FROM PUBLIC")


async def test_the_service_itself_is_never_judged(services: Services, analyst_database: AnalystDatabase) -> None:
    """It is a member of the group too, by having made it; and so is, in a way, every superuser."""
    with analyst_database.service() as service, analyst_database.log.connect(superuser=True) as superuser:
        for connection in (service, superuser):
            connection.execute("BEGIN")
            connection.execute("SELECT 1")
        async with watching(services):
            await asyncio.sleep(QUERY_S_MAX + watchdog.GRACE_S + clock.TICK_S)
        for connection in (service, superuser):
            assert connection.execute("SELECT 1").fetchone() == (1,)
            connection.execute("ROLLBACK")


async def test_an_analyst_that_it_may_not_end_is_counted(services: Services, analyst_database: AnalystDatabase) -> None:
    """One whom somebody else made."""
    before = metrics.ANALYST_QUERIES_ENDED.labels("unwatched")._value.get()
    with analyst_database.log.connect(superuser=True) as superuser:
        superuser.execute("CREATE ROLE foreign_made LOGIN IN ROLE sightline_analyst")
        try:
            with as_analyst(psycopg.conninfo.make_conninfo(analyst_database.log.dsn, user="foreign_made")):
                await watchdog.watch(services, now())
        finally:
            superuser.execute("DROP ROLE foreign_made")
    assert metrics.ANALYST_QUERIES_ENDED.labels("unwatched")._value.get() == before + 1


def test_the_clock_has_it_among_its_duties(services: Services) -> None:
    names = [duty.__name__ for duty in clock.Clock(services).duties]
    assert any("watch" in name or "analyst" in name for name in names), names


async def until_gone(database: AnalystDatabase, session: psycopg.Connection) -> None:
    pid, begun = session.info.backend_pid, time.monotonic()
    with database.service() as service:

        async def gone() -> bool:
            return service.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is None

        await until(gone, QUERY_S_MAX + watchdog.GRACE_S + LATE_S_MAX)
    assert time.monotonic() - begun < QUERY_S_MAX + watchdog.GRACE_S + LATE_S_MAX
