"""One run: load, faults round by round, rest, checks."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import structlog
from msgspec import Struct, field
from tests.adapters.event_store.proxy import Proxy
from tests.crash import checks
from tests.crash.checks import Row
from tests.crash.observer import Reader, Tokens, impersonate
from tests.crash.plan import DUPLICATES, Plan, Round
from tests.crash.system import APPEND, System

from sightline.workers import lifecycle

POLL_S = 0.01
START_S = 60.0
ROUND_S = 120.0
REST_S = 300.0
CLIENT_ROUNDS_BEHIND_MAX = 3  # so that every round's jobs and uploads meet the faults of about that round
READ_MODELS = "SELECT position FROM projection_checkpoints WHERE name = 'read_models'"
UNFINISHED = "SELECT count(*) FROM jobs WHERE status IN ('pending', 'processing')"

log = structlog.get_logger(__name__)


class Stuck(Exception):
    """The service did not come back, or its load did not end, in time."""


class Report(Struct, frozen=True, kw_only=True):
    """
    Attributes:
        recovery_s: from each kill of PostgreSQL to the first command acknowledged after it, and from each kill of the
            API to its readiness.
    """

    seed: int
    seconds: float
    kills: dict[str, int]
    rows: list[Row]
    recovery_s: dict[str, list[float]]

    @property
    def broken(self) -> list[Row]:
        return [row for row in self.rows if row.broken]

    def recovery(self) -> list[tuple[str, str]]:
        """Informational: what was recovered from, and how fast."""
        return [
            (name, f"p50 {statistics.median(found):.2f} s, p99 {_percentile(found, 0.99):.2f} s ({len(found)} times)")
            for name, found in self.recovery_s.items()
            if found
        ]


class Progress(Struct):
    """What a bar shows."""

    rounds: int = 0
    commands: int = 0
    doing: str = ""


class Run(Struct):
    """
    Attributes:
        told: called with the progress as it moves.
    """

    system: System
    told: Callable[[Progress], None]
    tokens: Tokens = field(default_factory=Tokens)
    progress: Progress = field(default_factory=Progress)
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: {"postgres": [], "api": []})
    stopping: "list[asyncio.Task[bool]]" = field(default_factory=list)
    stops: int = 0
    flushes: int = 0

    async def until(self, done: Callable[[], bool | Awaitable[bool]], what: str, timeout_s: float = ROUND_S) -> None:
        """
        Raises:
            Stuck: not in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            answer = done()
            if answer if isinstance(answer, bool) else await answer:
                return
            if time.monotonic() > deadline:
                raise Stuck(f"{what}: not within {timeout_s:g} s; the logs are in {self.system.directory}")
            self.show(what)
            await asyncio.sleep(POLL_S)

    def show(self, doing: str) -> None:
        self.progress.commands, self.progress.doing = self.system.appended, doing
        self.told(self.progress)

    async def round(self, number: int, one: Round) -> None:
        system = self.system
        begun, wanted = system.wanted(number - 1), system.wanted(number)
        system.gate.set(number)
        drops = system.plan.size.drops_per_round
        for _ in range(drops):
            system.between[0].lose_next_answer()
        system.between[1].lose_next_answer()
        self.stopping += [asyncio.create_task(system.stop_worker(worker, one.stop_s)) for worker in one.stopped]
        if one.flush:
            self.flushes += system.flush_valkey()
        at = begun + round((wanted - begun) * one.after)
        await self.until(lambda: system.appended >= at, f"round {number}: load")
        await self._kill(number, one)
        await self.until(lambda: system.appended >= wanted, f"round {number}: load after the kill of {one.victim}")
        told = number - CLIENT_ROUNDS_BEHIND_MAX
        await self.until(lambda: system.answers.rounds() >= told, f"round {number}: clients of round {told}")
        await asyncio.sleep(one.pause_s)
        self.progress.rounds = number

    async def _kill(self, number: int, one: Round) -> None:
        system = self.system
        killed_ns = time.monotonic_ns()
        known = [len(ledger) for ledger in system.ledgers]
        pid = system.kill(one.victim, one.number)
        log.info("killed", round=number, victim=one.victim, pid=pid)
        if one.victim in ("postgres", "postmaster"):
            await self.until(
                lambda: system.postgres.pid not in (None, pid) and system.postgres.is_ready(),
                f"round {number}: PostgreSQL comes back",
            )
            again_ns = time.monotonic_ns()

            def answered() -> bool:
                pairs = zip(system.ledgers, known, strict=True)
                return any(ack.told_ns > again_ns for ledger, skip in pairs for ack in ledger.since(skip))

            if system.appended < system.wanted(number):
                await self.until(answered, f"round {number}: the first append after the kill")
                self.recovery_s["postgres"].append((time.monotonic_ns() - killed_ns) / 1e9)
        elif one.victim == "api":
            await self.until(system.api_ready, f"round {number}: the API comes back")
            self.recovery_s["api"].append((time.monotonic_ns() - killed_ns) / 1e9)

    async def rest(self) -> None:
        """All that was asked for is answered, all jobs are at their end, and the read models have caught up."""
        await self.until(lambda: self.system.loads_done, "the loads end", REST_S)
        await self.until(lambda: all(task.done() for task in self.stopping), "the last stops end", REST_S)
        self.stops = sum(task.result() for task in self.stopping)
        await self.until(self._at_rest, "jobs end and read models catch up", REST_S)

    async def _at_rest(self) -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(self.system.settings.database_url) as connection:
                head = await _scalar(connection, "SELECT coalesce(max(position), 0) FROM events")
                return await _scalar(connection, READ_MODELS) == head and not await _scalar(connection, UNFINISHED)
        except psycopg.OperationalError:
            return False


