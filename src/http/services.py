"""What one API process has open. Opened once, around the server; the application itself opens nothing."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import redis.asyncio as redis
from msgspec import Struct

from ..adapters.event_store.reader import Tail
from ..adapters.event_store.store import EventStore, open_event_store
from ..adapters.hints import JobHints
from ..adapters.ids import uuid7
from ..adapters.images import ImageScanner
from ..adapters.models import ModelCache
from ..adapters.objects import open_object_store
from ..adapters.objects.port import ObjectStore
from ..adapters.objects.signing import load_secrets
from ..adapters.settings import Settings
from ..adapters.valkey import open_valkey
from ..adapters.vault import Vault
from ..commands.models import install_builtin_models
from ..commands.transact import Commands
from ..domain.events import EVENTS
from ..domain.kernel import Caller
from ..projections.projection import CHANNEL, ReadModels
from .background import Background


class Services(Struct, frozen=True, kw_only=True):
    """Opened parts, as arguments of every handler.

    Attributes:
        digest_key: keys the digests of requests that receipts keep.
    """

    settings: Settings
    store: EventStore
    commands: Commands
    vault: Vault
    reads: ReadModels
    objects: ObjectStore
    scanner: ImageScanner
    models: ModelCache
    valkey: "redis.Redis"
    digest_key: bytes
    background: Background


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Everything that one API process needs, closed in reverse.

    Raises:
        psycopg.OperationalError: the database does not answer.
        OSError: the data directory cannot be written.
    """
    direct = settings.database_direct_url or settings.database_url
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_event_store(settings.database_url, EVENTS, direct_dsn=direct))
        valkey = await stack.enter_async_context(open_valkey(settings.redis_url))
        objects = await open_object_store(settings)
        stack.push_async_callback(objects.close)
        scanner = await stack.enter_async_context(ImageScanner(pixels_max=settings.upload_pixels_max))
        vault = Vault.of(store.pool, settings)
        await vault.open()
        commands = Commands(store, JobHints(valkey), vault)
        stack.push_async_callback(commands.close)
        tail = await stack.enter_async_context(Tail(direct, CHANNEL))
        reads = ReadModels(store.pool, tail, store.writer.saw_epoch)
        store.epochs.append(lambda _: reads.forget())
        await stack.enter_async_context(_running(reads))
        models = ModelCache(settings.data_dir)
        await install_builtin_models(commands, models, _system_caller())
        background = Background()
        stack.push_async_callback(background.close)
        secret = load_secrets(settings.data_dir / "keys").current
        yield Services(
            settings=settings,
            store=store,
            commands=commands,
            vault=vault,
            reads=reads,
            objects=objects,
            scanner=scanner,
            models=models,
            valkey=valkey,
            digest_key=hmac.digest(secret, b"sightline-requests-1", hashlib.sha256),
            background=background,
        )


@asynccontextmanager
async def _running(reads: ReadModels) -> AsyncIterator[None]:
    task = asyncio.create_task(reads.watch(), name="read-models-watch")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _system_caller() -> Caller:
    command_id = uuid7()
    return Caller(
        actor="system",
        now=datetime.now(UTC),
        command_id=command_id,
        correlation_id=f"start:{command_id}",
        causation_id=f"command:{command_id}",
    )
