"""P2: jobs accepted over HTTP per second, validated, authenticated, idempotent and durable, beside the seeds' stack.

Each side is one API process and a PostgreSQL server of its own, started in the same way; Valkey and the client are the
same. Neither has workers or projectors running, and both write one log line a request. After each taking the jobs that
lie in the database must be those that were acknowledged, each once.
"""

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID, uuid4

import click
import httpx
import msgspec
import psycopg
import redis
from msgspec import Struct

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer

from . import flames, measure
from .http_load import Took, Work
from .measure import Cell

LOADS = (1, 8, 32, 128)
PROFILED_LOADS = (32, 128)
BODY = '{"kind":"noop","params":{"sleep_s":0.0},"priority":5}'
PENDING_MAX = 100_000_000
READY_S = 30.0
STOP_S = 15.0
GOAL = 10.0
SECRET = "0123456789abcdef" * 4  # of a server that lives for a minute on this machine's loopback
EMAIL, PASSWORD = "benchmark@example.org", "correct horse battery staple"
CPU_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Taking(Struct, frozen=True):
    """One side under one load, once.

    Attributes:
        rate: jobs accepted per second.
        cpu_us: of the API process, per answer.
        busy: the API process's and the client's shares of a core.
    """

    rate: float
    latencies_ms: list[float]
    cpu_us: float
    busy: tuple[float, float]


class Side(Protocol):
    """One of the two services, running."""

    port: int
    pid: int
    headers: dict[str, str]

    def before(self) -> Any:
        """What `check` wants to know of the time before a taking."""

    def check(self, before: Any, ids: Sequence[str]) -> None:
        """Raises: RuntimeError: other jobs lie in the database than were acknowledged."""


class Ours:
    def __init__(self, dsn: str, port: int, pid: int, token: str) -> None:
        self._dsn, self.port, self.pid = dsn, port, pid
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def before(self) -> int:
        return int(_rows(self._dsn, "SELECT coalesce(max(position), 0) FROM events")[0][0])

    def check(self, before: int, ids: Sequence[str]) -> None:
        query = "SELECT stream_id FROM events WHERE topic = 'job.submitted' AND position > %s"
        _require_same(ids, [row[0] for row in _rows(self._dsn, query, before)])


class Peer:
    def __init__(self, dsn: str, port: int, pid: int, token: str, valkey: "redis.Redis") -> None:
        self._dsn, self.port, self.pid, self._valkey = dsn, port, pid, valkey
        self.headers = {"Authorization": f"Bearer {token}"}

    def before(self) -> int:
        self._valkey.flushdb()  # nobody works off its queue
        return int(_rows(self._dsn, "SELECT coalesce(max(id), 0) FROM audit_records")[0][0])

    def check(self, before: int, ids: Sequence[str]) -> None:
        query = "SELECT j.id FROM audit_records AS a JOIN jobs AS j ON j.id = a.subject_id WHERE a.id > %s"
        _require_same(ids, [row[0] for row in _rows(self._dsn, query, before)])
        queued = sum(self._valkey.llen(name) for name in self._valkey.keys("saq:*:queued"))
        if queued != len(ids):
            raise RuntimeError(f"{len(ids)} jobs were acknowledged and {queued} are queued")


def _rows(dsn: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode(), parameters or None).fetchall()


def _require_same(acknowledged: Sequence[str], stored: Sequence[UUID]) -> None:
    if sorted(acknowledged) != sorted(map(str, stored)):
        raise RuntimeError(f"{len(acknowledged)} jobs were acknowledged and {len(stored)} are stored, or others")


def take(side: Side, connections: int, seconds: float) -> Taking:
    """Load it with `connections` for `seconds`, and check what it left."""
    before = side.before()
    work = Work(
        port=side.port,
        path="/v1/jobs",
        headers=side.headers,
        body=BODY,
        connections=connections,
        name=uuid4().hex,
        seconds=seconds,
    )
    cpu_s = _cpu_s(side.pid)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.http_load"],
        input=msgspec.json.encode(work),
        stdout=subprocess.PIPE,
        check=True,
    )
    took = msgspec.json.decode(done.stdout, type=Took)
    cpu_s = _cpu_s(side.pid) - cpu_s
    side.check(before, took.ids)
    answers = len(took.ids) * len(took.latencies_ms) / max(took.accepted, 1)  # repeats of the warm-up too
    worked_s = work.warm_up_s + took.seconds
    return Taking(took.accepted / took.seconds, took.latencies_ms, 1e6 * cpu_s / answers, (cpu_s / worked_s, took.busy))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * CPU_TICK_S


