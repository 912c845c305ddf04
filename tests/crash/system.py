"""A whole service whose every process can be killed: parts and processes as `sightline up` runs them, and its loads."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path

import httpx
import redis
from tests.adapters.event_store.proxy import Proxy
from tests.conftest_up import free_port
from tests.crash.appender import quotas
from tests.crash.ledger import Answers, Ledger
from tests.crash.plan import LEASE_S, Gate, Plan

from sightline.adapters import postgres, settings
from sightline.adapters.embedded.charges import Charge, PartCharge, ProcessCharge, ProcessSpec
from sightline.adapters.embedded.parts import Parts
from sightline.adapters.embedded.postgres import PostgresServer, _servers_on
from sightline.adapters.embedded.processes import kill
from sightline.adapters.settings import Settings

ROOT = Path(__file__).parents[2]
TEND_S = 0.02
HOLDS_S_MAX = 5.0  # how long a worker that is to be stopped is waited for to hold a job
HOLDS_POLL_S = 0.005
APPEND = b"\0append_batch\0"  # how the writer's channel names its statement when it runs it


class Load(ProcessCharge):
    """A process that ends by itself, with status 0; before that it is started again whenever it dies."""

    @property
    def done(self) -> bool:
        return self.poll() == 0

    def tend(self) -> None:
        if not self.done:
            super().tend()


class System:
    """
    Attributes:
        between: proxies that can lose answers: before the appenders' database, and before the API's.
        kills: how often each kind of process was killed.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan
        self.gate = Gate(directory)
        self.port = free_port()
        self.answers = Answers(directory / "answers.ledger")
        self.ledgers = [Ledger(directory / f"appender-{one}.ledger") for one in range(plan.size.appenders)]
        self.kills: dict[str, int] = {}
        self._given = settings.read(
            {}, data_dir=directory / "data", port=self.port, worker_lease_s=LEASE_S, job_retry_base_s=0.05
        )
        self._parts = Parts(self._given, attach=False)
        self.settings: Settings = self._parts.settings
        self.between: list[Proxy] = []
        self._charges: list[Charge] = []
        self._named: dict[str, list[ProcessCharge]] = {}
        self._stopped = [asyncio.Lock() for _ in range(plan.size.workers)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Parts started, schema in place; then `start` the processes, inside."""
        self.gate.set(0)
        try:
            self.settings = self._parts.start()
            postgres.migrate(self.settings.database_url)
            yield
        finally:
            for process in self.processes:
                if process.child is not None:
                    kill(process.child)
            self._parts.stop()

    @property
    def processes(self) -> list[ProcessCharge]:
        return [one for several in self._named.values() for one in several]

    @property
    def postgres(self) -> PostgresServer:
        assert self._parts.postgres is not None
        return self._parts.postgres

    def start(self, between: list[Proxy]) -> None:
        self.between = between
        size = self.plan.size
        through = between[1].dsn
        serve = {"SIGHTLINE_DATABASE_URL": through, "SIGHTLINE_DATABASE_DIRECT_URL": through}
        for name, command, count, env in (
            ("projector", "project", 1, {}),
            ("clock", "tick", 1, {}),
            ("api", "serve", 1, serve),
            ("worker", "work", size.workers, {}),
        ):
            words = (sys.executable, "-m", "sightline", command)
            self._named[name] = [self._charge(ProcessCharge, name, one, words, env) for one in range(count)]
        plan = self.plan
        figures = tuple(map(str, (size.appenders, between[0].dsn, plan.seed, size.kills, size.events)))
        appender = (sys.executable, "-m", "tests.crash.appender", str(self.directory))
        self._named["appender"] = [
            self._charge(Load, "appender", one, (*appender, str(one), *figures)) for one in range(size.appenders)
        ]
        wanted = (
            self.port,
            plan.seed,
            size.kills,
            size.keys_per_round,
            size.long_jobs_per_round,
            size.uploads_per_round,
        )
        clients = (sys.executable, "-m", "tests.crash.clients", str(self.directory), *map(str, wanted))
        self._named["clients"] = [self._charge(Load, "clients", 0, clients)]
        self._charges = [*map(PartCharge, self._parts.owned), *self.processes]
        for process in self.processes:
            process.launch()

    def _charge(
        self,
        kind: type[ProcessCharge],
        name: str,
        number: int,
        words: tuple[str, ...],
        env: dict[str, str] | None = None,
    ) -> ProcessCharge:
        fixed = {
            "SIGHTLINE_PORT": str(self.port),
            "SIGHTLINE_WORKER_LEASE_S": str(LEASE_S),
            "SIGHTLINE_JOB_RETRY_BASE_S": str(self._given.job_retry_base_s),
            "SIGHTLINE_LOG_FORMAT": "json",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self._temporary(name, number)),
        }
        self._temporary(name, number).mkdir()
        log_path = self.directory / f"{name}-{number}.log"
        spec = ProcessSpec(name=name, argv=words, env=fixed | (env or {}), log_path=log_path, stable_s=0)
        return kind(spec, self._parts.environ)

    async def tend(self) -> None:
        """Start again whatever died, until cancelled. A server's start blocks this process for a moment."""
        while True:
            for charge in self._charges:
                charge.tend()
            await asyncio.sleep(TEND_S)

    def kill(self, victim: str, number: int) -> int | None:
        """kill -9; the process id, None where it was dead already."""
        self.kills[victim] = self.kills.get(victim, 0) + 1
        if victim in ("postgres", "postmaster"):
            return self._kill_server(whole=victim == "postgres")
        if victim == "valkey":
            assert self._parts.valkey is not None
            pid = self._parts.valkey.pid
        else:
            pid = _kill(self._named[victim][number].pid)
            for left in self._temporary(victim, number).glob("sightline-job-*"):
                shutil.rmtree(left, ignore_errors=True)  # or it would seem to hold a job for ever
            return pid
        return _kill(pid)

    def _kill_server(self, *, whole: bool) -> int | None:
        """The server's main process; with its children, what is in its shared memory goes too."""
        pid = self.postgres.pid
        if whole:
            for one in list(_servers_on(self.postgres.data)):
                _kill(one)
        return _kill(pid)

    async def stop_worker(self, number: int, seconds: float) -> bool:
        """SIGSTOP for so long, in the middle of a job; whether there was one, and the worker outlived it."""
        async with self._stopped[number]:
            with suppress(TimeoutError):
                async with asyncio.timeout(HOLDS_S_MAX):
                    while not self._holds_job(number):  # noqa: ASYNC110  # another process takes it
                        await asyncio.sleep(HOLDS_POLL_S)
            child = self._named["worker"][number].child
            if child is None or child.poll() is not None or not self._holds_job(number):
                return False
            child.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                child.send_signal(signal.SIGCONT)
            return child.poll() is None

    def _holds_job(self, number: int) -> bool:
        """By the directory that an attempt works in."""
        return any(self._temporary("worker", number).glob("sightline-job-*"))

    def _temporary(self, name: str, number: int) -> Path:
        return self.directory / f"{name}-{number}.tmp"

    def flush_valkey(self) -> bool:
        with suppress(redis.RedisError), redis.Redis.from_url(self.settings.redis_url, socket_timeout=1) as client:
            return bool(client.flushall())
        return False

    @property
    def appended(self) -> int:
        """Commands that the appenders have an answer for."""
        return sum(map(len, self.ledgers))

    def wanted(self, rounds: int) -> int:
        """Commands that they are to have by the end of so many rounds."""
        size = self.plan.size
        if not rounds:
            return 0
        return size.appenders * quotas(size.events, size.kills, size.appenders)[rounds - 1]

    @property
    def loads_done(self) -> bool:
        return all(
            load.done for name in ("appender", "clients") for load in self._named[name] if isinstance(load, Load)
        )

    async def api_ready(self) -> bool:
        async with httpx.AsyncClient(timeout=2) as client:
            try:
                return (await client.get(f"http://127.0.0.1:{self.port}/readyz")).status_code == HTTPStatus.OK
            except httpx.TransportError:
                return False


def _kill(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return pid
