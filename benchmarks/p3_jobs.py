"""P3 and P4: jobs that do nothing, each through a worker: how many a second, and how soon one at rest is done.

P3. A queue is filled, then workers are started on it. Ours is done when the read models have the last completion; the
others when the last job was run. Each job of ours leaves JobStarted and JobCompleted in the log, durable, and goes
through the runner child; SAQ, arq and Celery keep nothing that would survive Valkey, Procrastinate keeps its jobs in
PostgreSQL. All have the same Valkey and the same PostgreSQL server's settings.

P4. One job at a time, on a worker that waits: ours until its completion was read in the log by the client that asked
for it, SAQ's until it ran.
"""

import asyncio
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec
import psycopg
import redis

from sightline.adapters import logs, postgres, settings
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.event_store.reader import Tail
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
LATENCIES = 300
REST_S = 0.02


class System(Protocol):
    def rate(self, workers: int) -> float:
        """Jobs a second, with so many worker processes."""

    def latencies_ms(self, count: int) -> list[float]:
        """Of so many jobs, one after another."""


class Ours:
    def __init__(self, directory: Path, dsn: str, redis_url: str) -> None:
        self._dsn, self._directory = dsn, directory
        given = {
            "DATABASE_URL": dsn,
            "REDIS_URL": redis_url,
            "SIGHTLINE_DATA_DIR": str(directory),
            "SIGHTLINE_LOG_LEVEL": "info",
        }
        self._environ = {**os.environ, **given}

    def rate(self, workers: int) -> float:
        count = JOBS["sightline"]
        before = self._position()
        self._python("-m", "benchmarks.p3_jobs", "--fill", str(count))
        filled = self._position()
        if filled != before + count:
            raise RuntimeError(f"{filled - before} events of {count} submissions")
        with self._running(workers):
            ends = time.monotonic() + DONE_S_MAX
            while (seen := self._seen())[0] < filled + 2 * count:
                if time.monotonic() > ends:
                    raise RuntimeError(f"{seen[0] - filled} of {2 * count} events after {DONE_S_MAX:g} s")
                time.sleep(0.005)
        [(began, done)] = self._rows(
            "SELECT extract(epoch FROM min(recorded_at) FILTER (WHERE topic = 'job.started')),"
            " count(*) FILTER (WHERE topic = 'job.completed') FROM events WHERE position > %s",
            filled,
        )
        if done != count:
            raise RuntimeError(f"{done} of {count} jobs were completed")
        return count / (seen[1] - float(began))

    def latencies_ms(self, count: int) -> list[float]:
        with self._running(1):
            said = self._python("-m", "benchmarks.p3_jobs", "--wait", str(count))
        return msgspec.json.decode(said, type=list[float])

    @contextmanager
    def _running(self, workers: int) -> Iterator[None]:
        commands = [["project"], *[["work"]] * workers]
        with ExitStack() as stack:
            for number, command in enumerate(commands):
                log = self._directory / f"{number}.log"
                stack.enter_context(_process([sys.executable, "-m", "sightline", *command], self._environ, log))
            yield

    def _python(self, *arguments: str) -> bytes:
        done = subprocess.run([sys.executable, *arguments], env=self._environ, stdout=subprocess.PIPE, check=True)
        return done.stdout

    def _position(self) -> int:
        return int(self._rows("SELECT coalesce(max(position), 0) FROM events")[0][0])

    def _seen(self) -> tuple[int, float]:
        """The position of the read models, and when."""
        [(position, moment)] = self._rows(
            "SELECT min(position), extract(epoch FROM clock_timestamp()) FROM projection_checkpoints"
        )
        return int(position or 0), float(moment)

    def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._dsn) as connection:
            return connection.execute(query.encode(), parameters or None).fetchall()


class Peer:
    def __init__(self, name: str, directory: Path, dsn: str, redis_url: str) -> None:
        self._name, self._directory, self._redis_url = name, directory, redis_url
        given = {
            "SYSTEM": name,
            "REDIS_URL": redis_url,
            "DATABASE_URL": dsn,
            "PYTHONPATH": str(ROOT / "benchmarks/peers"),
        }
        self._environ = {**os.environ, **given}
        if name == "procrastinate":
            self._run(["procrastinate", "--app=noop_jobs.app", "schema", "--apply"])

    def rate(self, workers: int) -> float:
        count = JOBS[self._name]
        if self._name != "procrastinate":
            with redis.Redis.from_url(self._redis_url) as valkey:
                valkey.flushdb()
        times = self._directory / f"{self._name}-{time.monotonic_ns()}"
        times.touch()
        self._run([str(ROOT / "benchmarks/peers/noop_jobs.py"), "fill", str(count)], module=False)
        with self._working(workers, times):
            ends = time.monotonic() + DONE_S_MAX
            while times.stat().st_size < 8 * count:
                if time.monotonic() > ends:
                    raise RuntimeError(f"{self._name}: {times.stat().st_size // 8} of {count} jobs")
                time.sleep(0.01)
        stamps = struct.unpack(f"={count}q", times.read_bytes()[: 8 * count])
        return float(count / ((max(stamps) - min(stamps)) / 1e9))

    def latencies_ms(self, count: int) -> list[float]:
        times = self._directory / f"{self._name}-{time.monotonic_ns()}"
        with self._working(1, times):
            self._environ["TIMES"] = str(times)
            said = self._run([str(ROOT / "benchmarks/peers/noop_jobs.py"), "wait", str(count)], module=False)
            del self._environ["TIMES"]
        return msgspec.json.decode(said, type=list[float])

    @contextmanager
    def _working(self, workers: int, times: Path) -> Iterator[None]:
        environ = {**self._environ, "TIMES": str(times)}
        commands: list[list[str]] = {
            "saq": [["saq", "noop_jobs.settings"]] * workers,
            "arq": [["arq", "noop_jobs.WorkerSettings"]] * workers,
            "celery": [["celery", "--app=noop_jobs", "worker", "--concurrency", str(workers), "--loglevel=WARNING"]],
            "procrastinate": [["procrastinate", "--app=noop_jobs.app", "worker", "--concurrency", "10"]] * workers,
        }[self._name]
        with ExitStack() as stack:
            for number, command in enumerate(commands):
                log = self._directory / f"{self._name}-{number}.log"
                stack.enter_context(_process([str(PEERS_PYTHON), "-m", *command], environ, log))
            yield

    def _run(self, command: Sequence[str], *, module: bool = True) -> bytes:
        whole = [str(PEERS_PYTHON), *(["-m"] if module else []), *command]
        return subprocess.run(whole, env=self._environ, stdout=subprocess.PIPE, check=True).stdout


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