async def run(plan: Plan, directory: Path, told: Callable[[Progress], None] = lambda _: None) -> Report:
    """Everything that the plan says, then the checks.

    Raises:
        Stuck: the service did not come back in time: no row could be trusted.
    """
    began = time.monotonic()
    system = System(directory, plan)
    with system.running():
        one = Run(system, told)
        async with _loaded(system, one.tokens) as reader:
            await one.until(system.api_ready, "the service starts", START_S)
            for number, wanted in enumerate(plan.rounds, 1):
                await one.round(number, wanted)
            await one.rest()
            head = await _head(system)
            await one.until(lambda: reader.position >= head and reader.over.empty(), "the reader catches up")
        one.show("checks")
        rows = await _checked(system, one, reader)
    return Report(
        seed=plan.seed,
        seconds=round(time.monotonic() - began, 1),
        kills=system.kills,
        rows=rows,
        recovery_s=one.recovery_s,
    )


@asynccontextmanager
async def _loaded(system: System, tokens: Tokens) -> AsyncIterator[Reader]:
    """The processes, whoever keeps them running, and whoever looks on."""
    async with AsyncExitStack() as stack:
        between = []
        for _ in range(2):
            home = stack.enter_context(TemporaryDirectory(prefix="sightline-between-"))  # a socket's path is short
            between.append(await stack.enter_async_context(Proxy(system.postgres.dsn, Path(home), asked=APPEND)))
        system.start(between)
        services = await stack.enter_async_context(lifecycle.open_services(system.settings))
        reader = Reader(system.settings.database_url)
        tasks = [
            asyncio.create_task(system.tend()),
            asyncio.create_task(reader.run()),
            asyncio.create_task(impersonate(services.commands, reader, tokens)),
        ]
        stack.push_async_callback(_ended, tasks)
        yield reader


async def _ended(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _checked(system: System, one: Run, reader: Reader) -> list[Row]:
    answers = list(system.answers)
    dropped = sum(proxy.answers_lost for proxy in system.between)
    valkey_kills = system.kills.get("valkey", 0)
    cuts = sum(answer.what == "cut" for answer in answers)
    with checks.connect(system.settings.database_url) as connection:
        checks.load(connection, system.ledgers)
        rows = [
            checks.nothing_lost(connection, answers),
            checks.no_false_conflict(connection, answers, dropped),
            checks.whole_and_in_order(connection, reader.seen, reader.holes),
            checks.same_as_a_cold_replay(connection),
            checks.one_winner(connection, one.tokens, one.stops),
            checks.no_job_stuck(connection, answers, one.flushes, valkey_kills),
        ]
        async with lifecycle.open_services(system.settings) as services:
            await checks.leave_orphans(connection, services)
            rows.append(await checks.objects_named(connection, services, cuts))
        rows.append(checks.one_job_per_key(connection, answers, DUPLICATES))
    return rows


async def _head(system: System) -> int:
    async with await psycopg.AsyncConnection.connect(system.settings.database_url) as connection:
        return await _scalar(connection, "SELECT coalesce(max(position), 0) FROM events")


async def _scalar(connection: psycopg.AsyncConnection, query: str) -> int:
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return int(row[0])


def _percentile(found: list[float], share: float) -> float:
    ordered = sorted(found)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