@contextmanager
def ours(
    directory: Path, valkey_url: str, *, profile_path: Path | None = None, authenticated: bool = True
) -> Iterator[Ours]:
    """Our API process, as `sightline serve` runs it, or under the sampler."""
    with PostgresServer(directory) as server:
        postgres.migrate(server.dsn)
        given = {
            "DATABASE_URL": server.dsn,
            "REDIS_URL": valkey_url,
            "SIGHTLINE_DATA_DIR": str(directory),
            "SIGHTLINE_PORT": str(port := _free_port()),
            "SIGHTLINE_JOBS_PENDING_MAX": str(PENDING_MAX),
            "AUTH_ENABLED": str(authenticated).lower(),
            "SECRET_KEY": SECRET,
            "RATE_LIMITS_ENABLED": "false",
        }
        environ = {**os.environ, **given}
        if authenticated:
            create = ["users", "create", "--email", EMAIL, "--full-name", "B", "--role", "OPERATOR", "--password-stdin"]
            subprocess.run(
                [sys.executable, "-m", "sightline", *create],
                input=PASSWORD.encode(),
                env=environ,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        serve = ["-m", "sightline", "serve"]
        if profile_path is not None:
            serve = ["-m", "benchmarks.flames", str(profile_path)]
        with _process(serve, environ, directory, port) as pid:
            token = _login(port) if authenticated else ""
            yield Ours(server.dsn, port, pid, token)


def _login(port: int) -> str:
    given = {"email": EMAIL, "password": PASSWORD}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/auth/login", json=given).raise_for_status()
    return str(answer.json()["token"])


@contextmanager
def peer(directory: Path, valkey_url: str) -> Iterator[Peer]:
    """The seeds' stack, under uvicorn as its users run it."""
    url = valkey_url.replace("db=0", "db=1")
    with PostgresServer(directory) as server, redis.Redis.from_url(url) as valkey:
        given = {
            "DATABASE_URL": server.dsn.replace("postgresql://", "postgresql+asyncpg://"),
            "REDIS_URL": url,
            "SECRET_KEY": SECRET,
        }
        environ = {**os.environ, **given}
        made = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers.fastapi_saq"], env=environ, stdout=subprocess.PIPE, check=True
        )
        app = ["benchmarks.peers.fastapi_saq:app", "--port", str(port := _free_port())]
        options = ["--loop", "uvloop", "--http", "httptools", "--no-server-header", "--no-proxy-headers"]
        with _process(["-m", "uvicorn", *app, *options], environ, directory, port) as pid:
            yield Peer(server.dsn, port, pid, made.stdout.decode().strip(), valkey)


@contextmanager
def _process(command: Sequence[str], environ: Mapping[str, str], directory: Path, port: int) -> Iterator[int]:
    """A process that answers on `port`; its log goes to a file."""
    log_path = directory / "api.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen([sys.executable, *command], env=environ, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + READY_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log_path.read_text()[-4_000:])
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(STOP_S)


