"""Rows to tables and back. Everything is written by COPY, which costs the server a third of an INSERT from JSON.

A row that was there before is deleted and written again in the same transaction; to the table that is what an UPDATE
of an indexed column is as well.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from struct import Struct as Packer
from types import UnionType
from typing import Any, get_args
from uuid import UUID

import msgspec
import psycopg
from msgspec import Struct
from msgspec.structs import astuple, fields
from psycopg import AsyncCopy, sql

from ..adapters.event_store.codec import Recorded
from .canonical import canonical_row
from .projection import EdgeModel, ReadModel

ROWS_PER_WRITE = 500  # few enough that the server works on some while the next ones are rendered

# COPY's binary format: a signature, flags and no header extension; at the end the count of fields that no row has.
BINARY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
BINARY_END = b"\xff\xff"
CSV = sql.SQL("FORMAT csv, NULL 'null', ESCAPE '\\'")
EPOCH_2000 = datetime(2000, 1, 1, tzinfo=UTC)

_encode = msgspec.json.Encoder().encode
_history = Packer(">hi16siqiqi").pack  # count of fields; then of each its size and bytes, the JSON's own aside
_OTHER_ESCAPES = re.compile(rb'\\[^"\\]')


class Target(Struct, frozen=True):
    """Where a read model's rows go: its live tables, a rebuild's, or a scratch copy.

    Attributes:
        history: none where no history is kept.
    """

    table: str
    history: str | None = None

    @classmethod
    def live(cls, model: ReadModel[Any] | EdgeModel[Any]) -> "Target":
        history = model.history_table if isinstance(model, ReadModel) and model.history else None
        return cls(model.table, history)


async def load(
    connection: psycopg.AsyncConnection, model: ReadModel[Any], table: str, keys: Sequence[UUID]
) -> dict[UUID, Any]:
    """Those rows of `keys` that exist."""
    query = sql.SQL("SELECT coalesce(json_agg(t), '[]') FROM {table} AS t WHERE {key} = ANY (%s::uuid[])").format(
        table=sql.Identifier(table), key=sql.Identifier(model.columns[0])
    )
    found = await (await connection.execute(query, (_array(keys),))).fetchone()
    assert found is not None
    rows = msgspec.json.decode(found[0], type=list[model.row])  # type: ignore[name-defined]  # a runtime type
    return {getattr(row, model.columns[0]): row for row in rows}


async def replace(
    connection: psycopg.AsyncConnection, model: ReadModel[Any], table: str, rows: Sequence[Any], keys: Sequence[UUID]
) -> None:
    """Write `rows`; those of `keys` that exist go."""
    await connection.execute(
        sql.SQL("DELETE FROM {} WHERE {} = ANY (%s::uuid[])").format(
            sql.Identifier(table), sql.Identifier(model.columns[0])
        ),
        (_array(keys),),
    )
    await insert(connection, model, table, rows)


async def insert(connection: psycopg.AsyncConnection, model: ReadModel[Any], table: str, rows: Sequence[Any]) -> None:
    """Write rows, none of which may be there."""
    line = renderer(model.row)
    async with _copying(connection, table, model.columns, CSV) as copy:
        for start in range(0, len(rows), ROWS_PER_WRITE):
            await copy.write(b"".join(map(line, rows[start : start + ROWS_PER_WRITE])))


async def add(connection: psycopg.AsyncConnection, model: EdgeModel[Any], table: str, edges: Iterable[Any]) -> None:
    """Write edges; of those that are there already, nothing."""
    query = sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM json_populate_recordset(NULL::{table}, %s)"
        " ON CONFLICT ({key}) DO NOTHING"
    ).format(
        table=sql.Identifier(table),
        columns=sql.SQL(", ").join(map(sql.Identifier, model.columns)),
        key=sql.SQL(", ").join(map(sql.Identifier, model.key)),
    )
    await connection.execute(query, (_encode(list(edges)).decode(),))


def history_line(row: Struct, at: Recorded, key: UUID) -> bytes:
    """One row of a history table, for COPY in binary: the row as the event at this position left it, in the same bytes
    whether it was in memory or read back before.
    """
    text = canonical_row(row)
    since_2000 = at.recorded_at - EPOCH_2000
    recorded_us = (since_2000.days * 86_400 + since_2000.seconds) * 1_000_000 + since_2000.microseconds
    return _history(4, 16, key.bytes, 8, at.id, 8, recorded_us, len(text)) + text


@asynccontextmanager
async def copying_history(
    connection: psycopg.AsyncConnection, model: ReadModel[Any], table: str
) -> AsyncIterator[AsyncCopy]:
    """COPY of history lines into a table."""
    columns = (model.columns[0], "position", "at", "row")
    async with _copying(connection, table, columns, sql.SQL("FORMAT binary")) as copy:
        await copy.write(BINARY_HEAD)
        yield copy
        await copy.write(BINARY_END)


@asynccontextmanager
async def _copying(
    connection: psycopg.AsyncConnection, table: str, columns: Iterable[str], options: sql.SQL
) -> AsyncIterator[AsyncCopy]:
    query = sql.SQL("COPY {} ({}) FROM STDIN ({})").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns)), options
    )
    async with connection.cursor() as cursor, cursor.copy(query) as copy:
        yield copy


def renderer(row: type[Struct]) -> Callable[[Any], bytes]:
    """Rows of a struct to lines of CSV. A list of UUIDs is an array; whatever else nests is JSON.

    A line is msgspec's array of the columns without its brackets: with a backslash as the escape, COPY reads JSON's
    strings, numbers, booleans and nulls as they stand. What it would misread are other escapes than those two; such
    a line, one in many, is written column by column.
    """
    nested = [(n, _array if one.type == list[UUID] else _json) for n, one in enumerate(fields(row)) if _nests(one.type)]

    def line(one: Any) -> bytes:
        values: list[Any] = list(astuple(one))
        for number, render in nested:
            if values[number] is not None:
                values[number] = render(values[number])
        text = _encode(values)
        if b"\\" in text and _OTHER_ESCAPES.search(text) is not None:
            return ",".join(map(_column, values)).encode() + b"\n"
        return text[1:-1] + b"\n"

    return line


def _nests(kind: Any) -> bool:
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return not set(kinds) <= _FLAT


_FLAT = {str, int, float, bool, UUID, datetime, type(None)}


def _json(value: Any) -> str:
    return _encode(value).decode()


def _array(value: Iterable[UUID]) -> str:
    return "{" + ",".join(map(str, value)) + "}"


def _column(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return _encode(value).decode()
