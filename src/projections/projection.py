"""From the log to tables: fold a page in memory, write each table once, move the checkpoint in the same transaction.

The checkpoint is moved first and by compare-and-set, so that of two projectors one abandons its batch; without it
both counted. All read models share one checkpoint and therefore always reflect the same position.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
import psycopg
import structlog
from msgspec import Struct
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from ..adapters import metrics
from ..adapters.event_store.codec import EventMapper, Recorded
from ..adapters.event_store.reader import Tail
from ..domain.kernel import Rejection

CHECKPOINT = "read_models"
CHANNEL = "sightline_read_models"
WAIT_MAX_S = 10.0
WAITERS_MAX = 1_000

Row = TypeVar("Row", bound=Struct)

log = structlog.get_logger(__name__)


class Overtaken(Exception):
    """Another projector moved the checkpoint meanwhile; nothing of this batch was written."""


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
    """

    name: str
    version: int
    kinds: frozenset[str]
    row: type[Row]
    apply: "Callable[[Row | None, Any, Recorded], Row]"

    @property
    def table(self) -> str:
        return f"{self.name}_v{self.version}"

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


class Projector:
    """Folds pages of the log into read models."""

    def __init__(
        self, mapper: EventMapper, models: Sequence[ReadModel[Any]], edge_models: Sequence[EdgeModel[Any]]
    ) -> None:
        self._mapper = mapper
        self._edge_models = edge_models
        self._by_kind: dict[str, list[ReadModel[Any]]] = {}
        for model in models:
            for kind in model.kinds:
                self._by_kind.setdefault(kind, []).append(model)
        self._decoders = {model.name: msgspec.json.Decoder(list[model.row]) for model in models}  # type: ignore[name-defined]  # a runtime type

    async def project(self, connection: psycopg.AsyncConnection, events: Sequence[Recorded]) -> None:
        """One page into all read models, in one transaction on `connection`.

        Raises:
            Overtaken: the checkpoint is not just before the page.
        """
        decoded = [(recorded, self._mapper.event(recorded)) for recorded in events]
        async with connection.transaction():
            await self._move_checkpoint(connection, events[0].id - 1, events[-1].id)
            for model, streams in self._touched(decoded).items():
                rows = await self._load(connection, self._models[model], streams)
                self._fold(self._models[model], rows, decoded)
                await _write(connection, self._models[model], rows.values())
            for edge_model in self._edge_models:
                edges = [edge for recorded, event in decoded for edge in edge_model.edges(event, recorded)]
                if edges:
                    await _add(connection, edge_model, edges)
            await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(events[-1].id)))
        metrics.PROJECTED_POSITION.set(events[-1].id)

    @property
    def _models(self) -> Mapping[str, ReadModel[Any]]:
        return {model.name: model for models in self._by_kind.values() for model in models}

    def _touched(self, decoded: Sequence[tuple[Recorded, Any]]) -> dict[str, set[UUID]]:
        touched: dict[str, set[UUID]] = {}
        for recorded, _ in decoded:
            for model in self._by_kind.get(recorded.topic.partition(".")[0], ()):
                touched.setdefault(model.name, set()).add(recorded.stream_id)
        return touched

    async def _load(
        self, connection: psycopg.AsyncConnection, model: ReadModel[Any], keys: set[UUID]
    ) -> dict[UUID, Any]:
        query = sql.SQL("SELECT coalesce(json_agg(t), '[]') FROM {table} AS t WHERE {key} = ANY (%s)").format(
            table=sql.Identifier(model.table), key=sql.Identifier(model.columns[0])
        )
        cursor = await connection.execute(query, (list(keys),))
        found = await cursor.fetchone()
        assert found is not None
        rows = self._decoders[model.name].decode(found[0])
        return {getattr(row, model.columns[0]): row for row in rows}

    def _fold(self, model: ReadModel[Any], rows: dict[UUID, Any], decoded: Sequence[tuple[Recorded, Any]]) -> None:
        for recorded, event in decoded:
            if recorded.topic.partition(".")[0] in model.kinds:
                rows[recorded.stream_id] = model.apply(rows.get(recorded.stream_id), event, recorded)

    async def _move_checkpoint(self, connection: psycopg.AsyncConnection, before: int, after: int) -> None:
        cursor = await connection.execute(
            "UPDATE projection_checkpoints SET position = %s, moved_at = clock_timestamp()"
            " WHERE name = %s AND position = %s",
            (after, CHECKPOINT, before),
        )
        if cursor.rowcount != 1:
            raise Overtaken(f"the checkpoint is not at {before}")


async def _write(connection: psycopg.AsyncConnection, model: ReadModel[Any], rows: Iterable[Any]) -> None:
    key, *others = model.columns
    query = sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM json_populate_recordset(NULL::{table}, %s)"
        " ON CONFLICT ({key}) DO UPDATE SET {updates}"
    ).format(
        table=sql.Identifier(model.table),
        columns=sql.SQL(", ").join(map(sql.Identifier, model.columns)),
        key=sql.Identifier(key),
        updates=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(one)) for one in others),
    )
    await connection.execute(query, (msgspec.json.encode(list(rows)).decode(),))


async def _add(connection: psycopg.AsyncConnection, model: EdgeModel[Any], edges: Sequence[Any]) -> None:
    query = sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM json_populate_recordset(NULL::{table}, %s)"
        " ON CONFLICT ({key}) DO NOTHING"
    ).format(
        table=sql.Identifier(model.table),
        columns=sql.SQL(", ").join(map(sql.Identifier, model.columns)),
        key=sql.SQL(", ").join(map(sql.Identifier, model.key)),
    )
    await connection.execute(query, (msgspec.json.encode(edges).decode(),))


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
    """Queries of one process: each answer with the position that it reflects, and waiting for one that it must."""

    def __init__(self, pool: AsyncConnectionPool, tail: Tail) -> None:
        self._pool = pool
        self._tail = tail
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
            self._position = max(self._position, await checkpoint(connection))
        return self._position

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
            position = await checkpoint(connection)
            cursor = await connection.execute(query, values)
            found = [msgspec.json.decode(one, type=row) for (one,) in await cursor.fetchall()]
        self._position = max(self._position, position)
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
