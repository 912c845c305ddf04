"""The loop around every handler: on stale states, on hot streams, for repeats, and when the log is another one."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.conftest_log import LogDatabase, assert_whole, log_rows, utc

from sightline.adapters.event_store import writer as writer_module
from sightline.adapters.event_store.wire import Append
from sightline.adapters.event_store.writer import StoreBusy
from sightline.commands import sessions as session_commands
from sightline.commands import transact
from sightline.commands.attempts import LoseLease, StartJob, lose_lease, start_job
from sightline.commands.jobs import CancelJob, SubmitJob, cancel_job, pending_key, submit_job
from sightline.commands.sessions import CloseSession, CreateSession, close_session, create_session
from sightline.commands.transact import Commands, Contended, KeyReused, Receipt
from sightline.commands.transaction import Loaded, Transaction
from sightline.domain import jobs, sessions
from sightline.domain.jobs import JobProgressed
from sightline.domain.kernel import Caller, InvalidState, NotFound, QueueFull
from sightline.domain.sealed import Sealed
from sightline.domain.sessions import AssetAttached, Session

NOON = utc(12)
LOST = Sealed(None, "of the lost log")


def caller(command_id: UUID | None = None, *, digest: str = "") -> Caller:
    return Caller(
        actor="ada",
        now=NOON,
        command_id=command_id or uuid4(),
        correlation_id="c",
        causation_id="c",
        request_digest=digest,
    )


async def created(commands: Commands) -> UUID:
    session_id = uuid4()
    await commands.execute(create_session, CreateSession(session_id=session_id, user_id=None, duration_s=60), caller())
    return session_id


async def submitted(
    commands: Commands, by: Caller | None = None, *, pending_max: int = 1_000, **said: Any
) -> Receipt[Any]:
    command = SubmitJob(job_id=uuid4(), kind="noop", pending_max=pending_max, **said)
    return await commands.execute(submit_job, command, by or caller())


class Attach:
    """A handler without the rule that an asset must be clean; counts its runs."""

    runs = 0

    async def __call__(self, tx: Transaction, session_id: UUID) -> Loaded[Session]:
        self.runs += 1
        session = await tx.load(sessions.AGGREGATE, session_id)
        return tx.say(session, sessions.attach_asset(session.state, asset_id=uuid4(), now=tx.caller.now))


def event_names(receipt: Receipt[Any]) -> list[str]:
    return [type(event).__name__ for event in receipt.events]


# What a caller is told


async def test_a_receipt_says_what_was_decided(commands: Commands) -> None:
    session_id = await created(commands)
    receipt = await commands.execute(close_session, CloseSession(session_id=session_id), caller())
    assert (receipt.stream_id, receipt.version, receipt.position) == (session_id, 2, 2)
    assert receipt.state.status == "closed"
    assert event_names(receipt) == ["SessionClosed"]
    again = await commands.execute(close_session, CloseSession(session_id=session_id), caller())
    assert (again.events, again.version, again.position, again.repeat) == ([], 2, 2, False)


async def test_a_refusal_appends_nothing(commands: Commands, log_database: LogDatabase) -> None:
    session_id = await created(commands)
    await commands.execute(close_session, CloseSession(session_id=session_id), caller())
    with pytest.raises(InvalidState):
        await submitted(commands, session_id=session_id)
    with pytest.raises(NotFound):
        await submitted(commands, session_id=uuid4())
    assert len(log_rows(log_database)) == 2


# Conflicts


async def test_who_decided_on_a_stale_state_decides_again(commands: Commands, elsewhere: Commands) -> None:
    session_id = await created(commands)
    await elsewhere.execute(Attach(), session_id, caller())
    attach = Attach()
    receipt = await commands.execute(attach, session_id, caller())  # its cache ends at version 1
    assert attach.runs == 2
    assert receipt.version == 3
    assert len(receipt.state.asset_ids) == 2


async def test_what_was_only_looked_at_counts_too(
    commands: Commands, elsewhere: Commands, log_database: LogDatabase
) -> None:
    session_id = await created(commands)
    await elsewhere.execute(close_session, CloseSession(session_id=session_id), caller())
    with pytest.raises(InvalidState):
        await submitted(commands, session_id=session_id)  # by its cache the session is active
    assert len(log_rows(log_database)) == 2


async def test_a_refusal_that_rests_on_the_cache_is_decided_again(commands: Commands, elsewhere: Commands) -> None:
    job_id = (await submitted(commands)).stream_id
    until = NOON + timedelta(seconds=10)
    await commands.execute(start_job, StartJob(job_id=job_id, worker="v", lease_until=until), caller())
    lost = LoseLease(job_id=job_id, attempt=1, worker="v", retry_delay_s=0)
    await elsewhere.execute(lose_lease, lost, caller())
    # The cache says that another worker has it.
    receipt = await commands.execute(start_job, StartJob(job_id=job_id, worker="w", lease_until=until), caller())
    assert (receipt.state.attempt, receipt.state.status, receipt.version) == (2, "processing", 4)


async def test_a_no_of_yesterday_becomes_todays_yes(commands: Commands, elsewhere: Commands) -> None:
    job_id = uuid4()
    with pytest.raises(NotFound):
        await commands.execute(cancel_job, CancelJob(job_id=job_id), caller())
    await elsewhere.execute(submit_job, SubmitJob(job_id=job_id, kind="noop", pending_max=5), caller())
    receipt = await commands.execute(cancel_job, CancelJob(job_id=job_id), caller())
    assert receipt.state.status == "cancelled"


async def test_decisions_are_bounded(commands: Commands, elsewhere: Commands, log_database: LogDatabase) -> None:
    session_id = await created(commands)
    runs = 0

    async def always_too_late(tx: Transaction, session_id: UUID) -> Loaded[Session]:
        nonlocal runs
        runs += 1
        session = await tx.load(sessions.AGGREGATE, session_id)
        await elsewhere.execute(Attach(), session_id, caller())
        return tx.say(session, [AssetAttached(at=NOON, asset_id=uuid4())])

    with pytest.raises(Contended):
        await commands.execute(always_too_late, session_id, caller())
    assert runs == transact.DECISIONS_MAX
    assert len(log_rows(log_database)) == 1 + runs


# Hot streams


async def test_a_hot_stream_is_served_in_turn(commands: Commands, log_database: LogDatabase) -> None:
    session_id = await created(commands)
    attach = Attach()
    receipts = await asyncio.gather(*(commands.execute(attach, session_id, caller()) for _ in range(64)))
    assert sorted(receipt.version for receipt in receipts) == list(range(2, 66))
    assert attach.runs <= 64 * 3  # on the cache, in its turn, and once more for whoever came between
    assert_whole(log_rows(log_database))
    assert commands._turns == {}


async def test_without_turns_it_starves(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nobody waits for anybody."""
    session_id = await created(commands)
    monkeypatch.setattr(commands, "in_turn", lambda _: False)
    monkeypatch.setattr(transact, "sorted", lambda _: [], raising=False)  # the turns to take: none
    found = await asyncio.gather(
        *(commands.execute(Attach(), session_id, caller()) for _ in range(64)), return_exceptions=True
    )
    assert any(isinstance(one, Contended) for one in found)


