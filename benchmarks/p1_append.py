"""P1: durable conditional appends per second, one event a command.

Ours carries what a command of the service carries: a command id and its receipt, and an expectation on a stream that
exists and has versions. The peers do less: the `eventsourcing` library's own recorder has no receipts, `pgbench`
inserts a single row and checks nothing. Same server, same configuration, fsync and synchronous_commit on, in turn.
"""

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import click
import msgspec
import psycopg
import uvloop
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from msgspec import Struct
from prometheus_client import REGISTRY

from sightline.adapters import postgres
from sightline.adapters.embedded.binaries import pgbench_path
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.event_store.codec import Fact
from sightline.adapters.event_store.store import EventStore, open_event_store
from sightline.adapters.event_store.wire import Append, Expectation
from sightline.adapters.event_store.writer import Appended
from sightline.adapters.ids import uuid7
from sightline.domain.events import EVENTS
from sightline.domain.jobs import JobSubmitted
from sightline.domain.kernel import Caller

from . import measure
from .measure import Cell

WARM_UP_S = 0.5
STREAMS_PER_WRITER = 20
EVENT = JobSubmitted(at=datetime(2026, 1, 1, tzinfo=UTC), owner="local", kind="noop", params={"sleep_s": 0.0})
STATE = msgspec.json.encode(EVENT)
METADATA = b'{"actor":"local","correlation_id":"01a1fd2c-bc94-7661-80f2-16a77f1e2503","causation_id":"command:1"}'


class Load(Struct, frozen=True):
    """So many writers, spread evenly over so many processes."""

    writers: int
    processes: int = 1

    def __str__(self) -> str:
        name = f"{self.writers} writer{'s' if self.writers > 1 else ''}"
        return name if self.processes == 1 else f"{name}, {self.processes} processes"


LOADS = (Load(1), Load(8), Load(32), Load(128), Load(32, 4), Load(32, 16))


def calls_so_far() -> tuple[float, float]:
    """How many calls of append_batch this process made, and the seconds that it waited for them."""
    names = ("sightline_append_seconds_count", "sightline_append_seconds_sum")
    count, total_s = (REGISTRY.get_sample_value(name) or 0.0 for name in names)
    return count, total_s


async def append_for(
    dsn: str, writers: int, seconds: float, *, versions: Mapping[UUID, int] | None = None
) -> tuple[float, float, float]:
    """Our store, `writers` tasks in this process: appends per second, calls per second, share of time in calls.

    On streams of their own, or on those of `versions`.
    """
    async with open_event_store(dsn, EVENTS) as store:
        streams = versions or {uuid7(): 0 for _ in range(STREAMS_PER_WRITER * writers)}
        counts = [0] * writers

        async def write(number: int, ends: float) -> None:
            await _writer(store, list(streams.items())[number::writers], counts, number, ends)

        ends = time.perf_counter() + WARM_UP_S
        await asyncio.gather(*(write(n, ends) for n in range(writers)))
        before, (calls, waited_s), began = sum(counts), calls_so_far(), time.perf_counter()
        ends = began + seconds
        await asyncio.gather(*(write(n, ends) for n in range(writers)))
        took_s = time.perf_counter() - began
        calls_after, waited_after_s = calls_so_far()
        return (
            (sum(counts) - before) / took_s,
            (calls_after - calls) / took_s,
            (waited_after_s - waited_s) / took_s,
        )


async def _writer(
    store: EventStore, streams: Sequence[tuple[UUID, int]], counts: list[int], number: int, ends: float
) -> None:
    while time.perf_counter() < ends:
        count = counts[number]
        stream_id, version = streams[count % len(streams)]
        version += count // len(streams)
        caller = Caller(
            actor="local", now=EVENT.at, command_id=uuid7(), correlation_id="benchmark", causation_id="benchmark"
        )
        outcome = await store.append(
            Append(
                command_id=caller.command_id,
                expectations=[Expectation(stream_id, version, writes=True)],
                events=[store.mapper.to_stored_event(Fact(stream_id, version + 1, EVENT))],
                metadata=store.mapper.metadata(caller),
            )
        )
        assert isinstance(outcome, Appended), outcome
        counts[number] += 1


