"""P9: does an append cost the same on a long log, and under a snapshot that somebody holds open?

One database per size on one server, filled with streams of ten events under random ids, which is the worst case for
an index. The measured appends go to streams picked at random from the whole log, 32 writers in one process, as in P1.
Rounds go in turn over all sizes, and the interval of each ratio comes from resampling the rounds.
"""

import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import click
import msgspec
import psycopg
import uvloop
from msgspec import Struct
from psycopg import sql
from psycopg.conninfo import make_conninfo
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import ROLE, PostgresServer

from . import measure
from .p1_append import METADATA, STATE, STREAMS_PER_WRITER, append_for

WRITERS = 32
EVENTS_PER_STREAM = 10
SIZES = (10_000, 1_000_000, 10_000_000)
SNAPSHOT_SIZE = 1_000_000
SNAPSHOT_APPENDS = 1_000_000  # written while the snapshot is held, before anything is measured
FILL_EVENTS = 500_000  # a statement
REFRESHED_SIZE_MAX = 100_000
TOLERANCE = 0.10
RESAMPLES = 10_000

# By the superuser past every trigger: what is measured is a log of that length, not how it came about.
FILL = """
WITH stream AS (
    SELECT n, gen_random_uuid() AS id FROM generate_series(%(first)s::bigint, %(last)s::bigint, %(each)s) AS n
), filled AS (
    INSERT INTO events (position, stream_id, version, topic, data, metadata, recorded_at)
    SELECT s.n + v - 1, s.id, v, 'job.submitted', %(data)s::json, %(metadata)s::json, now()
    FROM stream AS s, generate_series(1, %(each)s) AS v ORDER BY 1
)
INSERT INTO receipts (command_id, position, recorded_at)
SELECT gen_random_uuid(), s.n + v - 1, now() FROM stream AS s, generate_series(1, %(each)s) AS v
"""
SOME_STREAMS = """
SELECT stream_id, max(version) FROM events WHERE stream_id IN (
    SELECT stream_id FROM events
    WHERE position IN (SELECT 1 + (random() * (%(last)s - 1))::bigint FROM generate_series(1, %(wanted)s * 4))
) GROUP BY 1 LIMIT %(wanted)s
"""


class Subject(Struct, frozen=True):
    """A log of `size` events; under a `snapshot` taken before SNAPSHOT_APPENDS further ones, or not."""

    size: int
    snapshot: bool = False

    def __str__(self) -> str:
        return f"{self.size:,} events" + (", under an old snapshot" if self.snapshot else "")

    @property
    def database(self) -> str:
        return f"log_{self.size}" + ("_held" if self.snapshot else "")


def make_log(server: PostgresServer, subject: Subject, progress: Progress) -> str:
    """A database with the log in it, analysed and checkpointed; its DSN."""
    with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
        name = sql.Identifier(subject.database)
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, sql.Identifier(ROLE)))
    dsn = make_conninfo(server.dsn, dbname=subject.database)
    postgres.migrate(dsn)
    task = progress.add_task(f"fill {subject}", total=subject.size)
    with psycopg.connect(make_conninfo(server.superuser_dsn, dbname=subject.database), autocommit=True) as connection:
        for first in range(1, subject.size + 1, FILL_EVENTS):
            last = min(first + FILL_EVENTS - 1, subject.size)
            values = {"data": STATE.decode(), "metadata": METADATA.decode(), "each": EVENTS_PER_STREAM}
            connection.execute(FILL, values | {"first": first, "last": last})
            progress.update(task, completed=last)
        connection.execute("VACUUM ANALYZE events, receipts")
        connection.execute("CHECKPOINT")
    return dsn


@contextmanager
def held_snapshot(dsn: str) -> Iterator[None]:
    """A transaction that saw the log before SNAPSHOT_APPENDS appends, and goes on seeing it."""
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT max(position) FROM events")
        written = 0
        while written < SNAPSHOT_APPENDS:
            written += round(append_on(dsn, seconds=20) * 20)
        yield


def refreshed(server: PostgresServer, subject: Subject, dsn: str) -> str:
    """A short log as it was before the last round, which would have made it several times as long; a long one as is."""
    if subject.snapshot or subject.size > REFRESHED_SIZE_MAX:
        return dsn
    with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
        copy, original = sql.Identifier(f"{subject.database}_copy"), sql.Identifier(subject.database)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(copy))
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(copy, original, sql.Identifier(ROLE))
        )
        connection.execute("CHECKPOINT")
    return make_conninfo(dsn, dbname=f"{subject.database}_copy")