async def test_who_merely_looks_at_a_hot_stream_gets_through(commands: Commands) -> None:
    session_id = await created(commands)
    over = False

    async def keep_writing() -> int:
        written = 0
        while not over:
            await commands.execute(TouchSession(), session_id, caller())
            written += 1
        return written

    writing = [asyncio.create_task(keep_writing()) for _ in range(8)]
    try:
        for _ in range(20):
            await submitted(commands, session_id=session_id)
    finally:
        over = True
        written = await asyncio.gather(*writing)
    assert min(written) > 0


class TouchSession(Attach):
    """Writes without end: the rule of 100 assets is not its."""

    async def __call__(self, tx: Transaction, session_id: UUID) -> Loaded[Session]:
        session = await tx.load(sessions.AGGREGATE, session_id)
        return tx.say(session, [AssetAttached(at=NOON, asset_id=session_id)])


async def test_two_processes_on_one_stream(commands: Commands, elsewhere: Commands, log_database: LogDatabase) -> None:
    """Between processes nobody waits in turn; who is told Contended may come again, and nothing is lost or double."""
    session_id = await created(commands)

    async def attach_until_done(where: Commands) -> None:
        by = caller()
        for _ in range(50):
            try:
                await where.execute(Attach(), session_id, by)
            except Contended:
                continue
            return
        raise AssertionError("never")

    await asyncio.gather(*(attach_until_done(where) for where in (commands, elsewhere) for _ in range(16)))
    rows = log_rows(log_database)
    assert_whole(rows)
    assert len(rows) == 33


