"""Whether a read model is what the log comes to: a replay into scratch tables, and both digests.

The live rows are read in one snapshot, at the position that the checkpoint has in it, so that the projector goes on
meanwhile. Scratch tables are temporary ones of this session, filled as a rebuild fills its own.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import psycopg
from msgspec import Struct
from psycopg import IsolationLevel, sql

from ..adapters import postgres
from ..adapters.event_store.codec import EventMapper
from ..domain.kernel import Invalid
from . import quarantine, upkeep
from .canonical import Digest, canonical_row
from .projection import AnyModel, ReadModel, checkpoint
from .rebuild import Filler, Progress
from .tables import Target
from .writing import collecting_rarely

ROWS_PER_FETCH = 2_000
SCRATCH = "scratch_"

Keyed = tuple[tuple[Any, ...], bytes]  # a row's key, and the row as JSON
Rows = AsyncGenerator[Sequence[Keyed], None]  # in the order of their keys, some at a time


class Comparison(Struct, frozen=True):
    """One table beside its replay.

    Attributes:
        live, replayed: digests.
        differs_at: the first key that differs; none if nothing does.
        rows: of the live table.
    """

    table: str
    live: str
    replayed: str
    rows: int
    differs_at: str | None = None


class Verdict(Struct, frozen=True):
    """Attributes:
    position: as of which both were read.
    """

    name: str
    position: int
    comparisons: list[Comparison]

    @property
    def equal(self) -> bool:
        return all(one.differs_at is None for one in self.comparisons)


async def verify(
    dsn: str,
    name: str,
    mapper: EventMapper,
    *,
    at: int | None = None,
    progress: Progress = lambda _, __: None,
    on_claim: Callable[[], None] = lambda: None,
) -> Verdict:
    """Compare a read model with a replay of the log: with `at` its rows as its history has them at that position,
    without it the live rows and all of the history.

    Raises:
        NotFound, ProjectionBusy: it cannot be begun.
        Invalid: the read models do not reach `at`, or this one keeps no history.
        CannotFold: an event that the live tables have cannot be folded.
    """
    model = upkeep.model_named(name)
    keeps = isinstance(model, ReadModel) and model.history
    if at is not None and not keeps:
        raise Invalid(f"{name} keeps no history: leave the position out, and it is verified as it is now")
    async with (
        await postgres.connect(dsn) as connection,
        await postgres.connect(dsn) as reader,
        await postgres.connect(dsn) as snapshot,
        upkeep.claimed(connection, name, "verify"),
    ):
        await snapshot.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        async with snapshot.transaction():
            reached = await checkpoint(snapshot)
            position = reached if at is None else at
            if position > reached:
                raise Invalid(f"the read models are at {reached}")
            on_claim()
            target = await _scratch(connection, Target.live(model))
            filler = Filler(mapper, model, target, connection, reader)
            with collecting_rarely():
                await filler.fill(position, await quarantine.positions(snapshot), progress)
            async with connection.transaction():
                comparisons = [await _compare_rows(snapshot, connection, model, target.table, at)]
                if isinstance(model, ReadModel) and target.history is not None and at is None:
                    comparisons.append(await _compare_history(snapshot, connection, model, target.history))
        verdict = Verdict(name, position, comparisons)
        if at is None:
            await _keep(connection, verdict)
    return verdict


async def _scratch(connection: psycopg.AsyncConnection, live: Target) -> Target:
    tables = [table for table in (live.table, live.history) if table is not None]
    for table in tables:
        await connection.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {} INCLUDING ALL)").format(
                sql.Identifier(SCRATCH + table), sql.Identifier(table)
            )
        )
    return Target(*(SCRATCH + table for table in tables))


async def _keep(connection: psycopg.AsyncConnection, verdict: Verdict) -> None:
    await connection.execute(
        "UPDATE projections SET verified_at = clock_timestamp(), verified_position = %s, equal = %s, digest = %s"
        " WHERE name = %s",
        (verdict.position, verdict.equal, verdict.comparisons[0].live, verdict.name),
    )


async def _compare_rows(
    live: psycopg.AsyncConnection, replayed: psycopg.AsyncConnection, model: AnyModel, scratch: str, at: int | None
) -> Comparison:
    if at is None or not isinstance(model, ReadModel):
        return await compare(model.table, model, stored(live, model, model.table), stored(replayed, model, scratch))
    then = sql.SQL(
        "SELECT {key}, row FROM (SELECT DISTINCT ON ({key}) {key}, row FROM {history} WHERE position <= {at}"
        " ORDER BY {key}, position DESC) AS t ORDER BY {key}"
    ).format(key=sql.Identifier(model.key[0]), history=sql.Identifier(model.history_table), at=sql.Literal(at))
    return await compare(model.history_table, model, _decoded(live, then, model), stored(replayed, model, scratch))


async def _compare_history(
    live: psycopg.AsyncConnection, replayed: psycopg.AsyncConnection, model: ReadModel[Any], scratch: str
) -> Comparison:
    tables = (_history(live, model, model.history_table), _history(replayed, model, scratch))
    return await compare(model.history_table, model, *tables)


class _Side:
    """One of two tables on the way through both; `head` is the row that comes next."""

    def __init__(self, batches: Rows) -> None:
        self._batches = batches
        self._rows: Iterator[Keyed] = iter(())
        self.head: Keyed | None = None
        self.digest = Digest()

    async def step(self) -> None:
        self.head = next(self._rows, None)
        if self.head is None:
            async for batch in self._batches:
                self._rows = iter(batch)
                self.head = next(self._rows)
                break


async def compare(table: str, model: AnyModel, live: Rows, replayed: Rows) -> Comparison:
    """Walk through both in the order of their keys."""
    ours, theirs = _Side(live), _Side(replayed)
    differs_at: tuple[Any, ...] | None = None
    async with aclosing(live), aclosing(replayed):
        await ours.step()
        await theirs.step()
        while ours.head is not None or theirs.head is not None:
            # The side that is behind goes on; both where the key is the same.
            key = min(side.head[0] for side in (ours, theirs) if side.head is not None)
            found = [(side, side.head[1]) for side in (ours, theirs) if side.head is not None and side.head[0] == key]
            texts = {text: _canonical(model, text) for _, text in found}  # mostly one, and then done once
            if differs_at is None and (len(found) == 1 or len(set(texts.values())) > 1):
                differs_at = key
            for side, text in found:
                side.digest.add_canonical(texts[text])
                await side.step()
    shown = None if differs_at is None else " ".join(map(str, differs_at))
    return Comparison(table, ours.digest.hex(), theirs.digest.hex(), ours.digest.rows, shown)


def stored(connection: psycopg.AsyncConnection, model: AnyModel, table: str) -> Rows:
    """The rows of a table in the order of their keys; within a transaction."""
    # Texts in keys are compared byte by byte, as Python does, whatever the database's collation is.
    texts = {name for name in model.key if model.row.__annotations__[name] is str}
    query = sql.SQL("SELECT {keys}, to_json(t) FROM {table} AS t ORDER BY {order}").format(
        keys=sql.SQL(", ").join(map(sql.Identifier, model.key)),
        table=sql.Identifier(table),
        order=sql.SQL(", ").join(
            sql.SQL('{} COLLATE "C"' if name in texts else "{}").format(sql.Identifier(name)) for name in model.key
        ),
    )
    return _decoded(connection, query, model)


async def _decoded(connection: psycopg.AsyncConnection, query: sql.Composed, model: AnyModel) -> Rows:
    async with connection.cursor(name=f"rows_of_{model.name}") as cursor:
        await cursor.execute(query)
        while rows := await cursor.fetchmany(ROWS_PER_FETCH):
            yield [(tuple(key), text) for *key, text in rows]


async def _history(connection: psycopg.AsyncConnection, model: ReadModel[Any], table: str) -> Rows:
    query = sql.SQL("SELECT {key}, position, at, row FROM {table} ORDER BY {key}, position").format(
        key=sql.Identifier(model.key[0]), table=sql.Identifier(table)
    )
    async with connection.cursor(name=f"history_of_{model.name}") as cursor:
        await cursor.execute(query)
        while rows := await cursor.fetchmany(ROWS_PER_FETCH):
            # The time is part of what is compared: before the row, where no JSON can be mistaken for it.
            yield [((key, position), at.isoformat().encode() + b" " + text) for key, position, at, text in rows]


def _canonical(model: AnyModel, text: bytes) -> bytes:
    """A row as it was read, in canonical form. What does not even decode is as it is; a replay has none such."""
    at, brace, row = text.partition(b"{")
    try:
        return at + canonical_row(msgspec.json.decode(brace + row, type=model.row))
    except msgspec.DecodeError:
        return text