def append_on(dsn: str, seconds: float) -> float:
    """Appends per second of WRITERS writers in a fresh process, on streams from all over the log."""
    command = [sys.executable, "-m", "benchmarks.p9_growth", dsn, str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def some_streams(dsn: str) -> dict[UUID, int]:
    """Streams picked by random positions, and their versions."""
    wanted = WRITERS * STREAMS_PER_WRITER
    with psycopg.connect(dsn) as connection:
        last = connection.execute("SELECT max(position) FROM events").fetchone()
        assert last is not None
        found: dict[UUID, int] = dict(connection.execute(SOME_STREAMS, {"last": last[0], "wanted": wanted}).fetchall())
    assert len(found) == wanted
    return found


def run(*, rounds: int, seconds: float, sizes: Sequence[int] = SIZES) -> None:
    """Measure, print, and keep table, figures and plot."""
    subjects = [*map(Subject, sizes), Subject(SNAPSHOT_SIZE, snapshot=True)]
    taken: dict[Subject, list[float]] = {subject: [] for subject in subjects}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="sightline-bench-") as directory,
        PostgresServer(Path(directory)) as server,
        Progress(*columns) as progress,
    ):
        dsns = {subject: make_log(server, subject, progress) for subject in subjects}
        with held_snapshot(dsns[subjects[-1]]):
            task = progress.add_task("P9", total=rounds * len(subjects))
            for number in range(rounds):
                # Another order each time: none is always the one after the largest.
                for subject in random.Random(number).sample(subjects, len(subjects)):
                    taken[subject].append(append_on(refreshed(server, subject, dsns[subject]), seconds))
                    progress.advance(task)
    report(taken, seconds=seconds)


def ratio_interval(mine: Sequence[float], first: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of medians, and its 95 % interval by resampling the rounds."""
    dice = random.Random(9)
    ratios = sorted(
        statistics.median(dice.choices(mine, k=len(mine))) / statistics.median(dice.choices(first, k=len(first)))
        for _ in range(RESAMPLES)
    )
    ratio = statistics.median(mine) / statistics.median(first)
    return ratio, ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES)]


def report(taken: dict[Subject, list[float]], *, seconds: float) -> None:
    first = next(iter(taken.values()))
    rows = []
    for subject, figures in taken.items():
        ratio, low, high = ratio_interval(figures, first)
        within = "the first" if figures is first else "yes" if low >= 1 - TOLERANCE else "no"
        text = f"{statistics.median(figures):,.0f}  ({min(figures):,.0f}–{max(figures):,.0f})"
        rows.append((str(subject), text, f"{ratio:.2f}", f"{low:.2f}–{high:.2f}", within))
    measure.show(
        "P9: appends per second on a log of this length",
        ("log", "appends/s", "÷ first", "95 % interval", f"within {TOLERANCE:.0%}"),
        rows,
        "p9",
        (
            f"Median of {len(first)} rounds of {seconds:g} s (lowest–highest) in mixed order, 32 writers, one process.",
            f"Streams of {EVENTS_PER_STREAM} events under random ids; appends go to streams from all over the log.",
            f"The old snapshot was taken before {SNAPSHOT_APPENDS:,} further appends and is held while measuring.",
        ),
    )
    plain = {str(subject): figures for subject, figures in taken.items()}
    measure.RESULTS.joinpath("p9.json").write_bytes(msgspec.json.format(msgspec.json.encode(plain)) + b"\n")
    plot(taken)


def plot(taken: dict[Subject, list[float]]) -> None:
    with measure.picture("p9") as axes:
        axes.boxplot(list(taken.values()), tick_labels=[str(subject).replace(", ", ",\n") for subject in taken])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("durable appends per second")
        axes.grid(axis="y", alpha=0.3)


@click.command()
@click.argument("dsn")
@click.argument("seconds", type=float)
def main(dsn: str, seconds: float) -> None:
    """One round: prints appends per second."""
    rate, _, _ = uvloop.run(append_for(dsn, WRITERS, seconds, versions=some_streams(dsn)))
    click.echo(rate)


if __name__ == "__main__":
    main()
