"""Four connections, few streams, each command resting on one that others write: none is accepted on a stale view."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID, uuid4

from msgspec import Struct
from tests.adapters.event_store.test_writer import held_up
from tests.conftest_log import ROOT, LogDatabase, assert_whole, command, log_rows

from sightline.adapters.event_store.writer import Appended, Repeat, Stale, Writer

COMMANDS = 20_000
CONNECTIONS = 4
IN_FLIGHT_EACH = 12
STREAMS = 8
LOCKED_TOO = """FROM (SELECT FROM log_head AS h WHERE h.one FOR UPDATE) AS locked
    CROSS JOIN unnest(x_n, x_stream, x_version) AS x (n, stream, version)"""


class Accepted(Struct, frozen=True):
    """What a command rested on, and where it landed.

    Attributes:
        held: version by stream, of those that it wrote and those that it looked at.
        written: the stream that it wrote, if it did.
    """

    position: int
    held: dict[UUID, int]
    written: UUID | None


class Load:
    """Commands on a few streams, over several writers. Decisions start from whatever version was last heard of."""

    def __init__(self, writers: list[Writer], seed: int) -> None:
        self.writers = writers
        self.dice = random.Random(seed)
        self.versions = {uuid4(): 0 for _ in range(STREAMS)}
        self.accepted: list[Accepted] = []
        self.stale = self.repeats = 0

    async def run(self, commands: int) -> None:
        left = iter(range(commands))

        async def one_after_the_other(writer: Writer) -> None:
            for n in left:
                await self.say(writer, n)

        await asyncio.gather(*(one_after_the_other(one) for one in self.writers for _ in range(IN_FLIGHT_EACH)))

    async def say(self, writer: Writer, n: int) -> None:
        looked_at, written = self.dice.sample([*self.versions], 2)
        held = {looked_at: self.versions[looked_at], written: self.versions[written]}
        silent = n % 5 == 0
        if silent:
            decided = command(looks=[*held.items()])
        else:
            decided = command((written, held[written]), looks=[(looked_at, held[looked_at])])
        if n % 20 == 1:
            first, second = await asyncio.gather(writer.append(decided), self.other(writer).append(decided))
            self.twice(first, second)
            outcome = first if isinstance(first, Appended) else second
        else:
            outcome = await writer.append(decided)
        if isinstance(outcome, Appended):
            self.accepted.append(Accepted(outcome.position, held, None if silent else written))
            if not silent:
                self.versions[written] = max(self.versions[written], held[written] + 1)
        else:
            self.stale += 1

    def other(self, writer: Writer) -> Writer:
        return self.writers[(self.writers.index(writer) + 1) % len(self.writers)]

    def twice(self, *outcomes: object) -> None:
        """One command over two connections: accepted once, or not at all."""
        kinds = Counter(map(type, outcomes))
        assert kinds in (Counter([Appended, Repeat]), Counter([Stale, Stale]), Counter([Appended, Stale]))
        self.repeats += kinds[Repeat]


def skewed(accepted: list[Accepted], rows: list[tuple[int, UUID, int]]) -> int:
    """How many commands were accepted although a stream was not, at their position, where they held it to be."""
    at_head = dict[UUID, int]()
    found = 0
    log = iter(rows)
    for one in sorted(accepted, key=lambda one: (one.position, one.written is None)):
        # A command that says nothing stands after the event at its position, one that says something before its own.
        until = one.position - (one.written is not None)
        while sum(at_head.values()) < until:
            _, stream, version = next(log)
            at_head[stream] = version
        found += any(at_head.get(stream, 0) != version for stream, version in one.held.items())
    return found


@asynccontextmanager
async def load(database: LogDatabase, seed: int = 1) -> AsyncIterator[Load]:
    async with AsyncExitStack() as stack:
        writers = [Writer(database.dsn) for _ in range(CONNECTIONS)]
        for writer in writers:
            await writer.start()
            stack.push_async_callback(writer.close)
        yield Load(writers, seed)


async def test_no_double_acceptance_no_skew_no_gap(log_database: LogDatabase) -> None:
    async with load(log_database) as running:
        await running.run(COMMANDS)
    rows = log_rows(log_database)
    assert_whole(rows)
    assert len(running.accepted) + running.stale == COMMANDS
    assert len(rows) == sum(one.written is not None for one in running.accepted)
    assert len(rows) == sum(running.versions.values())
    with log_database.connect() as connection:
        receipts = connection.execute("SELECT count(*) FROM receipts").fetchone()
    assert receipts == (len(running.accepted),)
    assert skewed(running.accepted, rows) == 0
    # It was contended, and something came of it.
    assert running.stale > COMMANDS / 20
    assert len(rows) > COMMANDS / 20
    assert running.repeats > 10
    print(f"{len(running.accepted)} accepted, {running.stale} stale, {running.repeats} repeats")


async def test_lock_and_checks_in_one_statement_skew(log_database: LogDatabase) -> None:
    """The control: the statement that checks began before it got the lock, and sees the log of then."""
    source = (ROOT / "schema/functions/append_batch.sql").read_text().replace("@schema@", "public")
    for ours, folded in (
        ("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"),
        ("WHERE h.one FOR UPDATE;", "WHERE h.one;"),
        (
            "FROM unnest(x_n, x_stream, x_version) AS x (n, stream, version)",
            LOCKED_TOO,
        ),
    ):
        assert source.count(ours) == 1
        source = source.replace(ours, folded)
    with log_database.connect(superuser=True) as superuser:
        superuser.execute(source.encode())
    assert skewed(*await each_looks_at_what_the_other_writes(log_database)) == 1


async def test_the_same_two_with_the_lock_first_do_not(log_database: LogDatabase) -> None:
    accepted, rows = await each_looks_at_what_the_other_writes(log_database)
    assert skewed(accepted, rows) == 0
    assert len(accepted) == len(rows) == 1


async def each_looks_at_what_the_other_writes(
    database: LogDatabase,
) -> tuple[list[Accepted], list[tuple[int, UUID, int]]]:
    """Two commands of two connections, both sent before either gets the lock."""
    streams = [uuid4(), uuid4()]
    async with load(database) as running, held_up(database):
        outcomes = [
            asyncio.create_task(writer.append(command((written, 0), looks=[(looked_at, 0)])))
            for writer, written, looked_at in zip(running.writers, streams, streams[::-1], strict=False)
        ]
        with database.connect(superuser=True) as superuser:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = %s"
            )
            while superuser.execute(waiting, ["Lock"]).fetchone() != (2,):  # noqa: ASYNC110  # it happens in the server
                await asyncio.sleep(0.005)
        released = asyncio.gather(*outcomes)
    held = dict.fromkeys(streams, 0)
    found = zip(streams, await released, strict=True)
    return [Accepted(one.position, held, written) for written, one in found if isinstance(one, Appended)], log_rows(
        database
    )
