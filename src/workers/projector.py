"""The projector: follows the log and keeps the read models up to it, one transaction per page."""

import asyncio

import psycopg
import structlog
from eventsourcing.persistence import MapperDeserialisationError

from ..adapters import metrics, postgres
from ..adapters.event_store.codec import EventMapper, Recorded
from ..adapters.event_store.reader import PAGE_EVENTS_MAX, Tail, read_page
from ..adapters.settings import Settings
from ..domain.events import EVENTS
from ..projections import catalogue
from ..projections.projection import Overtaken, Projector, checkpoint
from .lifecycle import pause

RETRY_PAUSE_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
OVERTAKEN_PAUSE_S = 0.5  # another projector is at work; it needs no second one, only a successor

log = structlog.get_logger(__name__)


async def run(settings: Settings, stopping: asyncio.Event) -> None:
    """Project until `stopping`; a lost connection or a failing page is tried again, and said aloud each time."""
    dsn = settings.database_direct_url or settings.database_url
    projector = catalogue.projector(EventMapper(EVENTS))
    failures = 0
    async with Tail(dsn) as tail:
        while not stopping.is_set():
            try:
                async with await postgres.connect(dsn) as connection:
                    while not stopping.is_set():
                        if not await step(projector, connection):
                            await tail.wait()
                        failures = 0
            except Overtaken:
                await pause(stopping, OVERTAKEN_PAUSE_S)
            except (psycopg.Error, MapperDeserialisationError) as error:
                metrics.PROJECTION_FAILURES.inc()
                log.exception("projection_failed", error=str(error))
                await pause(stopping, RETRY_PAUSE_S[min(failures, len(RETRY_PAUSE_S) - 1)])
                failures += 1


async def step(projector: Projector, connection: psycopg.AsyncConnection) -> int:
    """Project the next page; how many events it had.

    Raises:
        Overtaken: another projector was faster.
        LogHole: the log is damaged, nothing may be projected past the hole.
        psycopg.Error, MapperDeserialisationError: the first event that is left cannot be projected.
    """
    after = await checkpoint(connection)
    events = await read_page(connection, after=after, limit=PAGE_EVENTS_MAX)
    if events:
        await _project(projector, connection, events)
    return len(events)


async def _project(projector: Projector, connection: psycopg.AsyncConnection, events: list[Recorded]) -> None:
    """A page that fails is halved, so that everything before the guilty event is read by then."""
    try:
        await projector.project(connection, events)
    except (psycopg.Error, MapperDeserialisationError):
        if connection.closed:
            raise
        if len(events) == 1:
            guilty = events[0]
            log.exception("event_not_projected", position=guilty.id, stream=str(guilty.stream_id), topic=guilty.topic)
            raise
        middle = len(events) // 2
        await _project(projector, connection, events[:middle])
        await _project(projector, connection, events[middle:])
