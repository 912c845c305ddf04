"""What one API process has open. Opened once, around the server; the application itself opens nothing."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import redis.asyncio as redis
from msgspec import Struct

from ..adapters.clamd import Clamd
from ..adapters.event_store.reader import Tail
from ..adapters.event_store.store import EventStore, open_event_store
from ..adapters.hints import JobHints
from ..adapters.ids import uuid7
from ..adapters.images import ImageScanner
from ..adapters.limits import Limiter, open_limiter
from ..adapters.models import ModelCache
from ..adapters.objects import open_object_store
from ..adapters.objects.port import ObjectStore
from ..adapters.objects.signing import load_secrets
from ..adapters.passwords import Passwords
from ..adapters.settings import Settings, secrets_of
from ..adapters.tokens import Tokens
from ..adapters.valkey import open_valkey
from ..adapters.vault import Vault
from ..commands.authentication import Authentication
from ..commands.models import install_builtin_models
from ..commands.transact import Commands
from ..domain.events import EVENTS
from ..domain.kernel import Caller
from ..projections.projection import CHANNEL, ReadModels
from .background import Background
from .feed import Feed
from .patience import REQUESTS_MAX
from .serving import BODIES_BYTES_MAX, Serving, open_serving
from .turns import Turns


class Services(Struct, frozen=True, kw_only=True):
    """Opened parts, as arguments of every handler.

    Attributes:
        digest_keys: key the digests of requests that receipts keep: the first makes them, all recognise them.
        keys_under_way: command ids of requests with an Idempotency-Key that this process has not answered yet.
        clamd: asked about every file, where one is configured.
        uploads: places for files that are being looked at.
        bodies: places for the tensors of requests for inference, which are kept in memory.
    """

    settings: Settings
    store: EventStore
    commands: Commands
    vault: Vault
    passwords: Passwords
    authentication: Authentication
    reads: ReadModels
    objects: ObjectStore
    scanner: ImageScanner
    clamd: Clamd | None
    uploads: Turns
    bodies: Turns
    models: ModelCache
    serving: Serving
    valkey: "redis.Redis"
    limiter: Limiter
    digest_keys: tuple[bytes, ...]
    keys_under_way: set[UUID]
    background: Background
    feed: Feed

    @property
    def digest_key(self) -> bytes:
        """Keys digests that are made from now on."""
        return self.digest_keys[0]


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
        limiter = await stack.enter_async_context(open_limiter(settings.redis_url))
        objects = await open_object_store(settings)
        stack.push_async_callback(objects.close)
        scanner = await stack.enter_async_context(ImageScanner(pixels_max=settings.upload_pixels_max))
        vault = Vault.of(store.pool, settings)
        await vault.open()
        commands = Commands(store, JobHints(valkey), vault)
        stack.push_async_callback(commands.close)
        passwords = Passwords()
        stack.callback(passwords.close)
        tail = await stack.enter_async_context(Tail(direct, CHANNEL))
        reads = ReadModels(store.pool, tail, store.writer.saw_epoch)
        store.epochs.append(lambda _: reads.forget())
        await stack.enter_async_context(_running(reads))
        models = ModelCache(settings.data_dir)
        await install_builtin_models(commands, models, _system_caller())
        serving = await stack.enter_async_context(open_serving(settings, commands, models))
        background = Background()
        stack.push_async_callback(background.close)
        feed = Feed(store, direct, streams_max=settings.live_streams_max)
        stack.push_async_callback(feed.close)
        secret = load_secrets(settings.data_dir / "keys").current
        tokens = Tokens.of(settings, hmac.digest(secret, b"sightline-tokens-1", hashlib.sha256))
        yield Services(
            settings=settings,
            store=store,
            commands=commands,
            vault=vault,
            passwords=passwords,
            authentication=Authentication(commands, vault, passwords, tokens),
            reads=reads,
            objects=objects,
            scanner=scanner,
            clamd=Clamd(Path(settings.clamd_socket)) if settings.clamd_socket else None,
            uploads=Turns(),
            bodies=Turns(bytes_max=BODIES_BYTES_MAX, at_once_max=REQUESTS_MAX, waiting_max=REQUESTS_MAX),
            models=models,
            serving=serving,
            valkey=valkey,
            limiter=limiter,
            digest_keys=_digest_keys(settings),
            keys_under_way=set(),
            background=background,
            feed=feed,
        )


def _digest_keys(settings: Settings) -> tuple[bytes, ...]:
    """From SECRET_KEY, which all nodes share; those of the data directory, this node's own, where there is none.

    A request that is repeated after a rotation, or after a SECRET_KEY was set, is held against the keys of before.
    """
    kept = load_secrets(settings.data_dir / "keys")
    secrets = [secret.encode(errors="surrogateescape") for secret in secrets_of(settings)]
    secrets += [kept.current, *([kept.previous] if kept.previous else [])]
    return tuple(hmac.digest(secret, b"sightline-requests-1", hashlib.sha256) for secret in secrets)


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
    now, correlation_id = datetime.now(UTC), f"start:{command_id}"
    return Caller.of_itself("system", now=now, command_id=command_id, correlation_id=correlation_id)
