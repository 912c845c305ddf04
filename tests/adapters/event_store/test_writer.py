"""The writer of one process: what its neighbours, its callers and its connection may do to a command."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec.structs import replace
from tests.adapters.event_store.proxy import Proxy
from tests.conftest_log import METADATA, LogDatabase, assert_whole, command, event, log_rows

from sightline.adapters.event_store import writer as writer_module
from sightline.adapters.event_store.codec import NotStorable
from sightline.adapters.event_store.wire import Append, Guard
from sightline.adapters.event_store.writer import (
    DEAD_WRITER_EXIT,
    Appended,
    Blocked,
    CommandRefused,
    Outcome,
    Repeat,
    Stale,
    StoreBusy,
    StoreUnavailable,
    Writer,
)

BATCH = 64


@asynccontextmanager
async def opened(dsn: str, kind: type[Writer] = Writer, **options: Any) -> AsyncIterator[Writer]:
    deaths: list[BaseException] = []
    writer = kind(dsn, on_death=deaths.append, **options)
    await writer.start()
    try:
        yield writer
    finally:
        await writer.close()
    assert deaths == []


@pytest.fixture(autouse=True)
def _a_queue_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that neighbours in the queue are neighbours in the batch."""
    monkeypatch.setattr(writer_module, "HALVED_FROM_COMMANDS", 10_000)


@pytest.fixture
async def writer(log_database: LogDatabase) -> AsyncIterator[Writer]:
    async with opened(log_database.dsn) as started:
        yield started


@pytest.fixture
async def proxy(log_database: LogDatabase) -> AsyncIterator[Proxy]:
    with TemporaryDirectory(prefix="sightline-tests-") as directory:
        async with Proxy(log_database.dsn, Path(directory)) as between:
            yield between


def held_up(database: LogDatabase) -> AbstractAsyncContextManager[None]:
    """Somebody else holds the head row: a batch that is sent waits, and the next one gathers."""

    @asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        async with await psycopg.AsyncConnection.connect(database.superuser_dsn) as connection:
            await connection.execute("SELECT FROM log_head FOR UPDATE")
            yield

    return hold()


async def queue(writer: Writer, commands: list[Append]) -> list["asyncio.Task[Outcome]"]:
    """The commands in the writer's queue, in this order; none sent yet, if the batch before it is held up."""
    tasks = [asyncio.create_task(writer.append(one)) for one in commands]
    await asyncio.sleep(0)
    return tasks


async def in_flight(writer: Writer, database: LogDatabase) -> "asyncio.Task[Outcome]":
    """One command that was sent and waits for the head row's lock."""
    first = asyncio.create_task(writer.append(command((uuid4(), 0))))
    async with await psycopg.AsyncConnection.connect(database.superuser_dsn, autocommit=True) as connection:
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while (await (await connection.execute(waiting)).fetchone()) == (0,):  # noqa: ASYNC110  # it happens in the server
            await asyncio.sleep(0.005)
    return first


def receipts(database: LogDatabase) -> Counter[UUID]:
    with database.connect() as connection:
        return Counter(one for (one,) in connection.execute("SELECT command_id FROM receipts").fetchall())


async def one_batch(writer: Writer, database: LogDatabase, commands: list[Append]) -> list[Outcome | BaseException]:
    """The outcomes of commands that travelled together."""
    async with held_up(database):
        first = await in_flight(writer, database)
        tasks = await queue(writer, commands)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(await first, Appended)
    return found


# Neighbours


