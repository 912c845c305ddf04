"""The read models as of one position, on disk: dumped in one short transaction, so that none stays open while a slow
client reads the bundle.
"""

import asyncio
import tempfile
from contextlib import ExitStack
from typing import IO, Any, get_type_hints

import msgspec
import psycopg
from msgspec import Struct
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from .. import catalogue
from ..projection import EdgeModel, ReadModel, checkpoint
from ..replay import canonical_row
from .format import QuarantineLine

ROWS_PER_FETCH = 1_000
IN_MEMORY_BYTES_MAX = 1024**2

AnyModel = ReadModel[Any] | EdgeModel[Any]


class Snapshot(Struct, frozen=True):
    """Attributes:
    position: that the rows reflect.
    rows: one file of lines by name, in the order of keys.
    quarantine: streams that they stopped at.
    """

    position: int
    rows: dict[str, IO[bytes]]
    quarantine: list[QuarantineLine]


def models() -> dict[str, AnyModel]:
    """Every read model and edge model, by name."""
    found: dict[str, AnyModel] = {model.name: model for model in catalogue.READ_MODELS}
    return found | {model.name: model for model in catalogue.EDGE_MODELS}


async def take(pool: AsyncConnectionPool, stack: ExitStack) -> Snapshot:
    """Dump them; `stack` closes the files.

    Raises:
        psycopg.Error: the database failed.
        OSError: no space for the files.
    """
    rows: dict[str, IO[bytes]] = {}
    async with pool.connection() as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Before the first query fixes what is seen: a rebuild that puts another table in place later would leave this
        # transaction with an empty one.
        views = sql.SQL(", ").join(map(sql.Identifier, models()))
        await connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(views))
        position = await checkpoint(connection)
        cursor = await connection.execute(
            "SELECT stream_id, position FROM projection_quarantine WHERE position <= %s ORDER BY stream_id", (position,)
        )
        quarantine = [QuarantineLine(*row) for row in await cursor.fetchall()]
        for name, model in models().items():
            file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES_MAX)  # noqa: SIM115  # the stack closes it
            rows[name] = stack.enter_context(file)
            await _dump(connection, model, rows[name])
    return Snapshot(position, rows, quarantine)


async def _dump(connection: psycopg.AsyncConnection, model: AnyModel, file: IO[bytes]) -> None:
    decode = msgspec.json.Decoder(model.row).decode

    def write(fetched: list[Any]) -> None:
        file.write(b"".join([canonical_row(decode(text)) + b"\n" for (text,) in fetched]))

    async with connection.cursor(name="sightline_bundle") as cursor:
        await cursor.execute(
            sql.SQL("SELECT to_json(t) FROM {view} AS t ORDER BY {key}").format(
                view=sql.Identifier(model.name), key=sql.SQL(", ").join(_ordered(model))
            )
        )
        while fetched := await cursor.fetchmany(ROWS_PER_FETCH):
            await asyncio.to_thread(write, fetched)


def _ordered(model: AnyModel) -> list[sql.Composable]:
    """The key's columns as Python orders them: text by its code points, whatever the database's language is."""
    types = get_type_hints(model.row)
    return [
        sql.SQL('{} COLLATE "C"' if types[name] is str else "{}").format(sql.Identifier(name)) for name in model.key
    ]
