"""R14: from a running database to a restored, audited one: backup, verify, copy, replay, new epoch, audit.

The log is filled as P9 fills it, in streams of ten events; then a base backup is taken while a receiver runs, a little
more is appended, and the whole is restored to the end and, in a second round, to a position.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import psycopg

from sightline.adapters import backup, logs, postgres, restore, restore_audit, settings
from sightline.adapters.embedded.postgres import DATABASE, SUPERUSER, PostgresServer

from . import measure
from .p1_append import METADATA, STATE
from .p9_growth import EVENTS_PER_STREAM, FILL, FILL_EVENTS

SIZE = 1_000_000
AFTER_EVENTS = 100_000  # written after the base: they come from the WAL
BATCH_EVENTS = 500  # of one transaction, as the writer's batches
GOAL_S = 60.0
RECEIVED_TIMEOUT_S = 120.0


def run(*, rounds: int, seconds: float, size: int = SIZE) -> None:
    """Measure, print, and keep the table. One taking of each: `rounds` and `seconds` do not count here."""
    del rounds, seconds
    logs.configure(settings.read({}, log_level="warning"))
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        directory = Path(name)
        began = time.monotonic()
        taken_s = _back_up(directory, size)
        click.echo(f"Prepared in {time.monotonic() - began:.0f} s.")
        rows = [("backup", f"{taken_s:.2f}", "")]
        targets = {"to the end": restore.Target(), "to a position": restore.Target(size + AFTER_EVENTS // 2)}
        for title, target in targets.items():
            rows += _restore(directory, title, target, taken_s)
    goal = f"Goal: {GOAL_S:g} s for backup, verify, start and audit of {SIZE:,} events."
    how = f"{size:,} events in the base, {AFTER_EVENTS:,} more in the WAL; fsync on; no cache was dropped in between."
    measure.show("R14: restore", ("step", "seconds", "what"), rows, "r14", (how, goal))


def _back_up(directory: Path, size: int) -> float:
    """Fill a database, and copy it while it runs; the seconds that the base backup took."""
    with PostgresServer(directory / "old") as server:
        postgres.migrate(server.dsn)
        _fill(server, 1, size, each=FILL_EVENTS)
        stopping = threading.Event()
        taken_s = 0.0

        def stop_when_received() -> None:
            nonlocal taken_s
            _wait(lambda: backup.lag_bytes(server) is not None)
            began = time.monotonic()
            _base(directory)
            taken_s = time.monotonic() - began
            _fill(server, size + 1, size + AFTER_EVENTS, each=BATCH_EVENTS)
            _wait(lambda: backup.lag_bytes(server) == 0)
            stopping.set()

        beside = threading.Thread(target=stop_when_received)
        beside.start()
        backup.receive(server, directory / "wal", stopping=stopping)
        beside.join()
    return taken_s


def _base(directory: Path) -> None:
    """By the command line: children are started from the main thread, which receives."""
    command = ["backup", "base", "--data-dir", str(directory / "old"), "--to", str(directory / "base")]
    subprocess.run([sys.executable, "-m", "sightline", *command], check=True, capture_output=True)


def _fill(server: PostgresServer, first: int, last: int, *, each: int) -> None:
    dsn = server.superuser_dsn.replace(f"/{SUPERUSER}?", f"/{DATABASE}?")
    values = {"data": STATE.decode(), "metadata": METADATA.decode(), "each": EVENTS_PER_STREAM}
    with psycopg.connect(dsn, autocommit=True) as connection:
        for begin in range(first, last + 1, each):
            connection.execute(FILL, values | {"first": begin, "last": min(begin + each - 1, last)})


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + RECEIVED_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def _restore(directory: Path, title: str, target: restore.Target, taken_s: float) -> list[tuple[str, str, str]]:
    new = directory / "new"
    timed = restore.Timed(click.echo)
    lent = restore.restored(directory / "base", directory / "wal", new, target, timed)
    with lent as (server, result), timed.step("audit") as said:
        said.append(str(restore_audit.audit(server.dsn, new / "keys")))
    shutil.rmtree(new)
    rows = [(f"{title}: {step.name}", f"{step.seconds:.2f}", step.said) for step in timed.steps]
    total_s = taken_s + timed.total_s
    return [*rows, (f"{title}: total with backup", f"{total_s:.2f}", f"reached position {result.position:,}")]
