"""The real side: Commands of two processes' worth on one database, and what they and the read models say, as rows."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from inspect import get_annotations, getmembers, iscoroutinefunction
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import psycopg
import uvloop
from msgspec import Struct
from psycopg import sql
from tests.conftest_service import short_lived
from tests.model.reference import Row

from sightline.adapters import postgres
from sightline.adapters.event_store.codec import Recorded
from sightline.commands import assets, attempts, jobs, model_slots, models, sessions
from sightline.commands.jobs import pending_key
from sightline.commands.transact import Commands, Handler
from sightline.commands.transaction import Transaction
from sightline.domain.events import AGGREGATES
from sightline.domain.model_slots import slot_id
from sightline.projections import catalogue
from sightline.projections.projection import CHECKPOINT, ReadModel
from sightline.workers import lifecycle, projector
from sightline.workers.lifecycle import Services

T = TypeVar("T")

MODULES = {"session": [sessions], "asset": [assets], "model": [models], "slot": [model_slots], "job": [jobs, attempts]}
READ_MODELS: dict[str, ReadModel[Any]] = {
    noun: model
    for model in catalogue.READ_MODELS
    if (noun := {"model_slots": "slot"}.get(model.name, model.name.removesuffix("s"))) in MODULES
}


class Known(Struct, frozen=True):
    """One command as the service knows it."""

    noun: str
    handler: Handler[Any, Any]
    fields: type[Struct]


def commands_there_are() -> dict[str, Known]:
    """Every handler of every noun, by its name."""
    found: dict[str, Known] = {}
    for noun, modules in MODULES.items():
        for module in modules:
            for name, handler in getmembers(module, iscoroutinefunction):
                hints = get_annotations(handler)
                if (
                    hints.get("tx") is Transaction
                    and "command" in hints  # not a part of several
                    and not name.startswith("_")
                    and handler.__module__ == module.__name__
                ):
                    found[name] = Known(noun, handler, hints["command"])
    return found


COMMANDS = commands_there_are()


class Real:
    """One event loop, two services with caches of their own, one projector, all on one database."""

    def __init__(
        self, runner: asyncio.Runner, sides: tuple[Services, Services], projecting: psycopg.AsyncConnection
    ) -> None:
        self._runner = runner
        self._projecting = projecting
        self.sides: tuple[Commands, Commands] = (sides[0].commands, sides[1].commands)
        self._store = sides[0].store
        self._projector = catalogue.projector(self._store.mapper)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def forget(self, side: int) -> None:
        """What happens when the writer connects again."""
        self.sides[side]._forget()

    async def head(self) -> int:
        return (await self._store.reader.head()).position

    async def events(self, after: int) -> list[Recorded]:
        """The log from there on; a hole is an error."""
        found: list[Recorded] = []
        while page := await self._store.reader.page(after=after + len(found)):
            found += page
        return found

    def fold(self, events: Iterable[Recorded]) -> dict[tuple[str, Any], tuple[Any, int]]:
        """State and version of every stream that `events` are about, and that nothing was said of before."""
        states: dict[tuple[str, Any], tuple[Any, int]] = {}
        for recorded in events:
            kind = recorded.topic.partition(".")[0]
            aggregate = AGGREGATES[kind]
            key = {"model_slot": "slot"}.get(kind, kind), recorded.stream_id
            state, version = states.get(key, (aggregate.initial, 0))
            assert recorded.originator_version == version + 1, f"{key} leaps from version {version}"
            state = aggregate.evolve(state, self._store.mapper.event(recorded))
            states[key] = (state, version + 1)
        return states

    async def project(self) -> None:
        """Bring the read models up to the log's end, by the real projector."""
        while await projector.step(self._projector, self._projecting):
            pass

    async def pass_over(self) -> None:
        """Leave out what a broken example wrote, which may be what no read model takes."""
        query = "UPDATE projection_checkpoints SET position = (SELECT max(position) FROM events) WHERE name = %s"
        await self._projecting.execute(query, (CHECKPOINT,))

    async def rows(self, noun: str, ids: list[UUID]) -> dict[UUID, Any]:
        """The read model's rows of these ids, as readers see them."""
        model = READ_MODELS[noun]
        query = sql.SQL("SELECT to_json(t) FROM {} AS t WHERE {} = ANY (%s)").format(
            sql.Identifier(model.name), sql.Identifier(model.columns[0])
        )
        async with self._store.pool.connection() as connection:
            found = await (await connection.execute(query, (ids,))).fetchall()
        rows = [msgspec.json.decode(one, type=model.row) for (one,) in found]
        return {getattr(row, model.columns[0]): row for row in rows}

    async def pending(self, kinds: Iterable[str]) -> dict[str, int]:
        """The guard counters of jobs that wait, by kind."""
        newest = "SELECT value FROM guards WHERE key = %s ORDER BY move DESC LIMIT 1"
        found: dict[str, int] = {}
        async with self._store.pool.connection() as connection:
            for kind in kinds:
                row = await (await connection.execute(newest, (pending_key(kind),))).fetchone()
                found[kind] = row[0] if row else 0
        return found

    async def receipts(self, command_ids: list[UUID]) -> set[UUID]:
        """Those of these commands that the log keeps a receipt of."""
        query = "SELECT command_id FROM receipts WHERE command_id = ANY (%s)"
        async with self._store.pool.connection() as connection:
            return {one for (one,) in await (await connection.execute(query, (command_ids,))).fetchall()}


