"""The projector: follows the log and keeps the read models up to it, one transaction per page."""

import asyncio

import psycopg
import structlog

from ..adapters import metrics, postgres
from ..adapters.event_store.codec import EventMapper, Recorded
from ..adapters.event_store.reader import PAGE_EVENTS_MAX, Tail, read_page
from ..adapters.settings import Settings
from ..domain.events import EVENTS
from ..projections import catalogue
from ..projections.projection import checkpoint
from ..projections.projector import Overtaken, Projector
from ..projections.quarantine import is_poison
from ..projections.writing import collecting_rarely
from .lifecycle import pause

RETRY_PAUSE_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
OVERTAKEN_PAUSE_S = 0.5  # another projector is at work; it needs no second one, only a successor

# A page is read whole and folded in memory. Far behind, a large one saves round trips; its bytes bound it.
CATCH_UP_EVENTS_MAX = 10_000
PAGE_BYTES_WANTED = 8 * 1024 * 1024

log = structlog.get_logger(__name__)


async def run(settings: Settings, stopping: asyncio.Event) -> None:
    """Project until `stopping`; a lost connection or a failing page is tried again, and said aloud each time."""
    dsn = settings.database_direct_url or settings.database_url
    projector = catalogue.projector(EventMapper(EVENTS))
    failures = 0
    with collecting_rarely():
        async with Tail(dsn) as tail:
            while not stopping.is_set():
                try:
                    async with await postgres.connect(dsn) as writer, await postgres.connect(dsn) as reader:
                        follower = Follower(projector, writer, reader)
                        try:
                            while not stopping.is_set():
                                if not await follower.step():
                                    await tail.wait()
                                failures = 0
                        finally:
                            await follower.close()
                except Overtaken:
                    await pause(stopping, OVERTAKEN_PAUSE_S)
                except psycopg.Error as error:
                    metrics.PROJECTION_FAILURES.inc()
                    log.exception("projection_failed", error=str(error))
                    await pause(stopping, RETRY_PAUSE_S[min(failures, len(RETRY_PAUSE_S) - 1)])
                    failures += 1


class Follower:
    """Projects page after page; while one is written, the next one is read.

    Args:
        writer: for the transactions.
        reader: for the pages; another connection, since one does one thing at a time.
    """

    def __init__(self, projector: Projector, writer: psycopg.AsyncConnection, reader: psycopg.AsyncConnection) -> None:
        self._projector = projector
        self._writer = writer
        self._reader = reader
        self._limit = PAGE_EVENTS_MAX
        self._ahead: asyncio.Task[list[Recorded]] | None = None

    async def step(self) -> int:
        """Project the next page; how many events it had.

        Raises:
            Overtaken: another projector was faster.
            LogHole: the log is damaged, nothing may be projected past the hole.
            psycopg.Error: the database failed.
        """
        events = await self._next(await checkpoint(self._writer))
        if events:
            if len(events) == self._limit:
                self._limit = _limit(events)
                ahead = read_page(self._reader, after=events[-1].id, limit=self._limit)
                self._ahead = asyncio.create_task(ahead, name="read-ahead")
            await _project(self._projector, self._writer, events)
        return len(events)

    async def _next(self, after: int) -> list[Recorded]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            events = await ahead
            if events and events[0].id == after + 1:
                return events
        return await read_page(self._reader, after=after, limit=self._limit)

    async def close(self) -> None:
        """Leave nothing running."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
            self._ahead = None


def _limit(events: list[Recorded]) -> int:
    """How many events the next page may have, if they are as large as these."""
    size_bytes = sum(len(recorded.state) for recorded in events) // len(events) + 1
    return max(1, min(CATCH_UP_EVENTS_MAX, PAGE_BYTES_WANTED // size_bytes))


async def step(projector: Projector, connection: psycopg.AsyncConnection) -> int:
    """Project the next page on one connection; how many events it had. Raises as Follower.step does."""
    events = await read_page(connection, after=await checkpoint(connection), limit=PAGE_EVENTS_MAX)
    if events:
        await _project(projector, connection, events)
    return len(events)


async def _project(projector: Projector, connection: psycopg.AsyncConnection, events: list[Recorded]) -> None:
    """A page with rows that the database refuses is halved until the guilty event stands alone; its stream is set
    aside. Whatever else fails is no event's fault.
    """
    try:
        await projector.project(connection, events)
    except psycopg.Error as error:
        if connection.closed or not is_poison(error):
            raise
        if len(events) == 1:
            await projector.set_aside(connection, events[0], error)
            return
        middle = len(events) // 2
        await _project(projector, connection, events[:middle])
        await _project(projector, connection, events[middle:])
