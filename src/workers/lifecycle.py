"""What every worker process does at its ends: open its services, run until told to stop, drain, close."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import structlog
from msgspec import Struct

from ..adapters import memory
from ..adapters.event_store.reader import Tail
from ..adapters.event_store.store import EventStore, open_event_store
from ..adapters.event_store.writer import CommandRefused, StoreBusy, StoreUnavailable
from ..adapters.hints import JobHints
from ..adapters.models import ModelCache
from ..adapters.objects import open_object_store
from ..adapters.objects.port import ObjectStore
from ..adapters.settings import Settings
from ..adapters.valkey import open_valkey
from ..adapters.vault import Vault
from ..commands.transact import C, Commands, Contended, Handler, S
from ..domain.events import EVENTS
from ..domain.kernel import Caller, Rejection
from ..projections.projection import CHANNEL, ReadModels

log = structlog.get_logger(__name__)


class Services(Struct, frozen=True):
    """What a worker process holds open; one composition root for all of them."""

    settings: Settings
    store: EventStore
    commands: Commands
    reads: ReadModels
    hints: JobHints
    objects: ObjectStore
    models: ModelCache


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Raises:
    psycopg.OperationalError: the database does not answer.
    """
    direct_dsn = settings.database_direct_url or settings.database_url
    objects = await open_object_store(settings)
    try:
        async with (
            open_event_store(settings.database_url, EVENTS, direct_dsn=direct_dsn) as store,
            open_valkey(settings.redis_url) as valkey,
            Tail(direct_dsn, CHANNEL) as tail,
        ):
            hints = JobHints(valkey)
            commands = Commands(store, hints, Vault.of(store.pool, settings))
            reads = ReadModels(store.pool, tail, store.writer.saw_epoch)
            store.epochs.append(lambda _: reads.forget())
            yield Services(settings, store, commands, reads, hints, objects, ModelCache(settings.data_dir))
            await commands.close()
    finally:
        await objects.close()


def now() -> datetime:
    return datetime.now(UTC)


def caller(actor: str, command_id: UUID, *, correlation_id: str, cause: int) -> Caller:
    """Who reacts to the event at position `cause`: the same correlation, that event as the reason."""
    return Caller(
        actor=actor,
        now=now(),
        command_id=command_id,
        correlation_id=correlation_id,
        causation_id=f"event:{cause}",
    )


def by_itself(actor: str, command_id: UUID) -> Caller:
    """Who says something of its own accord, or about many things at once."""
    return Caller.of_itself(actor, now=now(), command_id=command_id, correlation_id=str(command_id))


async def say_due(services: Services, handler: Handler[C, S], command: C, by: Caller) -> None:
    """Say what a read model found to be due. What is wrong with one subject is logged and keeps no other from its turn:
    it is due again at the next look.

    Raises:
        StoreBusy, StoreUnavailable, psycopg.Error: nothing can be said now, whatever it is about.
    """
    try:
        await services.commands.execute(handler, command, by)
    except (StoreBusy, StoreUnavailable, psycopg.Error):
        raise
    except (CommandRefused, Contended) as error:
        log.warning("due_and_not_said", duty=handler.__name__, subject=by.correlation_id, error=repr(error))
    except Rejection as rejection:
        # The read model was behind: what was due is done, or no longer so.
        log.debug("duty_was_done", duty=handler.__name__, subject=by.correlation_id, code=rejection.code)
    except Exception:  # a stream that cannot be read, a fault in a decision: this subject's alone
        log.exception("due_and_not_said", duty=handler.__name__, subject=by.correlation_id)


async def run_until_stopped(work: Callable[[asyncio.Event], Awaitable[None]], name: str) -> None:
    """Run `work`, which ends soon after its event is set by SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    memory.settle()
    log.info("worker_ready", worker=name)
    await work(stopping)
    log.info("worker_stopped", worker=name)


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Sleep, but not past the stop."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        pass
