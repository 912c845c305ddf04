"""What analysts are given as tables: reports over the views of schema `analytics`, each read at one moment.

The views are documented in docs/reference/data-dictionary.md; a report is one of them, or the rows of one that fall
into a time. A range of a view comes as two columns, its begin and its end.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from msgspec import Struct
from psycopg import sql

from ..adapters import postgres
from ..adapters.tabular import Column, Kind, Table
from .projection import checkpoint

ROWS_PER_FETCH = 200
STATEMENT_TIMEOUT_S = 60


class Report(Struct, frozen=True):
    """Attributes:
    title: one line for people.
    query: with %(since)s and %(until)s, times or infinities; the first is included, the second is not.
    """

    title: str
    query: LiteralString


class Window(Struct, frozen=True):
    """From when until when; None is without a bound."""

    since: datetime | None = None
    until: datetime | None = None


_CREATED: LiteralString = "created_at >= %(since)s AND created_at < %(until)s"
# A range that ends before it begins is an error to the database; to whoever asks, a time in which nothing was.
_VALID: LiteralString = "valid_times && tstzrange(%(since)s, greatest(%(since)s::timestamptz, %(until)s::timestamptz))"

REPORTS: dict[str, Report] = {
    "jobs": Report(
        "Jobs by day of submission, kind and state",
        "SELECT * FROM analytics.jobs_by_state_per_day WHERE day >= (%(since)s AT TIME ZONE 'UTC')::date"
        " AND day < %(until)s AT TIME ZONE 'UTC' ORDER BY day, kind, status",
    ),
    "durations": Report(
        "How long completed jobs took, by model version",
        "SELECT * FROM analytics.job_durations_between(%(since)s, %(until)s)"
        " ORDER BY model_name, model_version_id, kind",
    ),
    "model-activations": Report(
        "Which model version was active, and when",
        "SELECT * FROM analytics.model_activations WHERE " + _VALID + " ORDER BY task, position",  # noqa: S608  # literals
    ),
    "job-rows": Report(
        "Jobs as they are now, by when they were submitted",
        "SELECT * FROM analytics.jobs WHERE " + _CREATED + " ORDER BY job_id",  # noqa: S608  # literals
    ),
    "session-rows": Report(
        "Sessions as they are now, by when they began",
        "SELECT * FROM analytics.sessions WHERE " + _CREATED + " ORDER BY session_id",  # noqa: S608  # literals
    ),
    "model-rows": Report(
        "Model versions as they are now, by when they were registered",
        "SELECT * FROM analytics.models WHERE " + _CREATED + " ORDER BY model_id",  # noqa: S608  # literals
    ),
    "jobs-history": Report(
        "States that jobs were in",
        "SELECT * FROM analytics.jobs_history WHERE " + _VALID + " ORDER BY job_id, position",  # noqa: S608  # literals
    ),
    "sessions-history": Report(
        "States that sessions were in",
        "SELECT * FROM analytics.sessions_history WHERE " + _VALID + " ORDER BY session_id, position",  # noqa: S608  # literals
    ),
    "models-history": Report(
        "States that model versions were in",
        "SELECT * FROM analytics.models_history WHERE " + _VALID + " ORDER BY model_id, position",  # noqa: S608  # literals
    ),
    "lineage-edges": Report(
        "What was made from what",
        "SELECT * FROM analytics.lineage_edges WHERE at >= %(since)s AND at < %(until)s ORDER BY position, src, dst",
    ),
    "events": Report(
        "The log, without what is sealed",
        "SELECT * FROM analytics.events WHERE recorded_at >= %(since)s AND recorded_at < %(until)s ORDER BY position",
    ),
    "projections": Report("How far the read models are", "SELECT * FROM analytics.projections ORDER BY name"),
}

# By the type of the view's column: its kind, and how it is read.
_KINDS: dict[str, tuple[Kind, LiteralString]] = {
    "text": ("text", "{}"),
    "uuid": ("uuid", "{}::text"),
    "_uuid": ("uuids", "{}::text[]"),
    "json": ("json", "{}::text"),
    "jsonb": ("json", "{}::text"),
    "int2": ("integer", "{}"),
    "int4": ("integer", "{}"),
    "int8": ("integer", "{}"),
    "float8": ("float", "{}"),
    "bool": ("boolean", "{}"),
    "date": ("date", "{}"),
    "timestamptz": ("time", "{}"),
}
_RANGES: dict[str, tuple[Kind, str, str]] = {
    "int8range": ("integer", "valid_from_position", "valid_until_position"),
    "tstzrange": ("time", "valid_from", "valid_until"),
}


class Opened(Struct, frozen=True):
    """A report, ready to be read.

    Attributes:
        position: that the read models reflect at this moment.
    """

    columns: Sequence[Column]
    position: int
    cursor: "psycopg.AsyncServerCursor[Any]"

    async def pour(self, table: Table) -> int:
        """Write every row to `table`, encoding beside the event loop; how many there were.

        Raises:
            psycopg.Error: the database gave up, or went away.
        """
        count = 0
        while rows := await self.cursor.fetchmany(ROWS_PER_FETCH):
            count += len(rows)
            await asyncio.to_thread(table.write, rows)
        await asyncio.to_thread(table.finish)
        return count


@asynccontextmanager
async def opened(dsn: str, name: str, window: Window) -> AsyncIterator[Opened]:
    """Begin to read a report, on a connection and in a snapshot of its own.

    A pool's connection would plan without scans, which is right for its short look-ups and wrong here.

    Raises:
        KeyError: there is no such report.
        psycopg.Error: the database does not answer.
    """
    report = REPORTS[name]
    values = {
        "since": window.since.isoformat() if window.since else "-infinity",
        "until": window.until.isoformat() if window.until else "infinity",
    }
    bounds = {key: sql.SQL("{}::timestamptz").format(sql.Literal(value)) for key, value in values.items()}
    query = sql.SQL(report.query.replace("%(since)s", "{since}").replace("%(until)s", "{until}")).format(**bounds)
    async with await postgres.connect(dsn, prepare=False) as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await connection.execute("SET LOCAL timezone = 'UTC'")
        await connection.execute(
            sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(STATEMENT_TIMEOUT_S * 1000))
        )
        position = await checkpoint(connection)
        columns, selected = await _columns(connection, query)
        async with connection.cursor(name="report") as cursor:
            await cursor.execute(sql.SQL("SELECT {} FROM ({}) AS report").format(selected, query))
            yield Opened(columns, position, cursor)


async def _columns(connection: psycopg.AsyncConnection, query: sql.Composable) -> tuple[list[Column], sql.Composable]:
    """The columns of a report, and how each is selected, from the types that the database says they have."""
    cursor = await connection.execute(sql.SQL("SELECT * FROM ({}) AS report LIMIT 0").format(query))
    columns: list[Column] = []
    selected: list[sql.Composable] = []
    for described in cursor.description or ():
        info = connection.adapters.types.get(described.type_code)
        type_name = "_uuid" if info is not None and info.array_oid == described.type_code else info and info.name
        name = sql.Identifier(described.name)
        if type_name in _RANGES:
            kind, *ends = _RANGES[type_name]
            columns += [Column(end, kind) for end in ends]
            selected += [sql.SQL("lower({})").format(name), sql.SQL("upper({})").format(name)]
            continue
        kind, expression = _KINDS[str(type_name)]
        columns.append(Column(described.name, kind))
        selected.append(sql.SQL(expression).format(name))
    return columns, sql.SQL(", ").join(selected)