@asynccontextmanager
async def _opened(runner: asyncio.Runner, dsn: str, redis_url: str, directory: Path) -> AsyncIterator[Real]:
    settings = short_lived(dsn, redis_url, directory)
    async with (
        lifecycle.open_services(settings) as first,
        lifecycle.open_services(settings) as second,
        await postgres.connect(dsn) as projecting,
    ):
        yield Real(runner, (first, second), projecting)


@contextmanager
def open_real(dsn: str, redis_url: str, directory: Path) -> Iterator[Real]:
    """On a migrated, empty log that nobody else uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        real = runner.run(stack.enter_async_context(_opened(runner, dsn, redis_url, directory)))
        try:
            yield real
        finally:
            runner.run(stack.aclose())


# The same words for the same things: what a state, or a row, says in the reference's terms.

SAME = {
    "session": "status owner created_at expires_at last_activity_at",
    "asset": "status owner purpose filename content_type size_bytes sha256 quarantine_code created_at updated_at",
    "model": "status name framework task hf_repo uri sha256 last_sync_error created_at updated_at",
    "slot": "active",
    "job": "status attempt attempts_max worker not_before message error_code error_message dead_letter started_at "
    "finished_at updated_at",
}
SUBMITTED = "kind owner session_id priority timeout_s model_version_id model_sha256"


def of_state(noun: str, state: Any) -> Row:
    """What an aggregate's state says, by the reference's names."""
    said: Row = {name: getattr(state, name) for name in SAME[noun].split()}
    match noun:
        case "session":
            # Whose it is may be sealed: that somebody is named is what can be seen.
            return said | {"asset_ids": list(state.asset_ids), "is_named": state.user_id is not None}
        case "slot":
            return said | {"previous": list(state.history), "rolled_back": state.rolled_back}
        case "job":
            asked = {name: getattr(state.submitted, name) for name in SUBMITTED.split()}
            asked |= {"inputs": list(state.submitted.inputs), "created_at": state.submitted.at}
            outputs = [one.name for one in state.result.outputs] if state.result else []
            told = {"outputs": outputs, "late": sorted(state.refused), "cancel_requested_by": state.cancel_requested_by}
            return said | asked | told | {"percent": state.percent}
    return said


def of_row(noun: str, row: Any) -> Row:
    """What a read model's row says, by the reference's names; its version too."""
    said: Row = {name: getattr(row, name) for name in SAME[noun].split()} | {"version": row.version}
    match noun:
        case "session":
            return said | {"asset_ids": list(row.asset_ids), "is_named": row.user_id is not None}
        case "slot":
            return said | {"previous": list(row.previous)}
        case "job":
            asked = {name: getattr(row, name) for name in SUBMITTED.split()}
            asked |= {"inputs": list(row.inputs), "created_at": row.created_at, "percent": row.progress}
            told = {"outputs": [one.name for one in row.outputs], "cancel_requested": row.cancel_requested}
            return said | asked | told | {"late_results": row.late_results}
    return said


def of_reference(row: Row) -> Row:
    """The reference's own row with what the others derive from it."""
    derived: Row = {}
    if "asset_ids" in row:
        derived["is_named"] = row["user_id"] is not None
    if "late" in row:
        derived["late"], derived["late_results"] = sorted(row["late"]), len(row["late"])
        derived["cancel_requested"] = row["cancel_requested_by"] is not None
        derived["inputs"] = list(row["inputs"])
    return row | derived


def stream_id(noun: str, key: Any) -> UUID:
    return slot_id(key) if noun == "slot" else key
