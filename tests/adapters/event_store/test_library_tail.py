"""R3 for the library face: whoever reads an application's notification log while other processes save skips nothing.

The figure of the promise, ten runs of 150,000 events, printed:

    LIBRARY_TAIL_EVENTS=150000 LIBRARY_TAIL_RUNS=10 python -m pytest tests/adapters/event_store/test_library_tail.py -s
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Notification
from eventsourcing.system import NotificationLogReader
from tests.conftest_log import ROOT, LogDatabase

EVENTS = int(os.environ.get("LIBRARY_TAIL_EVENTS", "20000"))
RUNS = int(os.environ.get("LIBRARY_TAIL_RUNS", "1"))
PROCESSES, THREADS_EACH = 2, 3
EVENTS_A_SAVE_MAX = 20
SECTION_SIZE = 500
EVENTS_A_SECOND_MIN = 500  # slower than that on the busiest machine, something is stuck
CONTROL_EVENTS, CONTROL_RUNS_MAX = 6_000, 50
CONTROL_A_SAVE_MAX = 3  # more commits, more chances


class Counter(Aggregate):
    @event("Counted")
    def count(self) -> None:
        pass


class Counters(Application[UUID]):
    pass


def save(environ: dict[str, str], events: int, a_save_max: int) -> None:
    """Threads of this process save so many events, 1 to `a_save_max` a call."""

    def save_some(thread: int) -> None:
        left, call = events // THREADS_EACH, thread
        while left:
            size = min(left, 1 + call % a_save_max)
            counter = Counter()
            for _ in range(size - 1):
                counter.count()
            application.save(counter)
            left, call = left - size, call + 1

    with closing(_one_at_a_time(environ)) as application, ThreadPoolExecutor(THREADS_EACH) as threads:
        list(threads.map(save_some, range(THREADS_EACH)))


def _one_at_a_time(environ: dict[str, str]) -> Counters:
    """The library's own module replaces its functions at every start, and fails where two processes do so at once."""
    with Path(__file__).open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        return Counters(env=environ)


@contextmanager
def savers(environ: dict[str, str], events: int, a_save_max: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    figures = (str(events // PROCESSES), str(a_save_max))
    line = [sys.executable, "-m", "tests.adapters.event_store.test_library_tail", *figures]
    running = [subprocess.Popen(line, cwd=ROOT, env={**os.environ, **environ}) for _ in range(PROCESSES)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def tail(
    environ: dict[str, str], events: int, a_save_max: int = EVENTS_A_SAVE_MAX
) -> tuple[list[Notification], int, int]:
    """What the library's own reader sees beside the savers, from section to section until all have ended and nothing
    is left; how many sections it read beside them, and how many events there are.
    """
    seen: list[Notification] = []
    beside = 0
    with closing(Counters(env=environ)) as application:
        reader = NotificationLogReader(application.notification_log, section_size=SECTION_SIZE)
        with savers(environ, events, a_save_max) as processes:
            deadline = time.monotonic() + 60 + events / EVENTS_A_SECOND_MIN
            while time.monotonic() < deadline:
                saving = any(process.poll() is None for process in processes)
                found = list(reader.read(start=seen[-1].id + 1 if seen else 1))
                seen += found
                beside += saving and bool(found)
                if not saving and not found:
                    break
            assert [process.wait(60) for process in processes] == [0] * PROCESSES
        return seen, beside, application.recorder.max_notification_id() or 0


@pytest.mark.parametrize("run", range(RUNS))
def test_a_reader_of_the_notification_log_sees_exactly_the_table(
    variables: dict[str, str], library_database: LogDatabase, run: int
) -> None:
    seen, beside, last = tail(variables, EVENTS)
    with library_database.connect() as connection:
        table = connection.execute(
            "SELECT stream_id, version, topic, data, position FROM counters.events ORDER BY position"
        ).fetchall()
    assert seen == [Notification(*row) for row in table]
    assert [one.id for one in seen] == list(range(1, last + 1))
    assert last == EVENTS // PROCESSES // THREADS_EACH * PROCESSES * THREADS_EACH
    assert beside > 2  # it read while they wrote
    print(f"run {run + 1}: {last:,} events, {PROCESSES * THREADS_EACH} savers, {beside} reads beside them, 0 skipped")


def test_beside_their_function_mode_it_skips(variables: dict[str, str], library_database: LogDatabase) -> None:
    """The control: the library's own module, with positions from a sequence and no lock."""
    loose = {"PERSISTENCE_MODULE": "eventsourcing.postgres", "POSTGRES_ENABLE_DB_FUNCTIONS": "y"}
    environ = {**variables, **loose, "POSTGRES_PASSWORD": "none"}
    for _ in range(CONTROL_RUNS_MAX):
        seen, _, _ = tail(environ, CONTROL_EVENTS, CONTROL_A_SAVE_MAX)
        with library_database.connect() as connection:
            stored: Any = connection.execute("SELECT count(*) FROM counters_events").fetchone()
            connection.execute("DROP TABLE counters_events")
        print(f"{stored[0] - len(seen):,} of {stored[0]:,} skipped")
        if len(seen) < stored[0]:
            return
    pytest.fail("nothing was skipped: the test above would not notice either")


if __name__ == "__main__":
    save(dict(os.environ), *map(int, sys.argv[1:]))
