"""P5: a projection that catches up from the first event, events per second into real read models.

Ours folds every read model there is, with its history and the lineage, and in the rebuild one model beside the live
one. The peer is the `eventsourcing` library's ProjectionRunner as its documentation has it: a materialised view on
PostgresTrackingRecorder, one transaction an event. It does less: the job's row and nothing of the rest, folded by the
same function from the same events of the same log, its mapper being ours. Same server, same configuration, fsync and
synchronous_commit on, in turn. The log is whole lives made by the domain's own decisions (see lives).
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import click
import msgspec
import psycopg
import uvloop
from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import ROLE, PostgresServer
from sightline.adapters.event_store.codec import EventMapper, Fact, Recorded
from sightline.domain.events import EVENTS
from sightline.projections import catalogue
from sightline.projections.jobs import JOBS, JobRow
from sightline.projections.rebuild import rebuild
from sightline.projections.writing import collecting_rarely
from sightline.workers.projector import Follower

from . import measure
from .lives import Log
from .measure import Cell

SIZES = (20_000, 100_000, 500_000)
QUICK_SIZES = (20_000, 60_000)
QUICK_BELOW_S = 1.0
SUBJECTS = ("sightline", "sightline rebuild", "eventsourcing")
COLUMNS = ("stream_id", "version", "topic", "data", "position", "metadata", "recorded_at")
GOAL_RATIO, GOAL_PER_S = 30, 50_000

# The library's own table of events, filled with the same ones in the same order.
PEER_EVENTS: LiteralString = """
INSERT INTO replayed_events (originator_id, originator_version, topic, state)
SELECT stream_id, version, topic, convert_to(data::text, 'UTF8') FROM events ORDER BY position
"""
PEER_VIEW: LiteralString = "CREATE TABLE IF NOT EXISTS peer_jobs (job_id uuid PRIMARY KEY, row json NOT NULL)"


async def catch_up(dsn: str) -> float:
    """Empty read models, then every event there is."""
    async with await postgres.connect(dsn) as writer, await postgres.connect(dsn) as reader:
        for model in catalogue.ALL_MODELS:
            await writer.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(model.table)))
        for model in catalogue.READ_MODELS:
            if model.history:
                await writer.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(model.history_table)))
        await writer.execute("UPDATE projection_checkpoints SET position = 0")
        follower = Follower(catalogue.projector(EventMapper(EVENTS)), writer, reader)
        events, began = 0, time.perf_counter()
        with collecting_rarely():
            while count := await follower.step():
                events += count
        took_s = time.perf_counter() - began
        await follower.close()
    return float(events / took_s)


async def rebuild_jobs(dsn: str) -> float:
    """Jobs and their history, beside the live ones and then in their place."""
    began = time.perf_counter()
    done = await rebuild(dsn, JOBS.name, EventMapper(EVENTS))
    return done.position / (time.perf_counter() - began)


class Replayed(Application[UUID]):
    """The log as the library has it; what it holds is decoded by our mapper, which is the faster one."""

    name = "replayed"

    def construct_mapper(self) -> Mapper[UUID]:
        return EventMapper(EVENTS)


class PeerView(PostgresTrackingRecorder):
    """A row per job, and how far it is, in one transaction."""

    def __init__(self, datastore: PostgresDatastore, **names: Any) -> None:
        super().__init__(datastore, **names)
        self.sql_create_statements.append(sql.SQL(PEER_VIEW).format())

    def fold(self, fact: Fact, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            if type(fact.event).__module__ != "sightline.domain.jobs":
                return
            cursor.execute("SELECT row::text FROM peer_jobs WHERE job_id = %s", (fact.originator_id,), prepare=True)
            found = cursor.fetchone()
            before = None if found is None else msgspec.json.decode(found["row"], type=JobRow)
            at = Recorded(
                fact.originator_id,
                fact.originator_version,
                fact.event.__struct_config__.tag,
                b"",
                tracking.notification_id,
                b"",
                datetime.now(UTC),
            )
            row = msgspec.json.encode(JOBS.apply(before, fact.event, at)).decode()
            cursor.execute(
                "INSERT INTO peer_jobs VALUES (%s, %s) ON CONFLICT (job_id) DO UPDATE SET row = excluded.row",
                (fact.originator_id, row),
                prepare=True,
            )


class PeerProjection(Projection[PeerView]):
    name = "peer"

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.fold(domain_event, tracking)


def environment(dsn: str) -> dict[str, str]:
    parts = conninfo_to_dict(dsn)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts.get("port") or 5432),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password") or "none"),
        "SINGLE_ROW_TRACKING": "y",
    }


def library_runner(dsn: str, seconds: float) -> float:
    """The library's runner from the first event on, for so many seconds or to the last event."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS peer_jobs, peer_tracking")
        row = connection.execute("SELECT max(position) FROM events").fetchone()
    assert row is not None
    with ProjectionRunner(
        application_class=Replayed, projection_class=PeerProjection, view_class=PeerView, env=environment(dsn)
    ) as runner:
        while not (first := runner.view.max_tracking_id("replayed")):
            time.sleep(0.01)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds and (runner.view.max_tracking_id("replayed") or 0) < row[0]:
            time.sleep(0.05)
        events, took_s = (runner.view.max_tracking_id("replayed") or 0) - first, time.perf_counter() - began
    return float(events / took_s)