POISON = {
    "a text that is not JSON": lambda: command((uuid4(), 0), data=b'{"half":'),
    "bytes that are not UTF-8": lambda: command((uuid4(), 0), data=b'"\xff"'),
    "a version below 1": lambda: replace(command(), events=[event(uuid4(), 0)]),
    "the same event twice": lambda: replace(command(), events=[event(UUID(int=1), 1)] * 2),
    "a NUL in a guard's key": lambda: command((uuid4(), 0), guards=[Guard("a\0b", 1, 1)]),
    "metadata that are not JSON": lambda: replace(command((uuid4(), 0)), metadata=b"{"),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
@pytest.mark.parametrize("place", [0, 37])
async def test_a_poisoned_command_leaves_the_other_63_right(
    writer: Writer, log_database: LogDatabase, poison: Callable[[], Append], place: int
) -> None:
    commands = [command((uuid4(), 0), guards=[Guard("k", 1, 100)]) for _ in range(BATCH)]
    commands[place] = poison()
    outcomes = await one_batch(writer, log_database, commands)
    assert isinstance(outcomes.pop(place), CommandRefused)
    assert [type(outcome) for outcome in outcomes] == [Appended] * (BATCH - 1)
    assert_whole(log_rows(log_database))
    assert len(log_rows(log_database)) == BATCH  # with the one in flight before
    positions = [outcome.position for outcome in outcomes if isinstance(outcome, Appended)]
    assert positions == list(range(2, BATCH + 1))
    assert commands[place].command_id not in receipts(log_database)


async def test_unhalved_it_would_take_them_along(log_database: LogDatabase) -> None:
    """The control: a writer that takes an error for everybody's."""

    class Unhalved(Writer):
        async def _settle(self, batch: list[Any]) -> None:
            try:
                self._resolve(batch, await self._send(batch))
            except psycopg.Error as error:
                for one in batch:
                    one.future.set_exception(CommandRefused(str(error)))

    commands = [command((uuid4(), 0)) for _ in range(BATCH - 1)] + [command((uuid4(), 0), data=b"{")]
    async with opened(log_database.dsn, Unhalved) as unhalved:
        outcomes = await one_batch(unhalved, log_database, commands)
    assert [type(outcome) for outcome in outcomes] == [CommandRefused] * BATCH


async def test_what_cannot_be_sent_is_refused_before_it_is_queued(writer: Writer, log_database: LogDatabase) -> None:
    for broken in (
        command((uuid4(), 2**63)),
        command(guards=[Guard("k", 2**63)]),
        command(guards=[Guard("\ud800", 1)]),
    ):
        with pytest.raises(NotStorable):
            await writer.append(broken)
    assert log_rows(log_database) == []


async def test_a_cancelled_waiter_leaves_the_other_63_right(writer: Writer, log_database: LogDatabase) -> None:
    commands = [command((uuid4(), 0)) for _ in range(BATCH)]
    async with held_up(log_database):
        first = await in_flight(writer, log_database)
        tasks = await queue(writer, commands)
        tasks[20].cancel()
        first.cancel()  # was sent already, and is appended all the same
        await asyncio.wait({tasks[20], first})
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes.pop(20), asyncio.CancelledError)
    assert [type(outcome) for outcome in outcomes] == [Appended] * (BATCH - 1)
    assert_whole(log_rows(log_database))
    assert len(log_rows(log_database)) == BATCH
    assert commands[20].command_id not in receipts(log_database)


async def test_neighbours_on_one_stream_go_one_after_the_other(writer: Writer, log_database: LogDatabase) -> None:
    hot, looked_at = uuid4(), uuid4()
    commands = [command((hot, 0)), command((hot, 1)), command((looked_at, 0)), command((uuid4(), 0), looks=[(hot, 2)])]
    outcomes = await one_batch(writer, log_database, commands)
    assert [type(outcome) for outcome in outcomes] == [Appended] * 4
    assert_whole(log_rows(log_database))


async def test_the_same_command_twice_in_the_queue_is_one(writer: Writer, log_database: LogDatabase) -> None:
    twin = command((uuid4(), 0), result=b'{"first": true}')
    outcomes = await one_batch(writer, log_database, [twin, twin, command((uuid4(), 0))])
    assert isinstance(outcomes[0], Appended)
    assert outcomes[1] == Repeat(outcomes[0].position, outcomes[0].recorded_at, b'{"first": true}')
    assert isinstance(outcomes[2], Appended)


async def test_every_outcome_has_its_kind(writer: Writer) -> None:
    stream = uuid4()
    first = command((stream, 0), events_each=3)
    assert isinstance(appended := await writer.append(first), Appended)
    assert appended.position == 3
    assert await writer.append(first) == Repeat(3, appended.recorded_at)
    assert await writer.append(command((stream, 0))) == Stale()
    key = 'jobs "with" \\ é'
    assert await writer.append(command((uuid4(), 0), guards=[Guard(key, 1, 0)])) == Blocked(key)
    assert isinstance(silent := await writer.append(command(looks=[(stream, 3)])), Appended)
    assert silent.position == 3


