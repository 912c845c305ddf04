"""What is done to a read model beside projecting it: one task each at a time, and what came of the last ones."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal

import psycopg
from msgspec import Struct

from ..domain.kernel import NotFound, Rejection
from . import catalogue
from .projection import AnyModel, ReadModel, checkpoint

Task = Literal["rebuild", "verify"]
LOCKS = 0x51647  # the class of our advisory locks; the other half of the key is the name's hash


SHOWN = (
    "generation",
    "rows",
    "rebuilt_at",
    "rebuilt_position",
    "verified_at",
    "verified_position",
    "equal",
    "digest",
    "task",
    "task_started_at",
    "task_position",
    "task_error",
)


class ProjectionBusy(Rejection):
    """It is being rebuilt or verified already."""

    code = "projection_busy"


class ProjectionState(Struct, frozen=True):
    """Attributes:
    table: behind the view of this name; it is named by the version of its row.
    generation: how often the table was rebuilt.
    position: that it reflects now.
    lag: events in the log past it.
    rows: an estimate of the database's; exact are those that a verification counted.
    digest: of the rows at verified_position, when last verified or rebuilt.
    equal: whether a replay came to the same then.
    quarantined: streams of its kinds that are set aside.
    task: that runs now, and how far it is; a task whose process died shows no longer.
    """

    name: str
    table: str
    version: int
    generation: int
    position: int
    lag: int
    rows: int
    quarantined: int
    rebuilt_at: datetime | None = None
    rebuilt_position: int | None = None
    verified_at: datetime | None = None
    verified_position: int | None = None
    equal: bool | None = None
    digest: str | None = None
    task: str | None = None
    task_started_at: datetime | None = None
    task_position: int | None = None
    task_error: str | None = None


def model_named(name: str) -> AnyModel:
    """
    Raises:
        NotFound: there is none of this name.
    """
    found = next((model for model in catalogue.ALL_MODELS if model.name == name), None)
    if found is None:
        raise NotFound(
            f"no projection has this name; there are {', '.join(model.name for model in catalogue.ALL_MODELS)}"
        )
    return found


def kinds_of(model: AnyModel) -> frozenset[str] | None:
    """Whose events it folds; none where it looks at all of them."""
    return model.kinds if isinstance(model, ReadModel) else None


@asynccontextmanager
async def claimed(connection: psycopg.AsyncConnection, name: str, task: Task) -> AsyncIterator[None]:
    """Be the only one who rebuilds or verifies this read model. The claim is the connection's: it goes with it, so that
    a process which died claims nothing.

    Raises:
        ProjectionBusy: somebody is at it.
    """
    if not await _scalar(connection, "SELECT pg_try_advisory_lock(%s, hashtext(%s))", (LOCKS, name)):
        raise ProjectionBusy(f"{name} is being rebuilt or verified")
    try:
        await connection.execute(
            "INSERT INTO projections (name, task, task_started_at) VALUES (%(name)s, %(task)s, clock_timestamp())"
            " ON CONFLICT (name) DO UPDATE SET task = excluded.task, task_started_at = excluded.task_started_at,"
            " task_position = NULL, task_error = NULL",
            {"name": name, "task": task},
        )
        try:
            yield
        except Exception as error:
            if not connection.closed:
                await _over(connection, name, f"{type(error).__name__}: {error}"[:1_000].replace("\0", ""))
            raise
        await _over(connection, name, None)
    finally:
        if not connection.closed:
            await connection.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", (LOCKS, name))


async def _over(connection: psycopg.AsyncConnection, name: str, error: str | None) -> None:
    await connection.execute(
        "UPDATE projections SET task = NULL, task_started_at = NULL, task_position = NULL, task_error = %s"
        " WHERE name = %s",
        (error, name),
    )


async def progressed(connection: psycopg.AsyncConnection, name: str, position: int) -> None:
    """How far the task is, for whoever looks."""
    await connection.execute("UPDATE projections SET task_position = %s WHERE name = %s", (position, name))


async def busy(connection: psycopg.AsyncConnection, name: str) -> bool:
    """Whether somebody claims it now."""
    found = await _scalar(
        connection,
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND classid = %s::oid AND objid::bigint = hashtext(%s)::bigint & 4294967295 AND granted)",
        (LOCKS, name),
    )
    return bool(found)


async def overview(connection: psycopg.AsyncConnection) -> list[ProjectionState]:
    """Every read model, by name."""
    position = await checkpoint(connection)
    head = await _scalar(connection, "SELECT coalesce(max(position), 0) FROM events", ())
    cursor = await connection.execute(
        "SELECT split_part(topic, '.', 1), count(*) FROM projection_quarantine GROUP BY 1"
    )
    quarantined: dict[str, int] = dict(await cursor.fetchall())
    states = []
    for model in sorted(catalogue.ALL_MODELS, key=lambda model: model.name):
        cursor = await connection.execute(
            "SELECT coalesce(p.generation, 0), greatest(c.reltuples, 0)::bigint, p.rebuilt_at, p.rebuilt_position,"
            " p.verified_at, p.verified_position, p.equal, p.digest, p.task, p.task_started_at, p.task_position,"
            " p.task_error FROM pg_class AS c LEFT JOIN projections AS p ON p.name = %s WHERE c.oid = %s::regclass",
            (model.name, model.table),
        )
        row = await cursor.fetchone()
        assert row is not None
        shown = dict(zip(SHOWN, row, strict=True))
        if shown["task"] is not None and not await busy(connection, model.name):
            interrupted = {"task_error": f"the {shown['task']} was interrupted"}
            shown |= dict.fromkeys(("task", "task_started_at", "task_position")) | interrupted
        states.append(
            ProjectionState(
                name=model.name,
                table=model.table,
                version=model.version,
                position=position,
                lag=max(0, head - position),
                quarantined=sum(
                    n for kind, n in quarantined.items() if (kinds := kinds_of(model)) is None or kind in kinds
                ),
                **shown,
            )
        )
    return states


async def _scalar(connection: psycopg.AsyncConnection, query: Any, values: Any) -> Any:
    row = await (await connection.execute(query, values)).fetchone()
    return row[0] if row else None
