"""The machine's clock is set by an hour, forwards and back: nothing is lost, nothing hangs, nothing answers 5xx.

The service's time is handed in where it is asked for. The database's is stepped for real while it runs, by libfaketime
(Debian: `libfaketime`, or SIGHTLINE_TESTS_LIBFAKETIME); without it that test is skipped. Python's own cannot be: with
libfaketime 0.9.10 either its sleep fails, or the monotonic clock, which no operator can set, is stepped as well.
"""

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from msgspec.structs import replace
from tests.conftest_log import LogDatabase, assert_whole, log_rows
from tests.conftest_parts import wait_for
from tests.conftest_service import Service, short_lived
from tests.http.door import BASE_URL, opened

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.settings import Settings
from sightline.commands import attempts
from sightline.http import manners
from sightline.projections.jobs import LIVE_WORKERS
from sightline.workers import lifecycle
from sightline.workers.clock import Clock
from sightline.workers.leases import Lease

HOUR_S = 3600
FOUND = [
    *filter(None, [os.environ.get("SIGHTLINE_TESTS_LIBFAKETIME")]),
    *map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")),
]
needs_faketime = pytest.mark.skipif(not FOUND, reason="libfaketime is not installed")


class Clockwork:
    """Where libfaketime reads how far off the clock is."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "faketime"
        self.set(0)
        self.environ: dict[str, str] = {
            "LD_PRELOAD": FOUND[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset_s: int) -> None:
        fresh = self._path.with_name("faketime.new")
        fresh.write_text(f"{offset_s:+d}\n")
        fresh.replace(self._path)


@pytest.fixture
def clockwork() -> Iterator[Clockwork]:
    with tempfile.TemporaryDirectory(prefix="sightline-clock-") as name:
        Path(name).chmod(0o755)
        yield Clockwork(Path(name))


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forwards", "back"])
async def test_the_services_clock_steps(
    service_settings: Settings, log_database: LogDatabase, monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    """Every request is answered, what was acknowledged is there, and recorded_at is the database's all the while."""
    acknowledged: set[UUID] = set()
    offset_s = 0
    monkeypatch.setattr(manners, "now", lambda: datetime.now(UTC) + timedelta(seconds=offset_s))
    async with opened(replace(service_settings, base_url=BASE_URL)) as door:
        for offset_s in (0, step_s, 0):  # noqa: B007  # read by the clock above
            for _ in range(5):
                answer = await door.client.post("/v1/jobs", json={"kind": "noop"})
                assert answer.status_code == 201, answer.text
                acknowledged.add(UUID(answer.json()["id"]))
                cancelled = await door.client.post(f"/v1/jobs/{answer.json()['id']}/cancel")
                assert cancelled.json()["status"] == "cancelled"
                session = await door.client.post("/v1/sessions")
                assert session.status_code == 201
                assert (await door.get(f"/v1/sessions/{session.json()['id']}", session)).status_code == 200
            assert (await door.client.get("/readyz")).status_code == 200
    rows = log_rows(log_database)
    assert_whole(rows)
    assert acknowledged <= {stream for _, stream, _ in rows}
    with log_database.connect() as connection:
        query = "SELECT max(abs(extract(epoch FROM recorded_at - (data ->> 'at')::timestamptz))) FROM events"
        (furthest_s,) = connection.execute(query).fetchone() or (0,)
    assert furthest_s > HOUR_S / 2, "the control: it did step"


@needs_faketime
@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forwards", "back"])
def test_the_databases_clock_steps(clockwork: Clockwork, step_s: int) -> None:
    """It judges leases: who lives has one again at its next renewal, who is dead has none in the end."""
    prefix = ["/usr/bin/env", *(f"{name}={value}" for name, value in clockwork.environ.items())]
    with (
        tempfile.TemporaryDirectory(prefix="sightline-clock-") as name,
        PostgresServer(Path(name), prefix=prefix) as server,
    ):
        postgres.migrate(server.dsn)
        settings = short_lived(server.dsn, "", Path(name))
        with psycopg.connect(server.dsn, autocommit=True) as connection:

            def live() -> set[str]:
                return {worker for (worker,) in connection.execute(LIVE_WORKERS).fetchall()}

            lease, dead = Lease(settings, "w1"), Lease(settings, "w2")
            for one in (lease, dead):
                one.start()
            dead._stopping.set()  # as killed: it renews no more, and gives nothing back
            dead._thread.join()
            assert live() == {"w1", "w2"}
            clockwork.set(step_s)
            wait_for(lambda: live() == {"w1"}, 60)
            clockwork.set(0)
            wait_for(lambda: live() == {"w1"}, 60)
            assert not lease.lost
            lease.stop()


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forwards", "back"])
async def test_a_running_job_is_not_timed_out_by_a_clock_that_was_set(service: Service, step_s: int) -> None:
    """Handed in, instead of stepped. The control: a clock that has not seen the job before must believe the time."""
    job_id = await service.submit(attempts_max=5)
    lease = Lease(service.settings, "w1")
    lease.start()
    try:
        await _start(service, job_id, 1)
        await service.caught_up()
        clock = Clock(service.services)
        for offset_s in (0, step_s):
            await clock.time_out_jobs(lifecycle.now() + timedelta(seconds=offset_s))
        job = await service.job(job_id)
        assert (job.status, job.attempt) == ("processing", 1)
        await Clock(service.services).time_out_jobs(lifecycle.now() + timedelta(seconds=step_s))
        assert (await service.job(job_id)).status == ("failed" if step_s > 0 else "processing")
    finally:
        lease.stop()
    with psycopg.connect(service.settings.database_url) as connection:
        rows = connection.execute("SELECT position, stream_id, version FROM events ORDER BY position").fetchall()
    assert_whole(rows)


async def _start(service: Service, job_id: UUID, attempt: int) -> None:
    start = attempts.StartJob(job_id=job_id, worker="w1", lease_until=lifecycle.now() + timedelta(seconds=60))
    receipt = await service.run(attempts.start_job, start)
    assert receipt.state.attempt == attempt
