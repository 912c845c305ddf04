"""The library face: the same `Application` of the eventsourcing library on our module and on the library's own.

What a user gains who moves: an aggregate is loaded from its stream, says one event and is saved, as applications do.
Same server, same configuration, fsync and synchronous_commit on, in turn; threads of one process, each with aggregates
of its own that have events already.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from uuid import UUID

import click
import psycopg
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from msgspec import Struct
from psycopg.conninfo import conninfo_to_dict

from sightline.adapters.embedded.postgres import PostgresServer

from . import measure
from .measure import Cell

WARM_UP_S = 0.5
AGGREGATES_PER_THREAD = 200  # many, so that streams stay short however fast they are written
MODULES = {"sightline": "sightline.adapters.event_store.library", "eventsourcing": "eventsourcing.postgres"}


class Load(Struct, frozen=True):
    """So many threads of one process, and what each does again and again."""

    threads: int
    loads: bool = False

    def __str__(self) -> str:
        name = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{name}, load and save" if self.loads else f"{name}, save"


LOADS = (Load(1), Load(8), Load(32), Load(1, loads=True), Load(32, loads=True))


class Account(Aggregate):
    balance = 0

    @event("Deposited")
    def deposit(self, amount: int) -> None:
        self.balance += amount


class Bank(Application[UUID]):
    pass


def environment(subject: str, dsn: str, threads: int) -> dict[str, str]:
    parts = conninfo_to_dict(dsn)
    return {
        "PERSISTENCE_MODULE": MODULES[subject],
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts.get("port") or 5432),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password") or "none"),
        "POSTGRES_SCHEMA": f"face_{subject}",
        "POSTGRES_POOL_SIZE": str(threads),
        "POSTGRES_MAX_OVERFLOW": "0",
    }


def events_for(subject: str, dsn: str, load: Load, seconds: float) -> float:
    """Events per second of this process."""
    with closing(Bank(env=environment(subject, dsn, load.threads))) as bank:
        accounts = [[Account() for _ in range(AGGREGATES_PER_THREAD)] for _ in range(load.threads)]
        for some in accounts:
            bank.save(*some)
        counts = [0] * load.threads

        def work(number: int, ends: float) -> None:
            mine = accounts[number]
            while time.perf_counter() < ends:
                place = counts[number] % AGGREGATES_PER_THREAD
                account: Account = bank.repository.get(mine[place].id) if load.loads else mine[place]
                account.deposit(1)
                bank.save(account)
                counts[number] += 1

        def all_work(ends: float) -> None:
            threads = [threading.Thread(target=work, args=(number, ends)) for number in range(load.threads)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        all_work(time.perf_counter() + WARM_UP_S)
        before, began = sum(counts), time.perf_counter()
        all_work(began + seconds)
        return (sum(counts) - before) / (time.perf_counter() - began)


def in_a_process(subject: str, dsn: str, load: Load, seconds: float) -> float:
    """A fresh process for each taking, so that none inherits another's threads, pools or garbage."""
    line = [sys.executable, "-m", "benchmarks.library_face", subject, dsn, str(load.threads), str(seconds)]
    run = subprocess.run([*line, *(["--load"] if load.loads else [])], check=True, capture_output=True, text=True)
    return float(run.stdout)


def run(*, rounds: int, seconds: float, loads: Sequence[Load] = LOADS) -> None:
    """Measure, print, and keep table and figures."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as directory, PostgresServer(Path(directory)) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA face_eventsourcing")  # ours makes its own
        cells = measure.in_turn(
            {
                "sightline": lambda load: in_a_process("sightline", server.dsn, load, seconds),
                "eventsourcing": lambda load: in_a_process("eventsourcing", server.dsn, load, seconds),
            },
            loads,
            rounds=rounds,
            title="Library face",
        )
    report(cells, loads, rounds=rounds, seconds=seconds)


def report(cells: dict[str, dict[Load, Cell]], loads: Sequence[Load], *, rounds: int, seconds: float) -> None:
    rows = []
    for load in loads:
        ours, theirs = cells["sightline"][load], cells["eventsourcing"][load]
        rows.append((str(load), ours.text, theirs.text, f"{ours.median / theirs.median:.1f} ×"))
    measure.show(
        "The library face: events per second of one Application",
        ("load", "sightline's module", "eventsourcing.postgres", "ratio"),
        rows,
        "library_face",
        (
            f"Median of {rounds} rounds of {seconds:g} s (lowest–highest), in turn, fsync and synchronous_commit on.",
            (
                "One event a save, on aggregates that exist; `load and save` reads the aggregate's stream before each."
                " The application's own work in Python is part of every figure."
            ),
        ),
    )
    measure.keep("library_face", cells)


@click.command()
@click.argument("subject", type=click.Choice(sorted(MODULES)))
@click.argument("dsn")
@click.argument("threads", type=int)
@click.argument("seconds", type=float)
@click.option("--load", "loads", is_flag=True, help="Read each aggregate before it is saved.")
def main(subject: str, dsn: str, threads: int, seconds: float, loads: bool) -> None:
    """One taking: prints events per second."""
    click.echo(events_for(subject, dsn, Load(threads, loads=loads), seconds))


if __name__ == "__main__":
    main()
