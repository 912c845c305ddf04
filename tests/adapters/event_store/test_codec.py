"""Stored events of earlier generations come back as today's; what is of no generation is refused with its place."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import MapperDeserialisationError, StoredEvent
from tests.conftest_log import LogDatabase

from sightline.adapters.event_store.codec import EventMapper, Fact
from sightline.adapters.event_store.reader import EventFilter
from sightline.adapters.event_store.store import EventStore
from sightline.adapters.event_store.wire import Append, Expectation
from sightline.domain.events import EVENTS
from sightline.domain.sealed import Sealed
from sightline.domain.sessions import SessionCreated

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
OLD = (
    b'{"type":"session.created","at":"2026-03-01T12:00:00Z","owner":"local","user_id":%s,'
    b'"expires_at":"2026-03-01T12:00:00Z"}'
)
MAPPER = EventMapper(EVENTS)


def stored(topic: str, state: bytes) -> StoredEvent:
    return StoredEvent(originator_id=UUID(int=1), originator_version=1, topic=topic, state=state)


@pytest.mark.parametrize(("user_id", "sealed"), [(b'"ada"', Sealed(None, "ada")), (b"null", None)])
def test_an_earlier_generation_is_read_as_the_last(user_id: bytes, sealed: Sealed | None) -> None:
    event = MAPPER.event(stored("session.created", OLD % user_id))
    assert event == SessionCreated(at=NOON, owner="local", user_id=sealed, expires_at=NOON)


def test_what_is_said_now_is_stored_under_the_last_tag_and_read_without_a_detour() -> None:
    event = SessionCreated(at=NOON, owner="local", user_id=Sealed(UUID(int=2), "AAAA"), expires_at=NOON)
    kept = MAPPER.to_stored_event(Fact(UUID(int=1), 1, event))
    assert kept.topic == "session.created.2"
    assert EventMapper(EVENTS, {}).event(kept) == event


@pytest.mark.parametrize(
    ("topic", "state"),
    [
        ("session.created", b"{}"),
        ("session.created", b"[1]"),
        ("session.created", b"{"),
        ("session.created", OLD % b"7"),
        ("session.created", OLD.replace(b'"owner":"local",', b"") % b"null"),
        ("session.created.2", OLD % b"null"),
        ("session.created.3", OLD % b"null"),
        ("session.painted", b"{}"),
    ],
)
def test_what_fits_no_generation_is_refused(topic: str, state: bytes) -> None:
    with pytest.raises(MapperDeserialisationError, match=topic):
        MAPPER.event(stored(topic, state))


async def test_a_filter_by_name_finds_every_generation(store: EventStore, log_database: LogDatabase) -> None:
    for topic in ("session.created", "session.created.2", "session.closed"):
        await store.append(
            Append(
                command_id=uuid4(),
                expectations=[Expectation(stream := uuid4(), 0, writes=True)],
                events=[StoredEvent(originator_id=stream, originator_version=1, topic=topic, state=b"{}")],
                metadata=b"{}",
            )
        )

    async def found(topic: str) -> list[str]:
        return [one.topic for one in await store.reader.search(EventFilter(topic=topic), after=0, limit=9)]

    assert await found("session.created") == ["session.created", "session.created.2"]
    assert await found("session.created.2") == ["session.created.2"]
    assert await found("session.") == ["session.created", "session.created.2", "session.closed"]
    assert await found("session") == []
