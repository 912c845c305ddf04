"""Two processes on one log: what one caches, the other changes."""

from collections.abc import AsyncIterator

import pytest
from tests.conftest_log import LogDatabase

from sightline.adapters.event_store.store import EventStore, open_event_store
from sightline.commands.transact import Commands
from sightline.domain.events import EVENTS


@pytest.fixture
def commands(store: EventStore) -> Commands:
    return Commands(store)


@pytest.fixture
async def elsewhere(log_database: LogDatabase) -> AsyncIterator[Commands]:
    """Another process, as far as the log can tell: a writer and caches of its own."""
    deaths: list[BaseException] = []
    async with open_event_store(log_database.dsn, EVENTS, on_death=deaths.append) as store:
        yield Commands(store)
    assert deaths == []