async def test_a_cancelled_waiter_gives_its_turn_away(commands: Commands) -> None:
    session_id = await created(commands)
    tasks = [asyncio.create_task(commands.execute(Attach(), session_id, caller())) for _ in range(16)]
    while not commands._turns:  # noqa: ASYNC110  # nobody is told of it
        await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, Receipt) for one in found[1::2])
    assert commands._turns == {}


# Guards


async def test_a_limit_over_many_streams_is_exact(commands: Commands, elsewhere: Commands) -> None:
    places = (commands, elsewhere)
    found = await asyncio.gather(*(submitted(places[n % 2], pending_max=10) for n in range(32)), return_exceptions=True)
    assert sum(isinstance(one, Receipt) for one in found) == 10
    assert {type(one) for one in found} == {Receipt, QueueFull}
    one = next(one for one in found if isinstance(one, Receipt))
    await commands.execute(cancel_job, CancelJob(job_id=one.stream_id), caller())
    await submitted(elsewhere, pending_max=10)
    with pytest.raises(QueueFull):
        await submitted(commands, pending_max=10)
    assert pending_key("noop")


# Repeats


async def test_a_repeated_key_gets_the_first_answer(
    commands: Commands, elsewhere: Commands, log_database: LogDatabase
) -> None:
    key = uuid4()
    first = await submitted(commands, caller(key, digest="d"))
    for where in (commands, elsewhere):  # the second request makes another job id; the receipt knows the first
        again = await submitted(where, caller(key, digest="d"))
        assert (again.stream_id, again.position, again.repeat) == (first.stream_id, first.position, True)
        assert again.state == first.state
        assert again.recorded_at == first.recorded_at
    assert len(log_rows(log_database)) == 1


async def test_five_at_once_are_one(commands: Commands, elsewhere: Commands, log_database: LogDatabase) -> None:
    key = uuid4()
    places = (commands, elsewhere, commands, elsewhere, commands)
    found = await asyncio.gather(*(submitted(where, caller(key, digest="d")) for where in places))
    assert len({receipt.stream_id for receipt in found}) == 1
    assert sorted(receipt.repeat for receipt in found) == [False, True, True, True, True]
    assert len(log_rows(log_database)) == 1


async def test_the_same_key_with_another_request_is_refused(commands: Commands, log_database: LogDatabase) -> None:
    key = uuid4()
    await submitted(commands, caller(key, digest="d"))
    with pytest.raises(KeyReused):
        await submitted(commands, caller(key, digest="other"))
    assert len(log_rows(log_database)) == 1


@pytest.mark.parametrize("digest", ["", "d"])
async def test_granted_before_and_refused_now_is_a_repeat(commands: Commands, elsewhere: Commands, digest: str) -> None:
    """The answer was lost, the session is closed by now, and the same command comes again."""
    session_id = await created(commands)
    by = caller(digest=digest)
    first = await commands.execute(Attach(), session_id, by)
    await commands.execute(close_session, CloseSession(session_id=session_id), caller())
    for where in (commands, elsewhere):
        again = await where.execute(Attach(), session_id, by)
        assert (again.position, again.version, again.repeat) == (first.position, 3, True)
    with pytest.raises(InvalidState):
        await commands.execute(Attach(), session_id, caller(digest=digest))


async def test_a_command_that_had_nothing_to_say_is_remembered(commands: Commands) -> None:
    session_id = await created(commands)
    expire = session_commands.ExpireSession(session_id=session_id)
    by = caller()
    first = await commands.execute(session_commands.expire_session, expire, by)
    again = await commands.execute(session_commands.expire_session, expire, by)
    assert (first.position, first.repeat, again.position, again.repeat) == (1, False, 1, True)


# The store's own refusals