async def test_a_batch_is_capped_and_a_command_is_never_split(log_database: LogDatabase) -> None:
    appended: list[int] = []
    async with opened(log_database.dsn, on_append=appended.append) as capped:
        commands = [command((uuid4(), 0), events_each=n) for n in (1, 511, 1, 2_000, 300, 300)]
        outcomes = await one_batch(capped, log_database, commands)
    assert all(isinstance(outcome, Appended) for outcome in outcomes)
    assert appended == [1, 513, 514, 2_514, 2_814, 3_114]


# The connection


async def test_a_terminated_connection_loses_nothing(log_database: LogDatabase) -> None:
    appended: list[int] = []
    async with opened(log_database.dsn, on_append=appended.append) as writer:
        commands = [command((uuid4(), 0)) for _ in range(BATCH)]
        async with held_up(log_database):
            tasks = await queue(writer, commands[:1])
            while not await terminated(log_database):  # noqa: ASYNC110  # what is waited for happens in the server
                await asyncio.sleep(0.005)
            tasks += await queue(writer, commands[1:])
        outcomes = await asyncio.gather(*tasks)
    assert [type(outcome) for outcome in outcomes] == [Appended] * BATCH
    assert receipts(log_database) == Counter(one.command_id for one in commands)
    assert_whole(log_rows(log_database))


async def terminated(database: LogDatabase) -> bool:
    """Whether a session that waited for the head row was ended just now."""
    async with await psycopg.AsyncConnection.connect(database.superuser_dsn, autocommit=True) as connection:
        found = await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return await found.fetchone() is not None


async def test_a_lost_answer_is_recognised_by_the_command_id(proxy: Proxy, log_database: LogDatabase) -> None:
    async with opened(proxy.dsn) as writer:
        commands, outcomes = await with_lost_answers(writer, proxy, rounds=20)
    assert proxy.answers_lost == 20
    kinds = Counter(type(outcome) for outcome in outcomes)
    assert kinds.keys() == {Appended, Repeat}
    assert kinds[Repeat] >= 20
    assert receipts(log_database) == Counter(one.command_id for one in commands)
    rows = log_rows(log_database)
    assert_whole(rows)
    assert len(rows) == sum(len(one.events) for one in commands)
    said = {stream: position for position, stream, _ in rows}
    for one, outcome in zip(commands, outcomes, strict=True):
        assert isinstance(outcome, Appended | Repeat)
        if one.events:
            assert said[UUID(str(one.events[0].originator_id))] == outcome.position


async def with_lost_answers(writer: Writer, proxy: Proxy, rounds: int) -> tuple[list[Append], list[Outcome]]:
    commands: list[Append] = []
    outcomes: list[Outcome] = []
    for _ in range(rounds):
        batch = [command((uuid4(), 0)) if n % 2 else command() for n in range(BATCH)]
        commands += batch
        outcomes.append(await writer.append(batch[0]))  # the statement is prepared by now on this connection
        proxy.lose_next_answer()
        outcomes += await asyncio.gather(*map(writer.append, batch[1:]))
    return commands, outcomes


async def test_without_it_a_lost_answer_is_a_false_conflict(proxy: Proxy, log_database: LogDatabase) -> None:
    """The control: a writer that makes new ids when it sends again."""

    class Forgetful(Writer):
        calls = 0

        async def _call(self, batch: list[Any]) -> list[tuple[int, str, int, bytes | None, Any]]:
            self.calls += 1
            for one in batch:
                columns = (one.rendered.columns[0][:4] + uuid4().bytes, *one.rendered.columns[1:])
                one.rendered = replace(one.rendered, columns=columns)
            return await super()._call(batch)

    async with opened(proxy.dsn, Forgetful) as writer:
        await writer.append(command())
        proxy.lose_next_answer()
        silent, said = await asyncio.gather(writer.append(command()), writer.append(command((uuid4(), 0))))
    assert isinstance(silent, Appended)
    assert said == Stale()  # and yet it is in the log
    assert len(log_rows(log_database)) == 1
    assert len(receipts(log_database)) == 4  # the first command, the one that said something, and twice the silent one


async def test_a_database_that_stays_away_is_said_to_be(
    proxy: Proxy, log_database: LogDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "RESEND_MAX_S", 0.2)
    async with opened(proxy.dsn) as writer:
        assert isinstance(await writer.append(command((uuid4(), 0))), Appended)
        await proxy.refuse()
        with pytest.raises(StoreUnavailable):
            await writer.append(command((uuid4(), 0)))
    assert len(log_rows(log_database)) == 1