def _answers(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/livez").is_success
    return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run(*, rounds: int, seconds: float, loads: Sequence[int] = LOADS) -> None:
    """Measure, print, and keep table, figures, plot and profile."""
    takings: dict[str, dict[int, list[Taking]]] = {name: {load: [] for load in loads} for name in ("sightline", "peer")}

    def taken(name: str, side: Side, load: int) -> float:
        takings[name][load].append(take(side, load, seconds))
        return takings[name][load][-1].rate

    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        first, second, third = (Path(name) / each for each in ("ours", "peer", "valkey"))
        with (
            ValkeyServer(third) as valkey,
            ours(first, valkey.url) as our_side,
            peer(second, valkey.url) as peer_side,
        ):
            cells = measure.in_turn(
                {
                    "sightline": lambda load: taken("sightline", our_side, load),
                    "peer": lambda load: taken("peer", peer_side, load),
                },
                loads,
                rounds=rounds,
                title="P2",
            )
    report(cells, takings, loads, rounds=rounds, seconds=seconds)
    profile(seconds=seconds)


def report(
    cells: dict[str, dict[int, Cell]],
    takings: dict[str, dict[int, list[Taking]]],
    loads: Sequence[int],
    *,
    rounds: int,
    seconds: float,
) -> None:
    rows = []
    for load in loads:
        we, they = takings["sightline"][load], takings["peer"][load]
        ratios = sorted(our.rate / their.rate for our, their in zip(we, they, strict=True))
        ratio = f"{statistics.median(ratios):.1f} ×  ({ratios[0]:.1f}–{ratios[-1]:.1f})"
        rates = (cells["sightline"][load].text, cells["peer"][load].text)
        rows.append((f"{load}", *rates, ratio, _latencies(we), _latencies(they), _cpu(we), _cpu(they)))
    measure.show(
        "P2: accepted jobs per second over HTTP",
        ("connections", "sightline", "peer", "ratio", "ms p50 / p99", "peer's", "CPU µs", "peer's"),
        rows,
        "p2",
        (
            (
                f"Median of {rounds} rounds of {seconds:g} s (lowest–highest), in turn, one API process each, fsync and"
                f" synchronous_commit on; goal {GOAL:g} ×. The ratio is the median of the rounds' ratios."
            ),
            (
                "POST /v1/jobs with a bearer token and an Idempotency-Key of its own; one request in a hundred repeats"
                " a key and must get the first answer's id. Peer: FastAPI, SQLAlchemy on asyncpg, SAQ on the same"
                " Valkey, uvicorn with uvloop and httptools (benchmarks/peers). Both look at the token's user and log"
                " one line a request; the peer verifies each token, we keep a verified one by its SHA-256 until it"
                " ends. Neither limits the rate. After each taking the jobs stored were exactly those acknowledged."
            ),
            "CPU µs: of the API process, per answer. " + _busy(takings, loads),
        ),
    )
    measure.keep("p2", cells)
    plot(cells, loads)


def _latencies(takings: Sequence[Taking]) -> str:
    latencies = sorted(each for one in takings for each in one.latencies_ms)
    p50, p99 = (latencies[min(len(latencies) - 1, int(share * len(latencies)))] for share in (0.5, 0.99))
    return f"{p50:.1f} / {p99:.1f}"


def _cpu(takings: Sequence[Taking]) -> str:
    return f"{statistics.median(one.cpu_us for one in takings):.0f}"


def _busy(takings: dict[str, dict[int, list[Taking]]], loads: Sequence[int]) -> str:
    api, client = (max(one.busy[n] for load in loads for one in takings["sightline"][load]) for n in (0, 1))
    return f"At most {api:.0%} of a core was used by our API process, and {client:.0%} by the client that loaded it."


def profile(*, seconds: float, loads: Sequence[int] = PROFILED_LOADS) -> None:
    """Where our API process's time goes under load: a flame graph, and a table by part."""
    parts: dict[int, dict[str, float]] = {}
    for load in loads:
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
            samples_path = Path(name) / "samples.json"
            with ValkeyServer(Path(name) / "valkey") as valkey:
                with ours(Path(name) / "ours", valkey.url, profile_path=samples_path) as side:
                    os.kill(side.pid, signal.SIGUSR1)
                    cpu_us = take(side, load, max(seconds, 5.0)).cpu_us
                stacks = flames.read(samples_path)
        parts[load] = {part: share * cpu_us for part, share in flames.by_part(stacks).items()}
        flames.draw(
            stacks,
            f"p2_profile_{load}",
            f"POST /v1/jobs, {load} connections: CPU of the API process",
        )
    names = sorted(parts[loads[0]], key=lambda part: -parts[loads[0]][part])
    measure.show(
        "P2: where the time goes",
        ("part", *(f"µs at {load}" for load in loads)),
        [
            *((name, *(f"{parts[load].get(name, 0):.0f}" for load in loads)) for name in names),
            ("all", *(f"{sum(parts[load].values()):.0f}" for load in loads)),
        ],
        "p2_where",
        (
            (
                "µs of the API process per answer, by the part whose code was running or had called what ran; sampled"
                " every millisecond of its CPU time, which itself costs a few per cent."
            ),
        ),
    )


def plot(cells: dict[str, dict[int, Cell]], loads: Sequence[int]) -> None:
    with measure.picture("p2") as axes:
        for name, label, style in (("sightline", "sightline", "o-"), ("peer", "FastAPI + SQLAlchemy + SAQ", "^:")):
            row = [cells[name][load] for load in loads]
            medians = [cell.median for cell in row]
            spread = [[cell.median - cell.low for cell in row], [cell.high - cell.median for cell in row]]
            axes.errorbar(loads, medians, yerr=spread, fmt=style, capsize=3, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(loads, [str(load) for load in loads])
        axes.set_xlabel("connections")
        axes.set_ylabel("accepted jobs per second")
        axes.grid(which="both", alpha=0.3)
        axes.legend()


@click.command()
@click.option("--profile", "profiled", is_flag=True, help="Only the picture of where the time goes.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=2.0, show_default=True)
def main(profiled: bool, rounds: int, seconds: float) -> None:
    if profiled:
        profile(seconds=seconds)
    else:
        run(rounds=rounds, seconds=seconds)


if __name__ == "__main__":
    main()
