"""P8: how long after its commit an event can be read in the read models, at half of the rate that can be submitted.

Three processes beside the server, as in production: one submits jobs through the command floor, the projector runs as
`sightline project`, one listens to the notification that comes with each of the projector's commits, which is what
a waiting reader is woken by. Their clocks are one: CLOCK_MONOTONIC is the machine's.
"""

import asyncio
import bisect
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
import psycopg
import uvloop
from msgspec import Struct

from sightline.adapters import logs, postgres, settings
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.ids import uuid7
from sightline.commands import jobs
from sightline.projections.projection import CHANNEL
from sightline.workers import lifecycle
from sightline.workers.lifecycle import Services

from . import measure

SUBMITTERS = 32
SETTLE_S = 2.0
GOAL_P99_MS = 50.0
PENDING_MAX = 100_000_000
SEED = 8


class Acknowledged(Struct, frozen=True):
    """When the caller of a command knew that it was durable, and where its last event stands."""

    position: int
    at_s: float


async def _submit(services: Services, acknowledged: list[Acknowledged]) -> None:
    caller = lifecycle.by_itself("local", uuid7())
    command = jobs.SubmitJob(job_id=uuid7(), kind="noop", pending_max=PENDING_MAX)
    receipt = await services.commands.execute(jobs.submit_job, command, caller)
    acknowledged.append(Acknowledged(receipt.position, time.monotonic()))


async def at_full_speed(services: Services, seconds: float) -> float:
    """Jobs submitted per second by SUBMITTERS tasks, each sending its next as soon as the last is answered."""
    acknowledged: list[Acknowledged] = []
    ends = time.monotonic() + seconds

    async def submitter() -> None:
        while time.monotonic() < ends:
            await _submit(services, acknowledged)

    await asyncio.gather(*(submitter() for _ in range(SUBMITTERS)))
    return len(acknowledged) / seconds


async def at_rate(services: Services, rate: float, seconds: float) -> list[Acknowledged]:
    """Submissions at random times, `rate` a second on average, whatever the answers take."""
    dice = random.Random(SEED)
    acknowledged: list[Acknowledged] = []
    due = began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        while due < began + seconds:
            due += dice.expovariate(rate)
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            tasks.create_task(_submit(services, acknowledged))
    return acknowledged


async def load(rate: float, seconds: float) -> None:
    """Print the full rate (rate 0), or when each submission was acknowledged."""
    given = settings.read()
    logs.configure(given)
    async with lifecycle.open_services(given) as services:
        await at_full_speed(services, min(SETTLE_S, seconds))  # connections, plans, caches
        if not rate:
            click.echo(msgspec.json.encode(await at_full_speed(services, seconds)))
            return
        await at_rate(services, rate, SETTLE_S)
        click.echo(msgspec.json.encode(await at_rate(services, rate, seconds)))


def listen(dsn: str, seconds: float) -> None:
    """Print when the read models were seen to reach which position."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        click.echo("ready")
        heard = connection.notifies(timeout=seconds)
        seen = [Acknowledged(int(notification.payload), time.monotonic()) for notification in heard]
    click.echo(msgspec.json.encode(seen))


def lags_ms(acknowledged: Sequence[Acknowledged], seen: Sequence[Acknowledged]) -> list[float]:
    """Of each acknowledged command: from the answer to the first sight of its position; 0 where it was seen before.

    Raises:
        RuntimeError: one was never seen.
    """
    positions = [one.position for one in seen]
    found = []
    for one in acknowledged:
        index = bisect.bisect_left(positions, one.position)
        if index == len(seen):
            raise RuntimeError(f"position {one.position} was not projected in time")
        found.append(max(0.0, seen[index].at_s - one.at_s) * 1_000)
    return found


@contextmanager
def service(directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server, Valkey, and a projector process; the DSN, and the environment for further processes."""
    with PostgresServer(directory) as server, ValkeyServer(directory) as valkey:
        postgres.migrate(server.dsn)
        given = {"DATABASE_URL": server.dsn, "REDIS_URL": valkey.url, "SIGHTLINE_DATA_DIR": str(directory)}
        environ = {**os.environ, **given, "SIGHTLINE_LOG_LEVEL": "warning"}
        projector = subprocess.Popen([sys.executable, "-m", "sightline", "project"], env=environ)
        try:
            yield server.dsn, environ
        finally:
            projector.terminate()
            projector.wait(10)