def stock_recorder(dsn: str, connections: int) -> PostgresApplicationRecorder:
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    datastore = PostgresDatastore(
        dbname=str(parts["dbname"]),
        host=str(parts["host"]),
        port=str(parts.get("port") or 5432),
        user=str(parts["user"]),
        password=str(parts.get("password") or "none"),
        pool_size=connections,
        max_overflow=0,
    )
    return PostgresApplicationRecorder(datastore, events_table_name="stock_events")


def stock_for(dsn: str, writers: int, seconds: float) -> float:
    """The library's recorder: appends per second of `writers` threads in this process."""
    recorder = stock_recorder(dsn, writers)
    counts = [0] * writers
    streams = [[uuid7() for _ in range(STREAMS_PER_WRITER)] for _ in range(writers)]

    def write(number: int, ends: float) -> None:
        while time.perf_counter() < ends:
            count = counts[number]
            stream_id, version = streams[number][count % STREAMS_PER_WRITER], count // STREAMS_PER_WRITER
            recorder.insert_events([StoredEvent(stream_id, version + 1, "job.submitted", STATE)])
            counts[number] += 1

    def all_write(ends: float) -> None:
        threads = [threading.Thread(target=write, args=(number, ends)) for number in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    try:
        all_write(time.perf_counter() + WARM_UP_S)
        before, began = sum(counts), time.perf_counter()
        all_write(began + seconds)
        return (sum(counts) - before) / (time.perf_counter() - began)
    finally:
        recorder.datastore.close()


PGBENCH_TABLE = """
CREATE TABLE IF NOT EXISTS pgbench_events (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, stream_id uuid NOT NULL, version bigint NOT NULL,
    topic text NOT NULL, data json NOT NULL, metadata json NOT NULL, recorded_at timestamptz NOT NULL
)
"""
PGBENCH_INSERT = (
    "INSERT INTO pgbench_events (stream_id, version, topic, data, metadata, recorded_at)"
    " VALUES (gen_random_uuid(), 1, 'job.submitted', '{}', '{}', now());\n"
)


def pgbench_for(dsn: str, load: Load, seconds: float) -> float:
    """pgbench, prepared: single-row INSERTs per second."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        # `:null` would be a variable to pgbench; a space after each colon is the same JSON.
        texts = [text.decode().replace('":', '": ') for text in (STATE, METADATA)]
        script.write(PGBENCH_INSERT.format(*texts))
        script.flush()
        run = subprocess.run(
            [
                str(pgbench_path()),
                *("-n", "-M", "prepared", "-j", "2", "-c", str(load.writers)),
                *("-T", str(max(1, round(seconds))), "-f", script.name, dsn),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    line = next(line for line in run.stdout.splitlines() if line.startswith("tps ="))
    return float(line.split()[2])


def in_processes(subject: str, dsn: str, load: Load, seconds: float) -> list[float]:
    """Sums over fresh processes, each with its share of the writers, which begin when the last one is ready."""
    command = [sys.executable, "-m", "benchmarks.p1_append", subject, dsn]
    share = str(load.writers // load.processes)
    children = [
        subprocess.Popen([*command, share, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(load.processes)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError(f"{subject} failed under {load}")
    return [sum(column) for column in zip(*(map(float, output.split()) for output in outputs), strict=True)]


def run(*, rounds: int, seconds: float, loads: Sequence[Load] = LOADS) -> None:
    """Measure, print, and keep table, figures and plot."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as directory, PostgresServer(Path(directory)) as server:
        dsn = server.dsn
        postgres.migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(PGBENCH_TABLE)
        stock = stock_recorder(dsn, 1)
        stock.create_table()
        stock.datastore.close()
        cells = measure.in_turn(
            {
                "sightline": lambda load: in_processes("ours", dsn, load, seconds)[0],
                "eventsourcing": lambda load: in_processes("stock", dsn, load, seconds)[0],
                "pgbench": lambda load: pgbench_for(dsn, load, seconds),
            },
            loads,
            rounds=rounds,
            title="P1",
        )
        report(cells, loads, rounds=rounds, seconds=seconds)
        explain(dsn, loads, seconds=seconds)


def explain(dsn: str, loads: Sequence[Load], *, seconds: float) -> None:
    """Why it stops where it does: what one more taking of each load spends its time on."""
    rows = []
    for load in loads:
        rate, calls, share = in_processes("ours", dsn, load, seconds)
        call_ms, outside = 1000 * share / calls, max(0.0, 1 - share / load.processes)
        own_us = 1e6 * outside * load.processes / rate
        in_calls = (f"{call_ms:.2f}", f"{1000 * call_ms * calls / rate:.0f}", f"{share / load.processes:.0%}")
        rows.append((str(load), f"{rate / calls:.1f}", *in_calls, f"{own_us:.0f}"))
    measure.show(
        "P1: where the time goes",
        ("load", "commands a call", "ms a call", "µs a command in calls", "in calls", "µs a command outside"),
        rows,
        "p1_where",
        (
            (
                "A call is append_batch with its lock, its lookups, its rows and its flush; between processes it is the"
                " wait for the lock as well. Calls of one process do not overlap, so its rate is one over both columns"
                " of µs together; what is outside is this process, resuming writers and rendering their next commands."
            ),
        ),
    )


def report(cells: dict[str, dict[Load, Cell]], loads: Sequence[Load], *, rounds: int, seconds: float) -> None:
    rows = []
    for load in loads:
        ours, stock, insert = (cells[name][load] for name in ("sightline", "eventsourcing", "pgbench"))
        ratios = (f"{ours.median / stock.median:.1f} ×", f"{ours.median / insert.median:.2f} ×")
        rows.append((str(load), ours.text, stock.text, insert.text, *ratios))
    measure.show(
        "P1: durable appends per second",
        ("load", "sightline", "eventsourcing", "pgbench INSERT", "÷ eventsourcing", "÷ pgbench"),
        rows,
        "p1",
        (
            f"Median of {rounds} rounds of {seconds:g} s (lowest–highest), in turn, fsync and synchronous_commit on.",
            (
                "Ours: expectation on an existing stream, command id, receipt, gap-free position. eventsourcing: its"
                " own PostgresApplicationRecorder. pgbench: one prepared INSERT a transaction, no check of any kind."
            ),
        ),
    )
    measure.keep("p1", cells)
    plot(cells, [load for load in loads if load.processes == 1])


def plot(cells: dict[str, dict[Load, Cell]], loads: Sequence[Load]) -> None:
    with measure.picture("p1") as axes:
        for name, style in (("sightline", "o-"), ("pgbench", "s--"), ("eventsourcing", "^:")):
            row = [cells[name][load] for load in loads]
            medians = [cell.median for cell in row]
            spread = [[cell.median - cell.low for cell in row], [cell.high - cell.median for cell in row]]
            axes.errorbar([load.writers for load in loads], medians, yerr=spread, fmt=style, capsize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([load.writers for load in loads], [str(load.writers) for load in loads])
        axes.set_xlabel("writers in one process")
        axes.set_ylabel("durable appends per second")
        axes.grid(which="both", alpha=0.3)
        axes.legend()


@click.command()
@click.argument("subject", type=click.Choice(["ours", "stock"]))
@click.argument("dsn")
@click.argument("writers", type=int)
@click.argument("seconds", type=float)
def main(subject: str, dsn: str, writers: int, seconds: float) -> None:
    """One process's share: says that it is ready, waits for a line, prints its figures, appends per second first."""
    click.echo("ready")
    sys.stdin.readline()
    if subject == "ours":
        click.echo(" ".join(map(str, uvloop.run(append_for(dsn, writers, seconds)))))
    else:
        click.echo(stock_for(dsn, writers, seconds))


if __name__ == "__main__":
    main()
