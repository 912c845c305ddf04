"""A writer that the system stops (a debugger, a frozen container, a paging storm) does not stop the others."""

import random
import select
import signal
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer
from tests.adapters.event_store.test_append_batch import Log
from tests.adapters.event_store.test_tail import appenders
from tests.conftest_log import LogDatabase, command
from tests.conftest_parts import wait_for

from sightline.adapters.event_store import wire
from sightline.adapters.event_store.wire import Append
from sightline.adapters.event_store.writer import BATCH_EVENTS_MAX

STOPS = 60
BLOCKED_S_MAX = 1.0
PATIENT_S = 30.0  # a stopped writer that blocks does so for ever; a busy machine may well take a second
CONTROL_STOPS_MAX = 1_000
HEAD = "SELECT coalesce(max(position), 0) FROM events"


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def has_grown(log: Log, head: int) -> bool:
    return bool(log.one(HEAD) > head)


def longest_append_s(log: Log) -> float:
    """Of five, one after the other."""
    longest = 0.0
    for _ in range(5):
        started = time.monotonic()
        log.call(command((uuid4(), 0)))
        longest = max(longest, time.monotonic() - started)
    return longest


def stop_again_and_again(database: LogDatabase, mode: str, stops: int, patience_s: float) -> tuple[list[float], int]:
    """Per stop of another process under load, at a random moment, our longest append while it stands; and how many
    were blocked, of which the first is the last."""
    dice = random.Random(1)
    found: list[float] = []
    with database.connect() as connection, appenders(mode, database.dsn, processes=1) as (other,):
        connection.execute(f"SET statement_timeout = {patience_s * 1000:.0f}".encode())
        log = Log(connection)
        for _ in range(stops):
            head = log.one(HEAD)
            wait_for(partial(has_grown, log, head))
            time.sleep(dice.uniform(0, 0.01))  # the moment is what is random here
            other.send_signal(signal.SIGSTOP)
            try:
                wait_for(lambda: is_stopped(other.pid))
                found.append(longest_append_s(log))
            except psycopg.errors.QueryCanceled:
                return found, 1
            finally:
                other.send_signal(signal.SIGCONT)
    return found, 0


def test_a_stopped_writer_blocks_nobody_for_more_than_a_second(log_database: LogDatabase) -> None:
    """The figure is printed; what is asserted is that nobody waits for as long as it stands."""
    longest_s, blocked = stop_again_and_again(log_database, "endless", STOPS, PATIENT_S)
    assert (len(longest_s), blocked) == (STOPS, 0)
    print(f"longest append beside a stopped writer: {max(longest_s) * 1000:.1f} ms")


def test_in_three_messages_it_would(log_database: LogDatabase) -> None:
    assert stop_again_and_again(log_database, "three-messages", CONTROL_STOPS_MAX, BLOCKED_S_MAX)[1] == 1


@pytest.mark.parametrize(
    ("result_bytes", "blocks"), [(wire.RETURNED_BYTES_MAX, False), (20 * wire.RETURNED_BYTES_MAX, True)]
)
def test_an_answer_that_nobody_reads_blocks_nobody(
    log_database: LogDatabase, monkeypatch: pytest.MonkeyPatch, result_bytes: int, blocks: bool
) -> None:
    """The largest answer there is, a batch of repeats, to a process that is stopped before it reads; and, as the
    control, the same with larger results, which do not fit between the two and keep the log locked."""
    monkeypatch.setattr(wire, "RETURNED_BYTES_MAX", result_bytes)
    with closing(log_database.connect()) as silent, log_database.connect() as connection:
        log = Log(connection)
        largest = BATCH_EVENTS_MAX + 1  # commands
        repeats = [command(result=b'"%s"' % (b"x" * (result_bytes - 2))) for _ in range(largest)]
        log.call(*repeats)
        send_and_never_read(silent, Log(silent).epoch, repeats)
        patience_s = BLOCKED_S_MAX if blocks else PATIENT_S
        connection.execute(f"SET statement_timeout = {patience_s * 1000:.0f}".encode())
        if blocks:
            with pytest.raises(psycopg.errors.QueryCanceled):
                log.call(command((uuid4(), 0)))
        else:
            log.call(command((uuid4(), 0)))


def send_and_never_read(connection: psycopg.Connection, epoch: UUID, commands: list[Append]) -> None:
    """Returns once the server is at it, or through with it."""
    query = PostgresQuery(Transformer(connection))
    query.convert(wire.STATEMENT, wire.parameters(epoch, [wire.render(one) for one in commands]))
    connection.pgconn.nonblocking = 1
    connection.pgconn.send_query_params(query.query, query.params, param_types=query.types, param_formats=query.formats)
    wait_for(lambda: connection.pgconn.flush() == 0)
    select.select([connection.fileno()], [], [], 60)  # the first bytes of the answer are there