async def test_a_busy_store_is_not_asked_twice(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = await created(commands)
    monkeypatch.setattr(writer_module, "QUEUE_COMMANDS_MAX", 0)
    attach = Attach()
    with pytest.raises(StoreBusy):
        await commands.execute(attach, session_id, caller())
    assert attach.runs == 1


async def test_a_poisoned_neighbour_hurts_nobody(commands: Commands, log_database: LogDatabase) -> None:
    async def poison(tx: Transaction, job_id: UUID) -> Loaded[Any]:
        """Says an event on a stream that it never loaded, under a version that is taken."""
        job = await tx.load(jobs.AGGREGATE, job_id)
        job.version = -1
        return tx.say(job, [JobProgressed(at=NOON, attempt=1, percent=1, message="")])

    good = [submitted(commands) for _ in range(63)]
    found = await asyncio.gather(*good, commands.execute(poison, uuid4(), caller()), return_exceptions=True)
    assert [type(one) for one in found[:63]] == [Receipt] * 63
    assert isinstance(found[63], Contended)  # no stream is at version −1, however often it is decided
    assert len(log_rows(log_database)) == 63


# The log's epoch


def renew_epoch(database: LogDatabase) -> None:
    with database.connect(superuser=True) as superuser:
        superuser.execute("UPDATE log_head SET epoch = gen_random_uuid()")


async def test_a_new_epoch_drops_every_cache(commands: Commands, log_database: LogDatabase) -> None:
    session_id = await created(commands)
    commands.states[session_id] = (Session(status="closed"), 1)  # as it was in a log that was lost
    renew_epoch(log_database)
    attach = Attach()
    await created(commands)  # the first append afterwards finds out
    receipt = await commands.execute(attach, session_id, caller())
    assert receipt.state.status == "active"


async def test_what_was_decided_on_the_old_log_is_decided_again(commands: Commands, log_database: LogDatabase) -> None:
    """The version fits, and means something else: the state that was loaded is another log's."""
    session_id = await created(commands)
    loaded: list[Sealed | None] = []

    async def attach_slowly(tx: Transaction, session_id: UUID) -> Loaded[Session]:
        session = await tx.load(sessions.AGGREGATE, session_id)
        loaded.append(session.state.user_id)
        if len(loaded) == 1:
            renew_epoch(log_database)
            await created(commands)  # somebody else's append: the writer is at the new epoch now
        return tx.say(session, [AssetAttached(at=NOON, asset_id=uuid4())])

    commands.states[session_id] = (Session(status="active", user_id=LOST), 1)
    receipt = await commands.execute(attach_slowly, session_id, caller())
    assert loaded == [LOST, None]
    assert receipt.version == 2


async def test_what_was_being_read_meanwhile_is_not_kept(commands: Commands, log_database: LogDatabase) -> None:
    session_id = await created(commands)
    commands.states.clear()
    page = commands.store.reader.stream

    async def read_and_move(*given: Any, **named: Any) -> Any:
        found = await page(*given, **named)
        renew_epoch(log_database)
        await commands.store.append(nothing())
        return found

    object.__setattr__(commands.store.reader, "stream", read_and_move)
    await commands.state(sessions.AGGREGATE, session_id, read_tail=False)
    assert session_id not in commands.states


def nothing() -> Append:
    return Append(command_id=uuid4(), expectations=[], events=[], metadata=b"{}")


async def test_caches_are_bounded(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transact, "CACHED_STATES_MAX", 3)
    ids = [await created(commands) for _ in range(5)]
    assert [*commands.states] == ids[2:]


async def test_an_id_that_is_taken_is_loaded_after_all(commands: Commands, elsewhere: Commands) -> None:
    """create() expects absence without a read; where that is wrong the stream is read."""
    session_id = await created(elsewhere)

    async def create_blindly(tx: Transaction, session_id: UUID) -> Loaded[Session]:
        session = await tx.create(sessions.AGGREGATE, session_id)
        return tx.say(session, sessions.create(session.state, owner="ada", now=tx.caller.now))

    receipt = await commands.execute(create_blindly, session_id, caller())
    assert (receipt.events, receipt.version) == ([], 1)
    fresh = await commands.execute(create_blindly, uuid4(), caller())
    assert event_names(fresh) == ["SessionCreated"]