async def test_a_server_that_does_not_write_yet_is_waited_for(log_database: LogDatabase) -> None:
    async with opened(log_database.dsn) as writer:
        with log_database.connect(superuser=True) as superuser:
            superuser.execute("ALTER ROLE sightline SET default_transaction_read_only = on")
            try:
                superuser.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sightline'"
                    " AND datname = current_database()"
                )
                waiting = asyncio.create_task(writer.append(command((uuid4(), 0))))
                await asyncio.wait({waiting}, timeout=0.3)
                assert not waiting.done()
            finally:
                superuser.execute("ALTER ROLE sightline RESET default_transaction_read_only")
        assert isinstance(await waiting, Appended)


async def test_another_epoch_makes_every_decision_again(log_database: LogDatabase) -> None:
    epochs: list[UUID] = []
    stream = uuid4()
    async with opened(log_database.dsn, on_epoch=epochs.append) as writer:
        before = writer.epoch
        assert isinstance(await writer.append(command((stream, 0))), Appended)
        with log_database.connect(superuser=True) as superuser:
            superuser.execute("UPDATE log_head SET epoch = gen_random_uuid()")
        assert await writer.append(command((stream, 1))) == Stale()  # though the version would fit
        assert await writer.append(command((stream, 1)), epoch=before) == Stale()
        assert isinstance(await writer.append(command((stream, 1))), Appended)
        assert epochs == [before, writer.epoch]
    assert_whole(log_rows(log_database))


# Bounds


Fill = Callable[[Writer], Awaitable[Any]]


@pytest.mark.parametrize(
    ("bound", "value", "says"),
    [
        ("QUEUE_COMMANDS_MAX", 5, "5 commands"),
        ("QUEUE_BYTES_MAX", 2_000, "bytes"),
        ("QUEUE_AGE_MAX_S", 0.3, "the oldest"),
    ],
)
async def test_a_full_queue_refuses_before_it_sends(
    writer: Writer, log_database: LogDatabase, monkeypatch: pytest.MonkeyPatch, bound: str, value: float, says: str
) -> None:
    monkeypatch.setattr(writer_module, bound, value)
    async with held_up(log_database):
        first = await in_flight(writer, log_database)
        taken = await queue(writer, [command((uuid4(), 0)) for _ in range(5)])
        await asyncio.sleep(0.31 if bound == "QUEUE_AGE_MAX_S" else 0)  # age is time
        late = command((uuid4(), 0))
        with pytest.raises(StoreBusy, match=says) as caught:
            await writer.append(replace(late, metadata=METADATA[:-1] + b" " * 2_000 + b"}"))
        assert caught.value.code == "queue_full"
    outcomes = await asyncio.gather(first, *taken)
    assert all(isinstance(outcome, Appended) for outcome in outcomes)
    assert isinstance(await writer.append(late), Appended)  # room again, and nothing is left of the refused one
    assert writer._queue_bytes == 0
    assert len(log_rows(log_database)) == 7


async def test_a_closing_writer_appends_what_it_has_and_takes_no_more(log_database: LogDatabase) -> None:
    async with opened(log_database.dsn) as writer:
        async with held_up(log_database):
            first = await in_flight(writer, log_database)
            taken = await queue(writer, [command((uuid4(), 0)) for _ in range(5)])
            closing = asyncio.create_task(writer.close())
            await asyncio.sleep(0)
            with pytest.raises(StoreBusy):
                await writer.append(command((uuid4(), 0)))
        assert all(isinstance(outcome, Appended) for outcome in await asyncio.gather(first, *taken))
        await closing


async def test_a_writer_that_dies_says_so(log_database: LogDatabase) -> None:
    deaths: list[BaseException] = []

    def die(_: int) -> None:
        raise ZeroDivisionError

    writer = Writer(log_database.dsn, on_append=die, on_death=deaths.append)
    await writer.start()
    await writer.append(command((uuid4(), 0)))
    await writer.close()
    assert [type(error) for error in deaths] == [ZeroDivisionError]


def test_and_takes_its_process_with_it() -> None:
    code = "from sightline.adapters.event_store.writer import exit_loudly; exit_loudly(ValueError('dead'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == DEAD_WRITER_EXIT
    assert "writer_died" in done.stdout + done.stderr