def once(dsn: str, environ: dict[str, str], share: float, seconds: float) -> tuple[float, list[float]]:
    """The rate used, and every command's lag in ms."""
    command = [sys.executable, "-m", "benchmarks.p8_lag"]

    def run_load(rate: float) -> bytes:
        done = subprocess.run(
            [*command, "load", str(rate), str(seconds)], env=environ, stdout=subprocess.PIPE, check=True
        )
        return done.stdout

    rate = share * msgspec.json.decode(run_load(0), type=float)
    wait_until_idle(dsn)
    listens_s = seconds + 4 * SETTLE_S + 5
    listener = subprocess.Popen([*command, "listen", dsn, str(listens_s)], env=environ, stdout=subprocess.PIPE)
    assert listener.stdout is not None
    listener.stdout.readline()
    acknowledged = msgspec.json.decode(run_load(rate), type=list[Acknowledged])
    seen = msgspec.json.decode(listener.communicate()[0], type=list[Acknowledged])
    return rate, lags_ms(acknowledged, seen)


def wait_until_idle(dsn: str, timeout_s: float = 60) -> None:
    """Return once the read models reflect the whole log."""
    query = "SELECT position = (SELECT coalesce(max(position), 0) FROM events) FROM projection_checkpoints"
    deadline = time.monotonic() + timeout_s
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute(f"{query} WHERE name = 'read_models'").fetchone() != (True,):
            if time.monotonic() > deadline:
                raise TimeoutError("the projector does not catch up")
            time.sleep(0.05)


def run(*, rounds: int, seconds: float) -> None:
    """Measure, print, and keep table, figures and plot."""
    seconds = max(seconds, 5.0)
    by_share: dict[float, list[tuple[float, list[float]]]] = {0.25: [], 0.5: [], 0.75: []}
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name, service(Path(name)) as (dsn, environ):
        for _ in range(rounds):
            for share, found in by_share.items():
                found.append(once(dsn, environ, share, seconds))
    rows = []
    for share, found in by_share.items():
        lags = sorted(lag for _, each in found for lag in each)
        rates = [rate for rate, _ in found]
        p99s = [percentile(sorted(each), 0.99) for _, each in found]
        rows.append(
            (
                f"{share:.0%} of the full rate",
                f"{sum(rates) / len(rates):,.0f}/s",
                *(f"{percentile(lags, p):.1f}" for p in (0.5, 0.9, 0.99, 0.999)),
                f"{min(p99s):.1f}–{max(p99s):.1f}",
            )
        )
    measure.show(
        "P8: from commit to readable, ms",
        ("load", "jobs", "p50", "p90", "p99", "p99.9", "p99 of the rounds"),
        rows,
        "p8",
        (
            f"{rounds} rounds of {seconds:g} s, random arrivals; goal at half of the rate: p99 ≤ {GOAL_P99_MS:g} ms.",
            "The full rate is what 32 callers in one process reach in the same round, submitting through the commands.",
        ),
    )
    plain = {
        str(share): [{"rate": rate, "p99_ms": percentile(sorted(lags), 0.99)} for rate, lags in found]
        for share, found in by_share.items()
    }
    measure.RESULTS.joinpath("p8.json").write_bytes(msgspec.json.format(msgspec.json.encode(plain)) + b"\n")
    plot({share: sorted(lag for _, each in found for lag in each) for share, found in by_share.items()})


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def plot(by_share: dict[float, list[float]]) -> None:
    """How many of the commands could be read after so many milliseconds."""
    with measure.picture("p8") as axes:
        for share, lags in by_share.items():
            left = [1 - (number + 0.5) / len(lags) for number in range(len(lags))]
            axes.plot(lags, left, label=f"{share:.0%} of the full rate")
        axes.axvline(GOAL_P99_MS, color="grey", linestyle=":")
        axes.axhline(0.01, color="grey", linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("ms from commit to readable")
        axes.set_ylabel("share of commands that took longer")
        axes.grid(which="both", alpha=0.3)
        axes.legend()


@click.group()
def main() -> None:
    """One process's share."""


@main.command("load")
@click.argument("rate", type=float)
@click.argument("seconds", type=float)
def load_command(rate: float, seconds: float) -> None:
    uvloop.run(load(rate, seconds))


@main.command("listen")
@click.argument("dsn")
@click.argument("seconds", type=float)
def listen_command(dsn: str, seconds: float) -> None:
    listen(dsn, seconds)


if __name__ == "__main__":
    main()
