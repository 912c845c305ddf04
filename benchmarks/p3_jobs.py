"""P3: jobs that do nothing, each through a worker: how many a second.

A queue is filled, then workers are started on it. Ours is done when the read models, which had the whole queue before,
have the last completion; the others when the last job was run. Each job of ours leaves JobStarted and JobCompleted in
the log, durable, and goes through the runner child; SAQ, arq and Celery keep nothing that would survive Valkey,
Procrastinate keeps its jobs in PostgreSQL. All have the same Valkey and the same PostgreSQL server's settings.
"""

import asyncio
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import psycopg
import redis
from msgspec import Struct

from sightline.adapters import logs, postgres, settings
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.ids import uuid7
from sightline.commands import jobs
from sightline.workers import lifecycle
from sightline.workers.lifecycle import Services

from . import measure

ROOT = Path(__file__).parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PEERS = ("saq", "arq", "celery", "procrastinate")
GOALS = {"saq": 4.0, "arq": 4.0, "procrastinate": 15.0}
WORKERS = (1, 2)
JOBS = {"sightline": 20_000, "saq": 6_000, "arq": 6_000, "celery": 4_000, "procrastinate": 1_500}
PENDING_MAX = 100_000_000
AT_ONCE = 64
DONE_S_MAX = 120.0
STOP_S = 10.0


class Ours:
    """
    Args:
        looking: for all looks at how far it is: to connect for each would take milliseconds from the workers.
    """

    def __init__(self, directory: Path, dsn: str, redis_url: str, looking: psycopg.Connection) -> None:
        self._directory = directory
        given = {
            "DATABASE_URL": dsn,
            "REDIS_URL": redis_url,
            "SIGHTLINE_DATA_DIR": str(directory),
            "SIGHTLINE_LOG_LEVEL": "info",
        }
        self._environ = {**os.environ, **given}
        self._looking = looking

    def rate(self, workers: int) -> float:
        count = JOBS["sightline"]
        before = self._position()
        self.python("-m", "benchmarks.p3_jobs", str(count))
        filled = self._position()
        if filled != before + count:
            raise RuntimeError(f"{filled - before} events of {count} submissions")
        with self.process("project"):
            self._until_seen(filled)  # the queue is filled in the read models, too
            with ExitStack() as stack:
                for _ in range(workers):
                    stack.enter_context(self.process("work"))
                done_s = self._until_seen(filled + 2 * count)
        [(began, done)] = self._rows(
            "SELECT extract(epoch FROM min(recorded_at) FILTER (WHERE topic = 'job.started')),"
            " count(*) FILTER (WHERE topic = 'job.completed') FROM events WHERE position > %s",
            filled,
        )
        if done != count:
            raise RuntimeError(f"{done} of {count} jobs were completed")
        return count / (done_s - float(began))

    def process(self, command: str) -> AbstractContextManager[None]:
        """One of ours, while the context lasts."""
        log = self._directory / f"{command}-{time.monotonic_ns()}.log"
        return _process([sys.executable, "-m", "sightline", command], self._environ, log)

    def python(self, *arguments: str) -> bytes:
        done = subprocess.run([sys.executable, *arguments], env=self._environ, stdout=subprocess.PIPE, check=True)
        return done.stdout

    def _position(self) -> int:
        return int(self._rows("SELECT coalesce(max(position), 0) FROM events")[0][0])

    def _until_seen(self, position: int) -> float:
        """When the read models had it, by the database's clock, in seconds."""
        ends = time.monotonic() + DONE_S_MAX
        query = "SELECT min(position), extract(epoch FROM clock_timestamp()) FROM projection_checkpoints"
        while True:
            [(seen, moment)] = self._rows(query)
            if (seen or 0) >= position:
                return float(moment)
            if time.monotonic() > ends:
                raise RuntimeError(f"{seen} of {position} events after {DONE_S_MAX:g} s")
            time.sleep(0.005)

    def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._looking.execute(query.encode(), parameters or None).fetchall()


class Peer:
    def __init__(self, name: str, directory: Path, dsn: str, redis_url: str) -> None:
        self._name, self.directory, self._redis_url = name, directory, redis_url
        given = {
            "SYSTEM": name,
            "REDIS_URL": redis_url,
            "DATABASE_URL": dsn,
            "PYTHONPATH": str(ROOT / "benchmarks/peers"),
        }
        self._environ = {**os.environ, **given}
        if name == "procrastinate":
            self.run(["procrastinate", "--app=noop_jobs.app", "schema", "--apply"])

    def rate(self, workers: int) -> float:
        count = JOBS[self._name]
        if self._name != "procrastinate":
            with redis.Redis.from_url(self._redis_url) as valkey:
                valkey.flushdb()
        times = self.directory / f"{self._name}-{time.monotonic_ns()}"
        times.touch()
        self.run([str(ROOT / "benchmarks/peers/noop_jobs.py"), "fill", str(count)], module=False)
        with self.working(workers, times):
            ends = time.monotonic() + DONE_S_MAX
            while times.stat().st_size < 8 * count:
                if time.monotonic() > ends:
                    raise RuntimeError(f"{self._name}: {times.stat().st_size // 8} of {count} jobs")
                time.sleep(0.01)
        stamps = struct.unpack(f"={count}q", times.read_bytes()[: 8 * count])
        return float(count / ((max(stamps) - min(stamps)) / 1e9))

    @contextmanager
    def working(self, workers: int, times: Path) -> Iterator[None]:
        environ = {**self._environ, "TIMES": str(times)}
        commands: list[list[str]] = {
            "saq": [["saq", "noop_jobs.settings"]] * workers,
            "arq": [["arq", "noop_jobs.WorkerSettings"]] * workers,
            "celery": [["celery", "--app=noop_jobs", "worker", "--concurrency", str(workers), "--loglevel=WARNING"]],
            "procrastinate": [["procrastinate", "--app=noop_jobs.app", "worker", "--concurrency", "10"]] * workers,
        }[self._name]
        with ExitStack() as stack:
            for number, command in enumerate(commands):
                log = self.directory / f"{self._name}-{number}.log"
                stack.enter_context(_process([str(PEERS_PYTHON), "-m", *command], environ, log))
            yield

    def run(self, command: Sequence[str], *, module: bool = True, environ: Mapping[str, str] | None = None) -> bytes:
        whole = [str(PEERS_PYTHON), *(["-m"] if module else []), *command]
        return subprocess.run(whole, env=self._environ | dict(environ or {}), stdout=subprocess.PIPE, check=True).stdout


