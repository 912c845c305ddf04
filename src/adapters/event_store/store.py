"""The event store as a process opens it: one writer, one reader, and the hint to everybody else that the log grew."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg
import structlog
from msgspec import Struct
from psycopg_pool import AsyncConnectionPool

from .. import postgres
from .codec import EventMapper
from .reader import CHANNEL, RECONNECT_PAUSE_S, Reader
from .wire import Append
from .writer import Outcome, Writer, exit_loudly

NOTIFY_PAUSE_S = 0.002  # notifications of one process are joined over this time; waiting costs readers at most that

log = structlog.get_logger(__name__)


class Notifier:
    """NOTIFY after the commit, from another connection, once for whatever was appended meanwhile.

    Inside the append it would take a lock that all commits of the server share.
    """

    def __init__(self, dsn: str, channel: str = CHANNEL) -> None:
        self._dsn = dsn
        self._channel = channel
        self._latest = 0
        self._grown = asyncio.Event()

    def grew(self, position: int) -> None:
        """The log reaches to `position`: tell the others, soon."""
        self._latest = position
        self._grown.set()

    async def run(self) -> None:
        """Until cancelled. A lost connection loses hints only; readers poll."""
        while True:
            try:
                async with await postgres.connect(self._dsn, prepare=False) as connection:
                    # A notification is a transaction; it need not wait for a flush of its own beside the appends.
                    await connection.execute("SET synchronous_commit = off")
                    while True:
                        await self._grown.wait()
                        self._grown.clear()
                        await connection.execute("SELECT pg_notify(%s, %s)", (self._channel, str(self._latest)))
                        await asyncio.sleep(NOTIFY_PAUSE_S)
            except psycopg.Error as error:
                log.warning("notify_lost", error=str(error))
                await asyncio.sleep(RECONNECT_PAUSE_S)


class EventStore(Struct, frozen=True):
    """What commands append to and everybody reads.

    Attributes:
        mapper: events to stored bytes and back.
        epochs: called with the log's epoch at each (re)connection of the writer.
    """

    writer: Writer
    reader: Reader
    mapper: EventMapper
    pool: AsyncConnectionPool
    epochs: list[Callable[[UUID], None]]

    async def append(self, append: Append, *, epoch: UUID | None = None) -> Outcome:
        """As Writer.append."""
        return await self.writer.append(append, epoch=epoch)


@asynccontextmanager
async def open_event_store(
    dsn: str,
    events: Mapping[str, type[Struct]],
    *,
    direct_dsn: str = "",
    connections_max: int = 8,
    on_death: Callable[[BaseException], None] = exit_loudly,
) -> AsyncIterator[EventStore]:
    """The store at `dsn`, connected; closed with what is queued appended.

    Args:
        dsn: the database, through a pooler or not.
        events: every event class by its tag.
        direct_dsn: the same database without a pooler; `dsn` if there is none between.
        connections_max: for reads.
        on_death: what to do when the writer dies.

    Raises:
        psycopg.OperationalError: the database does not answer.
    """
    notifier = Notifier(direct_dsn or dsn)
    epochs: list[Callable[[UUID], None]] = []

    def tell_epoch(epoch: UUID) -> None:
        for told in epochs:
            told(epoch)

    prepare = not direct_dsn or direct_dsn == dsn
    writer = Writer(
        dsn,
        on_append=notifier.grew,
        on_epoch=tell_epoch,
        on_death=on_death,
        prepare=prepare,
    )
    async with postgres.pool(dsn, connections_max=connections_max, prepare=prepare) as pool:
        await writer.start()
        notifying = asyncio.create_task(notifier.run(), name="event-store-notifier")
        try:
            yield EventStore(writer, Reader(pool, writer.saw_epoch), EventMapper(events), pool, epochs)
        finally:
            await writer.close()
            notifying.cancel()
            await asyncio.wait({notifying})
