"""R13: how long it takes to carry the log away and to check it far from the database, at three lengths.

Both are timed as an auditor meets them: `sightline audit export` and `sightline audit verify` as commands, start and
all. The events are whole lives made by the domain's decisions (see lives), copied in and projected beforehand.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import psycopg
from msgspec import Struct
from psycopg import sql
from psycopg.conninfo import make_conninfo
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sightline.adapters import logs, postgres, settings
from sightline.adapters.embedded.postgres import ROLE, PostgresServer
from sightline.adapters.settings import Settings
from sightline.cli.audit import sign
from sightline.projections.projection import checkpoint
from sightline.workers import projector

from . import measure
from .lives import Log

SIZES = (10_000, 100_000, 1_000_000)
GOAL_VERIFY_S = 30.0
ROUNDS_OF_LONG_MAX = 3  # of a million, which takes a minute a round
COLUMNS = ("stream_id", "version", "topic", "data", "position", "metadata", "recorded_at")


class Taken(Struct):
    """Seconds of each round, and the bundle's size."""

    export_s: list[float]
    verify_s: list[float]
    size_bytes: int = 0


def make_log(server: PostgresServer, directory: Path, size: int, progress: Progress) -> Settings:
    """A database with so many events, projected and signed for."""
    name = f"audit_{size}"
    with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(ROLE)))
    dsn = make_conninfo(server.dsn, dbname=name)
    postgres.migrate(dsn)
    task = progress.add_task(f"copy {size:,} events", total=size)
    # By the superuser past every trigger: what is measured is a log of that length, not how it came about.
    copying = sql.SQL("COPY events ({}) FROM STDIN").format(sql.SQL(", ").join(map(sql.Identifier, COLUMNS)))
    with (
        psycopg.connect(make_conninfo(server.superuser_dsn, dbname=name), autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        with cursor.copy(copying) as copy:
            for one in Log().events(size):
                copy.write_row(
                    (
                        one.stream_id,
                        one.originator_version,
                        one.topic,
                        one.state.decode(),
                        one.position,
                        one.metadata.decode(),
                        one.recorded_at,
                    )
                )
                progress.advance(task)
        cursor.execute("VACUUM ANALYZE events")
    made = settings.read(
        {}, data_dir=directory / name, database_url=dsn, database_direct_url=dsn, redis_url="redis://127.0.0.1:1"
    )
    asyncio.run(_project(made, size, progress))
    asyncio.run(sign(made))
    return made


async def _project(made: Settings, size: int, progress: Progress) -> None:
    task = progress.add_task(f"project {size:,} events", total=size)
    stopping = asyncio.Event()
    projecting = asyncio.create_task(projector.run(made, stopping))
    async with await postgres.connect(made.database_url) as connection:
        while not projecting.done() and (position := await checkpoint(connection)) < size:
            progress.update(task, completed=position)
            await asyncio.sleep(0.2)
    progress.update(task, completed=size)
    stopping.set()
    await projecting


def command_s(made: Settings, *words: str | Path) -> float:
    """How long a command took; it must succeed."""
    environ = {"SIGHTLINE_DATABASE_URL": made.database_url, "SIGHTLINE_REDIS_URL": made.redis_url}
    begin_s = time.monotonic()
    given = [sys.executable, "-m", "sightline", "audit", *map(str, words)]
    subprocess.run(given, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environ})
    return time.monotonic() - begin_s


def run(*, rounds: int, seconds: float, sizes: Sequence[int] = SIZES) -> None:  # noqa: ARG001  # nothing is timed by the clock here
    """Measure, print, and keep table and figures."""
    logs.configure(settings.read({}, log_level="warning"))
    taken: dict[int, Taken] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="sightline-bench-") as directory,
        PostgresServer(Path(directory)) as server,
        Progress(*columns) as progress,
    ):
        for size in sizes:
            made = make_log(server, Path(directory), size, progress)
            out = Path(directory) / f"{size}.zip"
            taken[size] = Taken([], [])
            wanted = min(rounds, ROUNDS_OF_LONG_MAX) if size >= max(SIZES) else rounds
            task = progress.add_task(f"export and verify {size:,}", total=wanted)
            for _ in range(wanted):
                key = made.data_dir / "keys" / "notary.pub"
                taken[size].export_s.append(command_s(made, "export", "--data-dir", made.data_dir, "--out", out))
                taken[size].verify_s.append(command_s(made, "verify", out, "--public-key", key))
                progress.advance(task)
            taken[size].size_bytes = out.stat().st_size
            out.unlink()
    report(taken)


def report(taken: dict[int, Taken]) -> None:
    first = min(taken)
    rows = []
    for size, one in taken.items():
        row = [f"{size:,}"]
        for seconds, of_first in ((one.export_s, taken[first].export_s), (one.verify_s, taken[first].verify_s)):
            median = statistics.median(seconds)
            growth = median / size / (statistics.median(of_first) / first)
            row += [f"{median:.1f}  ({min(seconds):.1f}–{max(seconds):.1f})", f"{size / median:,.0f}", f"{growth:.2f}"]
        rows.append((*row, f"{one.size_bytes / 1024**2:,.1f}"))
    longest = max(taken)
    verify_s = statistics.median(taken[longest].verify_s)
    measure.show(
        "R13: a bundle exported, and verified with no database",
        ("events", "export s", "events/s", "÷ first", "verify s", "events/s", "÷ first", "MiB"),
        rows,
        "audit_offline",
        (
            f"Median of {len(taken[longest].verify_s)} rounds or more (lowest–highest) of whole commands.",
            "÷ first: seconds per event against those of the shortest log.",
            f"{longest:,} events are verified in {verify_s:.1f} s; the goal for 1,000,000 is {GOAL_VERIFY_S:g} s.",
        ),
    )
    plain = {str(size): one for size, one in taken.items()}
    measure.RESULTS.joinpath("audit_offline.json").write_bytes(msgspec.json.format(msgspec.json.encode(plain)) + b"\n")


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--size", "sizes", type=int, multiple=True, default=SIZES, show_default=True)
def main(rounds: int, sizes: tuple[int, ...]) -> None:
    """This benchmark alone, at lengths of one's own."""
    run(rounds=rounds, seconds=0, sizes=sizes)


if __name__ == "__main__":
    main()