@contextmanager
def _process(command: Sequence[str], environ: Mapping[str, str], log_path: Path) -> Iterator[None]:
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(log_path.read_text()[-4_000:])
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # some take their time to notice
            process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def submit(services: Services, **changed: Any) -> Any:
    caller = lifecycle.by_itself("local", uuid7())
    command = jobs.SubmitJob(job_id=uuid7(), kind="noop", pending_max=PENDING_MAX, **changed)
    return await services.commands.execute(jobs.submit_job, command, caller)


async def fill(count: int) -> None:
    """Submit so many jobs."""
    given = settings.read()
    logs.configure(given)
    async with lifecycle.open_services(given) as services:
        numbers = iter(range(count))

        async def submitter() -> None:
            for _ in numbers:
                await submit(services)

        await asyncio.gather(*(submitter() for _ in range(AT_ONCE)))


class Systems(Struct, frozen=True):
    ours: Ours
    peers: dict[str, Peer]


def systems(stack: ExitStack) -> Systems:
    """All of them, on one Valkey and two PostgreSQL servers that are started for them."""
    if not PEERS_PYTHON.exists():
        raise click.ClickException("the peers are not installed: make bench does that, or make .venv-peers/.ready")
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sightline-bench-")))
    url = stack.enter_context(ValkeyServer(root / "valkey")).url
    server = stack.enter_context(PostgresServer(root / "ours"))
    postgres.migrate(server.dsn)
    looking = stack.enter_context(psycopg.connect(server.dsn, autocommit=True))
    theirs = stack.enter_context(PostgresServer(root / "theirs"))
    peers = {
        name: Peer(name, root, theirs.dsn, url.replace("db=0", f"db={number}")) for number, name in enumerate(PEERS, 1)
    }
    return Systems(Ours(root / "ours", server.dsn, url, looking), peers)


def run(*, rounds: int, seconds: float) -> None:  # noqa: ARG001  # a taking lasts as long as its jobs take
    """Measure, print, and keep table, figures and plot."""
    with ExitStack() as stack:
        given = systems(stack)
        rates = {"sightline": given.ours.rate} | {name: peer.rate for name, peer in given.peers.items()}
        cells = measure.in_turn(rates, WORKERS, rounds=rounds, title="P3")
    rows = []
    for name, by_load in cells.items():
        ratios = [f"{cells['sightline'][load].median / by_load[load].median:.1f} ×" for load in WORKERS]
        goal = f"{GOALS[name]:g} ×" if name in GOALS else ""
        rows.append(
            (name, *(by_load[load].text for load in WORKERS), *(ratios if name != "sightline" else ("", "")), goal)
        )
    measure.show(
        "P3: jobs that do nothing, done per second",
        ("system", "1 worker", "2 workers", "ratio, 1", "ratio, 2", "goal"),
        rows,
        "p3",
        (
            (
                f"Median of {rounds} rounds (lowest–highest), in turn. Of each, a queue filled beforehand, from the"
                " first job to the last; ours until the read models, made by a process beside the workers, have it."
                " Ours are started and completed durably (fsync and synchronous_commit on), in a runner child that is"
                " asked for many short jobs at once; SAQ, arq and Celery keep nothing on a disk."
            ),
        ),
    )
    measure.keep("p3", cells)
    plot(cells)


def plot(cells: Mapping[str, Mapping[Any, measure.Cell]]) -> None:
    with measure.picture("p3") as axes:
        for place, load in enumerate(WORKERS):
            row = [by_load[load] for by_load in cells.values()]
            axes.bar(
                [number + (place - 0.5) * 0.38 for number in range(len(row))],
                [cell.median for cell in row],
                width=0.36,
                yerr=[[cell.median - cell.low for cell in row], [cell.high - cell.median for cell in row]],
                capsize=3,
                label=f"{load} worker" + "s" * (load > 1),
            )
        axes.set_xticks(range(len(cells)), list(cells))
        axes.set_ylabel("jobs done per second")
        axes.grid(axis="y", alpha=0.3)
        axes.legend()


@click.command()
@click.argument("count", type=int)
def main(count: int) -> None:
    """Fill our queue, as a process of its own."""
    asyncio.run(fill(count))


if __name__ == "__main__":
    main()
