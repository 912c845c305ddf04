"""PgBouncer in front of the database is restarted under load: nothing that was acknowledged is lost, and it goes on.

Skipped where there is no `pgbouncer` (Debian: `apt install pgbouncer`).
"""

import asyncio
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.conftest_log import LogDatabase, assert_whole, command, log_rows
from tests.conftest_parts import wait_for

from sightline.adapters.embedded.identity import choose
from sightline.adapters.embedded.processes import kill, spawn
from sightline.adapters.event_store.writer import Appended, Repeat, StoreBusy, StoreUnavailable, Writer
from sightline.adapters.postgres import pool

PROGRAM = shutil.which("pgbouncer")
RESTARTS = 5
PORT = 6432
INI = """
[databases]
* = host={host} port={port}
[pgbouncer]
unix_socket_dir = {directory}
listen_addr =
listen_port = {own_port}
auth_type = any
auth_file =
pool_mode = transaction
default_pool_size = 10
ignore_startup_parameters = extra_float_digits
logfile = {directory}/log
"""

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")


class Bouncer:
    def __init__(self, directory: Path, database: LogDatabase) -> None:
        server = conninfo_to_dict(database.dsn)
        text = INI.format(host=server["host"], port=server["port"], directory=directory, own_port=PORT)
        text = text.replace("* = host", f"* = user={server['user']} host")
        self._ini = directory / "pgbouncer.ini"
        self._ini.write_text(text)
        self.dsn = make_conninfo(database.dsn, host=str(directory), port=PORT)
        self._socket = directory / f".s.PGSQL.{PORT}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # It does not run as root either; in a user namespace the files keep their owner.
        run_as = choose(self._ini.with_name("none"))
        assert PROGRAM is not None
        self._process = spawn(
            [PROGRAM, self._ini], env=dict(os.environ), run_as=run_as, log_path=self._ini.with_name("out")
        )
        wait_for(self._answers)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        if self._process is not None:
            kill(self._process)
            self._socket.unlink(missing_ok=True)
            self._process = None


@pytest.fixture
def bouncer(log_database: LogDatabase) -> Iterator[Bouncer]:
    with tempfile.TemporaryDirectory(prefix="sightline-bouncer-") as name:
        made = Bouncer(Path(name), log_database)
        try:
            made.start()
            yield made
        finally:
            made.kill()


async def test_restarted_again_and_again_under_load(bouncer: Bouncer, log_database: LogDatabase) -> None:
    ledger: list[tuple[int, uuid.UUID]] = []
    writer = Writer(bouncer.dsn, prepare=False)
    await writer.start()

    async def append_for_ever() -> None:
        while True:
            stream = uuid.uuid4()
            try:
                outcome = await writer.append(command((stream, 0)))
            except (StoreUnavailable, StoreBusy):
                continue
            assert isinstance(outcome, Appended | Repeat), outcome
            ledger.append((outcome.position, stream))

    load = [asyncio.create_task(append_for_ever()) for _ in range(8)]
    async with pool(bouncer.dsn, prepare=False) as reads:
        for _ in range(RESTARTS):
            enough = len(ledger) + 200
            async with asyncio.timeout(300):
                while len(ledger) < enough:  # noqa: ASYNC110  # what is waited for is what the tasks have done
                    await asyncio.sleep(0.01)
            bouncer.kill()
            async with asyncio.timeout(300):
                while not writer.failing:  # noqa: ASYNC110  # it is told by a connection that is cut
                    await asyncio.sleep(0.01)
            bouncer.start()
            async with reads.connection() as connection:  # checked before it is lent: a restart costs no error
                await connection.execute("SELECT 1")
        enough = len(ledger) + 200
        async with asyncio.timeout(300):
            while len(ledger) < enough:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)
    for task in load:
        task.cancel()
    await asyncio.wait(load)
    await writer.close()
    rows = log_rows(log_database)
    assert_whole(rows)
    found = {position: stream for position, stream, _ in rows}
    assert [position for position, stream in ledger if found.get(position) != stream] == []
    print(f"{RESTARTS} restarts, {len(ledger)} acknowledged, 0 lost")
