"""Reads of the log: streams, pages, filters, and what a damaged log looks like."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import MapperDeserialisationError, StoredEvent
from msgspec.structs import replace
from tests.conftest_log import EVENT_DATA, METADATA, LogDatabase, command, event, utc

from sightline.adapters.event_store.codec import EventMapper, Fact, JsonTranscoder, NotStorable
from sightline.adapters.event_store.reader import EventFilter, LogHole, Tail, subscribe
from sightline.adapters.event_store.store import EventStore
from sightline.adapters.event_store.wire import Append
from sightline.adapters.event_store.writer import Appended
from sightline.domain.events import EVENTS
from sightline.domain.kernel import Caller
from sightline.domain.sessions import SessionClosed

A, B = UUID(int=1), UUID(int=2)


async def say(store: EventStore, one: Append) -> Appended:
    outcome = await store.append(one)
    assert isinstance(outcome, Appended)
    return outcome


async def test_a_stream_in_order_and_from_anywhere(store: EventStore) -> None:
    await say(store, command((A, 0), (B, 0), events_each=2))
    await say(store, command((A, 2), events_each=2))
    versions = [one.originator_version for one in await store.reader.stream(A)]
    assert versions == [1, 2, 3, 4]
    assert [one.position for one in await store.reader.stream(A)] == [1, 2, 5, 6]
    assert [one.originator_version for one in await store.reader.stream(A, after=1, limit=2)] == [2, 3]
    assert [one.originator_version for one in await store.reader.stream(A, up_to_position=5)] == [1, 2, 3]
    assert await store.reader.stream(uuid4()) == []


async def test_what_was_stored_comes_back_byte_for_byte(store: EventStore) -> None:
    data = (
        b'{"at": "2026-01-01T00:00:00Z",  "by":"\xc3\xa9\\ud83d\\ude00 \\\\u0000", "type":"session.closed", "n": 1e400}'
    )
    outcome = await say(store, command((A, 0), data=data))
    (found,) = await store.reader.stream(A)
    assert found.state == data
    assert found.metadata == METADATA
    assert (found.stream_id, found.originator_version, found.topic) == (A, 1, "session.closed")
    assert found.recorded_at == outcome.recorded_at
    assert found.recorded_at.utcoffset() == timedelta(0)
    assert found.envelope.actor == "ada"


async def test_pages_and_the_head(store: EventStore) -> None:
    assert (await store.reader.head()).position == 0
    assert await store.reader.page(after=0) == []
    await say(store, command((A, 0), events_each=25))
    assert (await store.reader.head()) == replace(await store.reader.head(), position=25, epoch=store.writer.epoch)
    positions: list[int] = []
    while page := await store.reader.page(after=len(positions), limit=10):
        assert len(page) <= 10
        positions += [one.position for one in page]
    assert positions == list(range(1, 26))


async def test_a_receipt_is_found_by_its_command(store: EventStore) -> None:
    one = command((A, 0), events_each=2, result=b'{"ref":1}')
    await say(store, one)
    assert await store.reader.receipt(one.command_id) == (2, b'{"ref":1}')
    assert await store.reader.receipt(uuid4()) is None


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [
        (EventFilter(), [1, 2, 3, 4]),
        (EventFilter(topic="job.started"), [3]),
        (EventFilter(topic="job."), [2, 3]),
        (EventFilter(topic="job"), []),
        (EventFilter(topic="session.%"), []),
        (EventFilter(stream_id=B), [4]),
        (EventFilter(actor="bob"), [2, 3]),
        (EventFilter(actor="bob", stream_id=B), []),
        (EventFilter(correlation_id="c"), [1, 4]),
        (EventFilter(since=utc(0), until=utc(1)), []),
        (EventFilter(since=utc(0)), [1, 2, 3, 4]),
        (EventFilter(until=utc(0)), []),
    ],
)
async def test_a_filter(store: EventStore, wanted: EventFilter, positions: list[int]) -> None:
    bob = METADATA.replace(b'"ada"', b'"bob"').replace(b'"correlation_id":"c"', b'"correlation_id":"d"')
    jobs = [
        replace_topic(A, 2, "job.submitted"),
        replace_topic(A, 3, "job.started"),
    ]
    await say(store, command((A, 0)))
    await say(store, Append(command_id=uuid4(), expectations=[], events=jobs, metadata=bob))
    await say(store, command((B, 0)))
    assert [one.position for one in await store.reader.search(wanted, after=0, limit=10)] == positions
    assert [one.position for one in await store.reader.search(wanted, after=2, limit=1)] == [
        n for n in positions if n > 2
    ][:1]


def replace_topic(stream: UUID, version: int, topic: str) -> StoredEvent:
    stored = event(stream, version)
    return StoredEvent(stored.originator_id, stored.originator_version, topic, stored.state)


async def test_the_position_at_a_moment(store: EventStore) -> None:
    first = await say(store, command((A, 0)))
    second = await say(store, command((A, 1), events_each=3))
    assert await store.reader.position_at(utc(0)) == 0
    assert await store.reader.position_at(first.recorded_at) == 1
    assert await store.reader.position_at(second.recorded_at - timedelta(microseconds=1)) == 1
    assert await store.reader.position_at(second.recorded_at + timedelta(days=1)) == 4


# A damaged log


def lose(database: LogDatabase, *positions: int) -> None:
    """What only a superuser who first takes the trigger away can do."""
    with database.connect(superuser=True) as superuser:
        superuser.execute("ALTER TABLE events DISABLE TRIGGER append_only")
        superuser.execute("DELETE FROM events WHERE position = ANY (%s)", [list(positions)])


@pytest.mark.parametrize("lost", [(1,), (2,), (9,), (3, 4, 5), tuple(range(1, 10))])
async def test_a_hole_is_raised_and_never_read_past(
    store: EventStore, log_database: LogDatabase, lost: tuple[int, ...]
) -> None:
    await say(store, command((A, 0), events_each=10))
    assert len(await store.reader.page(after=0)) == 10
    lose(log_database, *lost)
    with pytest.raises(LogHole, match=f"position {lost[0]} is missing"):
        await store.reader.page(after=0)
    async with Tail(log_database.dsn) as tail:
        with pytest.raises(LogHole):
            await anext(subscribe(store.reader, tail, after=0))


async def test_a_hole_beyond_the_page_is_for_the_next_one(store: EventStore, log_database: LogDatabase) -> None:
    await say(store, command((A, 0), events_each=10))
    lose(log_database, 5)
    assert len(await store.reader.page(after=0, limit=4)) == 4
    with pytest.raises(LogHole):
        await store.reader.page(after=4, limit=4)


async def test_a_subscription_begins_with_what_is_there_and_goes_on(
    store: EventStore, log_database: LogDatabase
) -> None:
    await say(store, command((A, 0), events_each=3))
    async with Tail(log_database.dsn) as tail, asyncio.timeout(60):
        pages = subscribe(store.reader, tail, after=1)
        assert [one.position for one in await anext(pages)] == [2, 3]
        following = asyncio.ensure_future(anext(pages))
        await say(store, command((A, 3)))
        assert [one.position for one in await following] == [4]


# Bytes


def test_an_event_goes_in_and_out() -> None:
    mapper = EventMapper(EVENTS)
    fact = Fact(A, 7, SessionClosed(at=utc(3), by="ada"))
    stored = mapper.to_stored_event(fact)
    assert (stored.topic, stored.state) == (
        "session.closed",
        b'{"type":"session.closed","at":"2026-01-01T03:00:00Z","by":"ada"}',
    )
    assert mapper.to_domain_event(stored) == fact


@pytest.mark.parametrize(
    ("topic", "data"), [("session.unheard", EVENT_DATA), ("session.closed", b'{"type":"session.closed"}')]
)
def test_what_cannot_be_read_says_where_it_is(topic: str, data: bytes) -> None:
    mapper = EventMapper(EVENTS)
    stored = type(event(A, 1))(A, 1, topic, data)
    with pytest.raises(MapperDeserialisationError, match=topic):
        mapper.event(stored)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\\\0", "\ud800", "\udfff tail", "\\\\\0"])
def test_what_the_database_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(NotStorable):
        JsonTranscoder().encode({"by": text})
    with pytest.raises(NotStorable):
        JsonTranscoder().encode({text: 1})
    caller = Caller(actor=text, now=utc(1), command_id=A, correlation_id="c", causation_id="c")
    with pytest.raises(NotStorable):
        EventMapper(EVENTS).metadata(caller)


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "u0000", "\U0001f600", "\x01", "é"])
async def test_what_only_looks_like_it_is_kept(store: EventStore, log_database: LogDatabase, text: str) -> None:
    await say(store, command((A, 0), data=JsonTranscoder().encode({"by": text})))
    with log_database.connect() as connection:
        assert connection.execute("SELECT data ->> 'by' FROM events").fetchone() == (text,)
