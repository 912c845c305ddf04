"""What a read model is, and how it is asked: each answer with the position that it reflects.

All read models share one checkpoint, which moves in the same transaction as they do, and therefore always reflect the
same position.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
import psycopg
import structlog
from msgspec import Struct
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from ..adapters.event_store.codec import Recorded
from ..adapters.event_store.reader import Tail
from ..domain.kernel import Rejection

CHECKPOINT = "read_models"
CHANNEL = "sightline_read_models"
WAIT_MAX_S = 10.0
WAITERS_MAX = 1_000

Row = TypeVar("Row", bound=Struct)

log = structlog.get_logger(__name__)


class NotYetProjected(Rejection):
    """The read models did not reach the position in time."""

    code = "not_yet_projected"


class TooManyWaiters(Rejection):
    code = "too_many_waiters"


class ReadModel(Struct, Generic[Row], frozen=True):
    """One table that keeps a row per stream.

    Attributes:
        name: of the view that queries use; the table behind it is `<name>_v<version>`.
        kinds: whose events it folds.
        row: its columns; the first field is the key, and equals the stream's id.
        apply: row before (or none), event, and where it stands in the log, to row after.
        history: whether each row that apply ever made is kept as well, in `<name>_history_v1`: JSON, whatever the
            version of the row.
    """

    name: str
    version: int
    kinds: frozenset[str]
    row: type[Row]
    apply: "Callable[[Row | None, Any, Recorded], Row]"
    history: bool = False

    @property
    def table(self) -> str:
        return f"{self.name}_v{self.version}"

    @property
    def history_table(self) -> str:
        return f"{self.name}_history_v1"

    @property
    def key(self) -> tuple[str, ...]:
        return self.columns[:1]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.row.__struct_fields__


class EdgeModel(Struct, Generic[Row], frozen=True):
    """One table that only grows: each event adds rows, which say themselves what they are keyed by."""

    name: str
    version: int
    row: type[Row]
    key: tuple[str, ...]
    edges: "Callable[[Any, Recorded], Iterable[Row]]"

    @property
    def table(self) -> str:
        return f"{self.name}_v{self.version}"

    @property
    def columns(self) -> tuple[str, ...]:
        return self.row.__struct_fields__


AnyModel = ReadModel[Any] | EdgeModel[Any]


async def checkpoint(connection: psycopg.AsyncConnection) -> int:
    """The position that every read model reflects."""
    cursor = await connection.execute("SELECT position FROM projection_checkpoints WHERE name = %s", (CHECKPOINT,))
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


class Page(Struct, Generic[Row], frozen=True):
    """Rows, and the position that they reflect at least."""

    rows: list[Row]
    position: int


class ReadModels:
    """Queries of one process: each answer with the position that it reflects, and waiting for one that it must.

    Args:
        on_epoch: told the epoch of the log, wherever it is read.
    """

    def __init__(
        self, pool: AsyncConnectionPool, tail: Tail, on_epoch: Callable[[UUID], None] = lambda _: None
    ) -> None:
        self._pool = pool
        self._tail = tail
        self._on_epoch = on_epoch
        self._epoch: UUID | None = None
        self._waiters: dict[asyncio.Future[None], int] = {}  # and the position that each waits for
        self._position = 0

    async def watch(self) -> None:
        """Follow the checkpoint and wake those who wait for it; runs for as long as the process answers queries."""
        while True:
            await self._tail.wait()
            if not self._waiters:
                continue
            try:
                self._wake(await self.position())
            except psycopg.Error as error:
                log.warning("checkpoint_unread", error=str(error))

    def _wake(self, position: int) -> None:
        for future, wanted in self._waiters.items():
            if wanted <= position and not future.done():
                future.set_result(None)

    def forget(self) -> None:
        """The log may be another one, restored to an earlier position: what was read of it before counts no more."""
        self._position = 0

    async def position(self) -> int:
        """The checkpoint now; it never goes back within one epoch of the log."""
        async with self._pool.connection() as connection:
            await self._reached(connection)
        return self._position

    async def _reached(self, connection: psycopg.AsyncConnection) -> int:
        """The checkpoint now. In another epoch than before, what was reached before means nothing."""
        cursor = await connection.execute(
            "SELECT position, (SELECT epoch FROM log_head) FROM projection_checkpoints WHERE name = %s", (CHECKPOINT,)
        )
        row = await cursor.fetchone()
        if row is None:
            return 0
        position, epoch = row
        if epoch != self._epoch:
            self._epoch, self._position = epoch, 0
            self._on_epoch(epoch)
        self._position = max(self._position, position)
        return int(position)

    async def wait_for(self, position: int, *, timeout_s: float) -> None:
        """Return once the read models reflect `position`.

        Raises:
            NotYetProjected: not within `timeout_s` (at most WAIT_MAX_S), or the log does not reach so far.
            TooManyWaiters: WAITERS_MAX others wait already.
        """
        if position <= self._position or position <= await self.position():
            return
        if timeout_s <= 0 or position > await self._log_end():
            raise NotYetProjected(f"the read models are at {self._position}")
        if len(self._waiters) >= WAITERS_MAX:
            raise TooManyWaiters(f"{WAITERS_MAX} requests wait for the read models")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = position
        try:
            async with asyncio.timeout(min(timeout_s, WAIT_MAX_S)):
                await future
        except TimeoutError as error:
            raise NotYetProjected(f"the read models are at {self._position}") from error
        finally:
            del self._waiters[future]

    async def _log_end(self) -> int:
        async with self._pool.connection() as connection:
            cursor = await connection.execute("SELECT max(position) FROM events")
            row = await cursor.fetchone()
        return int(row[0] or 0) if row else 0

    async def fetch(self, row: type[Row], query: sql.Composed | sql.SQL, values: Mapping[str, Any]) -> Page[Row]:
        """Rows of a query whose one column is `to_json` of each row.

        The checkpoint is read first: what comes after it may be newer than it says, never older.
        """
        async with self._pool.connection() as connection:
            position = await self._reached(connection)
            cursor = await connection.execute(query, values)
            found = [msgspec.json.decode(one, type=row) for (one,) in await cursor.fetchall()]
        return Page(found, position)

    async def get(self, model: ReadModel[Row], key: UUID) -> tuple[Row | None, int]:
        """One row by its key, and the position it reflects."""
        page = await self.fetch(
            model.row,
            sql.SQL("SELECT to_json(t) FROM {view} AS t WHERE {key} = %(key)s").format(
                view=sql.Identifier(model.name), key=sql.Identifier(model.columns[0])
            ),
            {"key": key},
        )
        return (page.rows[0] if page.rows else None), page.position