def make_log(server: PostgresServer, size: int) -> str:
    """A database with so many events, ours and, from the same ones, the library's."""
    name = f"p5_{size}"
    with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(ROLE)))
    dsn = make_conninfo(server.dsn, dbname=name)
    postgres.migrate(dsn)
    superuser_dsn = make_conninfo(server.superuser_dsn, dbname=name)
    columns = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    with (
        psycopg.connect(superuser_dsn, autocommit=True) as connection,
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY events ({}) FROM STDIN").format(columns)) as copy,
    ):
        for one in Log().events(size):
            copy.write_row(
                (
                    one.originator_id,
                    one.originator_version,
                    one.topic,
                    one.state.decode(),
                    one.id,
                    one.metadata.decode(),
                    one.recorded_at,
                )
            )
    Replayed(env=environment(dsn)).close()  # makes its tables
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(PEER_EVENTS)
        connection.execute("VACUUM ANALYZE")
    return dsn


def in_process(subject: str, dsn: str, seconds: float) -> float:
    """One taking in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.p5_catch_up", subject, dsn, str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def run(*, rounds: int, seconds: float, sizes: Sequence[int] = SIZES) -> None:
    """Measure, print, and keep table, figures and plot. Less than a second a taking is a quick look: short logs."""
    sizes = QUICK_SIZES if seconds < QUICK_BELOW_S else sizes
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as directory, PostgresServer(Path(directory)) as server:
        logs = {size: make_log(server, size) for size in sizes}

        def taken(subject: str, size: int) -> float:
            return in_process(subject, logs[size], max(1.0, seconds))

        cells = measure.in_turn(
            {subject: partial(taken, subject) for subject in SUBJECTS},
            sizes,
            rounds=rounds,
            title="P5",
        )
    report(cells, sizes, rounds=rounds)


def report(cells: dict[str, dict[int, Cell]], sizes: Sequence[int], *, rounds: int) -> None:
    rows = []
    for size in sizes:
        ours, again, peer = (cells[subject][size] for subject in SUBJECTS)
        ratios = (f"{ours.median / peer.median:.0f}×", f"{again.median / peer.median:.0f}×")
        rows.append((f"{size:,} events", ours.text, again.text, peer.text, *ratios))
    measure.show(
        "P5: projection catch-up and rebuild, events per second",
        ("log", "catch-up", "rebuild of jobs", "eventsourcing", "catch-up ÷ peer", "rebuild ÷ peer"),
        rows,
        "p5",
        (
            (
                f"Goal: {GOAL_RATIO}× the library's ProjectionRunner, and {GOAL_PER_S:,} a second."
                f" Medians of {rounds} rounds in turn, lowest and highest in brackets."
            ),
            (
                "catch-up: all read models, their history and the lineage, from an empty database to the last event."
                " rebuild: jobs and their history in new tables, until these are in the place of the live ones."
            ),
            (
                "eventsourcing: ProjectionRunner with a PostgresTrackingRecorder view that keeps the row of each job"
                " alone; it runs for some seconds of the same log, timed from its first event on."
            ),
        ),
    )
    measure.keep("p5", cells)
    plot(cells, sizes)


def plot(cells: dict[str, dict[int, Cell]], sizes: Sequence[int]) -> None:
    with measure.picture("p5") as axes:
        for subject, style in zip(SUBJECTS, ("o-", "s--", "^:"), strict=True):
            row = [cells[subject][size] for size in sizes]
            spread = [[cell.median - cell.low for cell in row], [cell.high - cell.median for cell in row]]
            axes.errorbar(sizes, [cell.median for cell in row], yerr=spread, fmt=style, capsize=3, label=subject)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xlabel("events in the log")
        axes.set_ylabel("events projected per second")
        axes.grid(which="both", alpha=0.3)
        axes.legend()


@click.command()
@click.argument("subject", type=click.Choice(SUBJECTS))
@click.argument("dsn")
@click.argument("seconds", type=float)
def main(subject: str, dsn: str, seconds: float) -> None:
    """One taking: prints events per second."""
    if subject == "eventsourcing":
        click.echo(library_runner(dsn, seconds))
    else:
        work = catch_up if subject == "sightline" else rebuild_jobs
        click.echo(uvloop.run(work(dsn)))


if __name__ == "__main__":
    main()