async def _submit(services: Services) -> Any:
    caller = lifecycle.by_itself("local", uuid7())
    command = jobs.SubmitJob(job_id=uuid7(), kind="noop", pending_max=PENDING_MAX)
    return await services.commands.execute(jobs.submit_job, command, caller)


async def fill(count: int) -> None:
    """Submit so many jobs."""
    given = settings.read()
    logs.configure(given)
    async with lifecycle.open_services(given) as services:
        numbers = iter(range(count))

        async def submitter() -> None:
            for _ in numbers:
                await _submit(services)

        await asyncio.gather(*(submitter() for _ in range(AT_ONCE)))


async def wait(count: int) -> None:
    """Print how long each of so many jobs took, from before its submission until its completion was read in the log."""
    given = settings.read()
    logs.configure(given)
    took_ms = []
    async with (
        lifecycle.open_services(given) as services,
        Tail(given.database_direct_url or given.database_url) as tail,
    ):
        for _ in range(count):
            began = time.perf_counter()
            receipt = await _submit(services)
            position = receipt.position
            while True:
                page = await services.store.reader.page(after=position)
                if any(one.topic == "job.completed" and one.stream_id == receipt.stream_id for one in page):
                    break
                position = page[-1].id if page else position
                await tail.wait()
            took_ms.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(REST_S)
    click.echo(msgspec.json.encode(took_ms))


def _systems(stack: ExitStack) -> dict[str, System]:
    if not PEERS_PYTHON.exists():
        raise click.ClickException("the peers are not installed: make bench does that, or make .venv-peers/.ready")
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sightline-bench-")))
    url = stack.enter_context(ValkeyServer(root / "valkey")).url
    server = stack.enter_context(PostgresServer(root / "ours"))
    postgres.migrate(server.dsn)
    theirs = stack.enter_context(PostgresServer(root / "theirs"))
    systems: dict[str, System] = {"sightline": Ours(root / "ours", server.dsn, url)}
    for number, name in enumerate(PEERS, 1):
        systems[name] = Peer(name, root, theirs.dsn, url.replace("db=0", f"db={number}"))
    return systems


def run(*, rounds: int, seconds: float) -> None:  # noqa: ARG001  # a taking lasts as long as its jobs take
    """Measure, print, and keep tables, figures and plots."""
    with ExitStack() as stack:
        systems = _systems(stack)
        cells = measure.in_turn({name: one.rate for name, one in systems.items()}, WORKERS, rounds=rounds, title="P3")
        took = {name: systems[name].latencies_ms(LATENCIES) for name in ("sightline", "saq")}
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
    show_latencies(took)


def show_latencies(took: Mapping[str, Sequence[float]]) -> None:
    rows = []
    for name, each in took.items():
        cuts = statistics.quantiles(each, n=100)
        rows.append((name, f"{statistics.median(each):.1f}", f"{cuts[89]:.1f}", f"{cuts[98]:.1f}"))
    measure.show(
        "P4: from submitting a job at rest until it is done, in milliseconds",
        ("system", "p50", "p90", "p99"),
        rows,
        "p4",
        (
            (
                f"{LATENCIES} jobs one after another, {REST_S * 1000:g} ms apart, on one worker that waits: ours until"
                " the client has read JobCompleted in the log, SAQ's until the job runs. Goal: p50 at most SAQ's, p99"
                " at most twice SAQ's."
            ),
        ),
    )


@click.command()
@click.option("--fill", "filled", type=int)
@click.option("--wait", "waited", type=int)
def main(filled: int | None, waited: int | None) -> None:
    """What a taking starts as a process of its own."""
    if filled is not None:
        asyncio.run(fill(filled))
    if waited is not None:
        asyncio.run(wait(waited))


if __name__ == "__main__":
    main()
