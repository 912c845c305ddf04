"""The library face, beyond what the library's own test cases ask of it."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing import persistence
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.utils import Environment
from tests.adapters.event_store.proxy import Proxy
from tests.conftest_library import MODULE, environment
from tests.conftest_log import ROOT, LogDatabase
from tests.conftest_parts import wait_for

from sightline.adapters.event_store import library

STOCK = "eventsourcing.postgres"
GATED = 9
GATE = f"""
CREATE FUNCTION public.held() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
CREATE TRIGGER held AFTER INSERT ON loose_events FOR EACH ROW
    WHEN (NEW.originator_version = {GATED}) EXECUTE FUNCTION public.held()
"""


@pytest.fixture
def factory(variables: dict[str, str]) -> Iterator[library.Factory]:
    with closing(library.Factory(Environment("ours", variables))) as made:
        yield made


@pytest.fixture
def recorder(factory: library.Factory) -> library.ProcessRecorder:
    made = factory.process_recorder()
    assert isinstance(made, library.ProcessRecorder)
    return made


def stored(stream: UUID, *versions: int, state: bytes = b"\x00\xffstate") -> list[StoredEvent]:
    return [StoredEvent(stream, version, "topic", state) for version in versions]


def test_versions_start_anywhere_and_skip_but_never_repeat(recorder: library.ProcessRecorder) -> None:
    stream = uuid4()
    assert recorder.insert_events(stored(stream, 0, 1, 7)) == [1, 2, 3]
    assert recorder.insert_events(stored(stream, 5)) == [4]
    with pytest.raises(persistence.IntegrityError):
        recorder.insert_events(stored(stream, 8, 7))
    assert [event.originator_version for event in recorder.select_events(stream)] == [0, 1, 5, 7]
    assert recorder.select_events(stream, limit=1)[0].state == b"\x00\xffstate"


def test_thousands_of_events_in_one_call(recorder: library.ProcessRecorder) -> None:
    stream = uuid4()
    assert recorder.insert_events(stored(stream, *range(20_000))) == list(range(1, 20_001))
    assert recorder.max_notification_id() == 20_000


def test_a_refused_call_leaves_neither_events_nor_tracking(recorder: library.ProcessRecorder) -> None:
    stream = uuid4()
    recorder.insert_events(stored(stream, 1), tracking=Tracking("upstream", 5))
    for events, notification in ((stored(stream, 1), 6), (stored(stream, 2), 5), (stored(stream, 2), 4)):
        with pytest.raises(persistence.IntegrityError):
            recorder.insert_events(events, tracking=Tracking("upstream", notification))
    assert recorder.max_tracking_id("upstream") == 5
    assert recorder.max_notification_id() == 1
    assert recorder.insert_events(stored(stream, 2), tracking=Tracking("upstream", 6)) == [2]


def test_a_bad_call_leaves_its_neighbours_be(recorder: library.ProcessRecorder) -> None:
    """Six threads at once, so that calls share a statement: every third conflicts, every fifth cannot be stored."""
    taken = stored(uuid4(), 1)
    recorder.insert_events(taken)

    def insert(number: int) -> Sequence[int] | Exception | None:
        events = [*stored(uuid4(), 1), *(taken if number % 3 == 0 else ())]
        if number % 5 == 0:
            events.append(StoredEvent(uuid4(), 1, "nul\0", b""))
        try:
            return recorder.insert_events(events)
        except (persistence.IntegrityError, persistence.DataError) as error:
            return error

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(insert, range(300)))
    for number, answer in enumerate(answers):
        kind = persistence.DataError if number % 5 == 0 else persistence.IntegrityError if number % 3 == 0 else list
        assert isinstance(answer, kind), (number, answer)
    positions = [one for answer in answers if isinstance(answer, list) for one in answer]
    assert sorted(positions) == list(range(2, 2 + 160))
    assert recorder.max_notification_id() == 161


@contextmanager
def behind(proxy: Proxy, variables: dict[str, str], module: str) -> Iterator[persistence.ProcessRecorder]:
    """A recorder on one connection through the proxy, used once so that the next answer is that of an append."""
    variables = {**variables, **environment(proxy.dsn), "POSTGRES_POOL_SIZE": "1", "POSTGRES_MAX_OVERFLOW": "0"}
    variables |= {"PERSISTENCE_MODULE": module, "POSTGRES_PASSWORD": "none"}
    made: persistence.InfrastructureFactory[Any] = persistence.InfrastructureFactory.construct(
        Environment("ours", variables)
    )
    with closing(made):
        recorder = made.process_recorder()
        recorder.insert_events(stored(uuid4(), 1))
        yield recorder


async def test_a_lost_answer_is_no_conflict(
    library_database: LogDatabase, variables: dict[str, str], tmp_path: Path
) -> None:
    def append(proxy: Proxy) -> None:
        with behind(proxy, variables, MODULE) as recorder:
            positions = itertools.count(2)
            for notification in range(1, 11):
                proxy.lose_next_answer()
                events = stored(uuid4(), *range(notification % 3))  # none, a lone one, or two
                expected = [next(positions) for _ in events] or None
                assert recorder.insert_events(events, tracking=Tracking("upstream", notification)) == expected
                assert recorder.max_tracking_id("upstream") == notification
            assert recorder.max_notification_id() == next(positions) - 1

    async with Proxy(library_database.dsn, tmp_path) as proxy:
        await asyncio.to_thread(append, proxy)
        assert proxy.answers_lost == 10


async def test_their_recorder_calls_it_a_conflict(
    library_database: LogDatabase, variables: dict[str, str], tmp_path: Path
) -> None:
    """The control: events sent again under no name."""

    def append(proxy: Proxy) -> None:
        with behind(proxy, {**variables, "POSTGRES_ENABLE_DB_FUNCTIONS": "y"}, STOCK) as recorder:
            proxy.lose_next_answer()
            with pytest.raises(persistence.IntegrityError):
                recorder.insert_events(stored(uuid4(), 1))

    async with Proxy(library_database.dsn, tmp_path) as proxy:
        await asyncio.to_thread(append, proxy)


def tail(recorder: persistence.ApplicationRecorder, events: int) -> list[persistence.Notification]:
    """What a reader sees that takes whatever lies behind what it has seen, until it has seen that many or the last."""
    seen: list[persistence.Notification] = []
    deadline = time.monotonic() + 300
    while len(seen) < events and time.monotonic() < deadline:
        after = seen[-1].id if seen else 0
        seen += recorder.select_notifications(after, 500, inclusive_of_start=False)
        if seen and seen[-1].id >= events:
            break
    return seen


def beside_writers(recorder: persistence.ApplicationRecorder, calls: int) -> list[persistence.Notification]:
    """What it sees while six threads append calls of 1 to 20 events."""

    def write(writer: int) -> int:
        sizes = [1 + (writer + call) % 20 for call in range(calls)]
        for size in sizes:
            recorder.insert_events(stored(uuid4(), *range(size)))
        return sum(sizes)

    total = sum(1 + (writer + call) % 20 for writer in range(6) for call in range(calls))
    with ThreadPoolExecutor(7) as threads:
        reading = threads.submit(tail, recorder, total)
        assert sum(threads.map(write, range(6))) == total
        return reading.result()


def test_a_tailing_reader_beside_6_writers_sees_exactly_the_table(recorder: library.ProcessRecorder) -> None:
    seen = beside_writers(recorder, 250)
    assert [one.id for one in seen] == list(range(1, len(seen) + 1))
    table = recorder.log.execute(
        b"SELECT stream_id, version, topic, data, position FROM ours.events ORDER BY recorded_at, position"
    )
    assert seen == [persistence.Notification(*row) for row in table]
    assert len(table) > 15_000


def test_beside_their_function_mode_it_skips(variables: dict[str, str], library_database: LogDatabase) -> None:
    """The control: positions from a sequence, with no lock."""
    more = {"PERSISTENCE_MODULE": STOCK, "POSTGRES_ENABLE_DB_FUNCTIONS": "y", "POSTGRES_PASSWORD": "none"}
    env = Environment("loose", {**variables, **more})
    made: persistence.InfrastructureFactory[Any] = persistence.InfrastructureFactory.construct(env)
    with closing(made), library_database.connect(superuser=True) as gate, ThreadPoolExecutor(1) as thread:
        recorder = made.application_recorder()
        gate.execute(GATE)
        gate.execute("SELECT pg_advisory_lock(1)")
        slow = thread.submit(recorder.insert_events, stored(uuid4(), GATED))  # it has its position, and is held there
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"
        wait_for(lambda: gate.execute(waiting).fetchone() == (1,))
        recorder.insert_events(stored(uuid4(), 1))
        seen = recorder.select_notifications(0, 500, inclusive_of_start=False)
        gate.execute("SELECT pg_advisory_unlock(1)")
        slow.result()
        seen = [*seen, *recorder.select_notifications(seen[-1].id, 500, inclusive_of_start=False)]
        assert ([one.id for one in seen], recorder.max_notification_id()) == ([2], 2)


def test_a_subscription_outlives_its_connections(
    recorder: library.ProcessRecorder, library_database: LogDatabase
) -> None:
    with recorder.subscribe() as subscription:
        for position in range(1, 4):
            with library_database.connect(superuser=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'sightline-library%' AND datname = current_database()"
                )
            assert recorder.insert_events(stored(uuid4(), 1)) == [position]
            assert next(subscription).id == position


def test_a_hole_is_raised(recorder: library.ProcessRecorder, library_database: LogDatabase) -> None:
    recorder.insert_events(stored(uuid4(), 1, 2, 3))
    with library_database.connect() as connection:
        with pytest.raises(psycopg.Error, match="append-only"):
            connection.execute("DELETE FROM ours.events WHERE position = 2")
        connection.execute("ALTER TABLE ours.events DISABLE TRIGGER append_only")
        connection.execute("DELETE FROM ours.events WHERE position = 2")
    with pytest.raises(persistence.InternalError):
        recorder.select_notifications(1, 10)


def test_a_log_is_copied_from_their_recorder(recorder: library.ProcessRecorder, variables: dict[str, str]) -> None:
    page = ROOT / "docs/how-to/move-an-eventsourcing-application.md"
    (source,) = [block for block in page.read_text().split("```python\n") if "def copy" in block]
    scope: dict[str, Any] = {}
    exec(source.split("```")[0], scope)  # the page's own words
    more = {"PERSISTENCE_MODULE": STOCK, "POSTGRES_PASSWORD": "none", "POSTGRES_SCHEMA": "public"}
    made: persistence.InfrastructureFactory[Any] = persistence.InfrastructureFactory.construct(
        Environment("copied", {**variables, **more})
    )
    with closing(made):
        old = made.application_recorder()
        stream = uuid4()
        for version in range(1_100):
            if version == 600:
                with pytest.raises(persistence.IntegrityError):  # leaves a gap in their positions
                    old.insert_events(stored(stream, 1))
            old.insert_events(stored(stream, version))
        scope["copy"](old, recorder)
        assert recorder.select_events(stream) == old.select_events(stream)
    assert recorder.max_notification_id() == 1_100


def test_processes_that_start_together_make_one_log(variables: dict[str, str]) -> None:
    def start(number: int) -> Sequence[int] | None:
        with closing(library.Factory(Environment("ours", variables))) as made:
            return made.application_recorder().insert_events(stored(uuid4(), number))

    with ThreadPoolExecutor(8) as threads:
        assert sorted(itertools.chain.from_iterable(filter(None, threads.map(start, range(8))))) == list(range(1, 9))


def test_a_schema_belongs_to_one_application(recorder: library.ProcessRecorder, variables: dict[str, str]) -> None:
    other = library.Factory(Environment("other", {**variables, "POSTGRES_SCHEMA": "ours"}))
    with closing(other), pytest.raises(persistence.ProgrammingError, match="is the log of ours"):
        other.application_recorder()


def test_a_newer_release_replaces_the_functions(
    factory: library.Factory, recorder: library.ProcessRecorder, library_database: LogDatabase
) -> None:
    recorder.insert_events(stored(uuid4(), 1))
    with library_database.connect() as connection:
        connection.execute("UPDATE ours.face SET functions = 'older'")
        connection.execute("DROP FUNCTION ours.library_append")
    assert factory.application_recorder().insert_events(stored(uuid4(), 1)) == [2]


@pytest.mark.parametrize("name", ["POSTGRES_DBNAME", "POSTGRES_HOST", "POSTGRES_USER"])
def test_a_missing_setting_is_named(variables: dict[str, str], name: str) -> None:
    del variables[name]
    with pytest.raises(OSError, match=name):
        library.Factory(Environment("ours", variables))


@pytest.mark.parametrize("setting", ["POSTGRES_POOL_SIZE", "POSTGRES_LOCK_TIMEOUT", "ORIGINATOR_ID_TYPE"])
def test_a_senseless_setting_is_named(variables: dict[str, str], setting: str) -> None:
    with pytest.raises(OSError, match=setting):
        library.Factory(Environment("ours", {**variables, setting: "many"}))


# An ordinary application with a projection, as the how-to page has them.


class Account(Aggregate):
    class Deposited(Aggregate.Event):
        amount: int

    balance = 0

    @event(Deposited)
    def deposit(self, amount: int) -> None:
        self.balance += amount


class Bank(Application[UUID]):
    snapshotting_intervals: ClassVar[dict[type, int]] = {Account: 3}

    def deposit(self, account_id: UUID, amount: int) -> int:
        account: Account = self.repository.get(account_id)
        account.deposit(amount)
        return self.save(account)[-1].notification.id


class Totals(library.TrackingRecorder):
    def create_table(self) -> None:
        with self.log.connection() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS total (amount bigint NOT NULL)")

    def add(self, amount: int, tracking: Tracking) -> None:
        with self.tracked(tracking) as connection:
            connection.execute("INSERT INTO total VALUES (%s)", (amount,))

    def total(self) -> int:
        return int(self.log.execute(b"SELECT coalesce(sum(amount), 0)::bigint FROM total")[0][0])


class TotalsProjection(Projection[Totals]):
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        if isinstance(domain_event, Account.Deposited):
            self.view.add(domain_event.amount, tracking)
        else:
            self.view.insert_tracking(tracking)


def test_an_application_its_log_and_a_projection(variables: dict[str, str]) -> None:
    with ProjectionRunner(
        application_class=Bank, projection_class=TotalsProjection, view_class=Totals, env=variables
    ) as runner:
        account = Account()
        runner.app.save(account)
        last = [runner.app.deposit(account.id, amount) for amount in range(1, 11)][-1]
        assert last == 11
        runner.wait(last, timeout=60)
        assert runner.projection.view.total() == 55
        restored: Account = runner.app.repository.get(account.id)
        assert restored.balance == 55
        assert runner.app.snapshots is not None
        assert len(list(runner.app.snapshots.get(account.id))) == 3
        assert [item.id for item in runner.app.notification_log["1,10"].items] == list(range(1, 11))
        with pytest.raises(persistence.IntegrityError):
            runner.projection.view.add(1, Tracking("Bank", last))
        assert runner.projection.view.total() == 55
